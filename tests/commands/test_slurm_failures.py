"""Jobs on a real Slurm whose nodes are lost, that are cancelled, or that do not get on."""

import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import support
from tests.commands.support import Workshop
from tests.forked_python import forked_python
from tests.slurm_cluster import SlurmCluster, slurm_cluster

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "slurm" / "distill.sbatch")
NODES = ("rack7-gpu01", "rack7-gpu02")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SECONDS = 400.0  # of a job, on a machine that does much else


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with pytest.MonkeyPatch.context() as patch, forked_python() as python:
        patch.setenv("MINIMOE_PYTHON", python)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        with slurm_cluster(NODES, cpus=4, slurmd_timeout=5) as started:
            yield started


@pytest.fixture(scope="module")
def stuck(cluster: SlurmCluster, workshop: Workshop) -> Iterator[tuple[str, Path, Path]]:
    """A job that cannot get on, since its port is taken: number, run, log."""
    output_dir, log = workshop.folder / "stuck", workshop.folder / "stuck.out"
    with socket.socket() as taken:
        taken.bind(("", 0))
        number = cluster.submit(
            f"--output={log}", f"--export=ALL,MASTER_PORT={taken.getsockname()[1]}",
            SCRIPT, str(workshop.recipe(output_dir)),
        )  # fmt: skip
        yield number, output_dir, log


@pytest.fixture(scope="module")
def bereft(stuck: object, cluster: SlurmCluster, workshop: Workshop) -> tuple[str, Path, Path]:
    """A run that lost a node in a step and goes on: its job, its folder, its log.

    The job that is stuck is in the queue at the same time: both wait most of theirs.
    """
    output_dir, log = workshop.folder / "bereft", workshop.folder / "bereft.out"
    recipe = workshop.recipe(
        output_dir, training={"max_steps": 100_000, "save_interval": 20, "eval_interval": 100_000}
    )
    number = cluster.submit(f"--output={log}", SCRIPT, str(recipe))

    def wait_for_step(step: int) -> None:
        support.wait_for(
            lambda: max(support.losses(output_dir), default=0) >= step,
            lambda: log.read_text() if log.exists() else "no log",
            SECONDS,
        )

    wait_for_step(50)
    cluster.lose(NODES[1])
    support.wait_for(
        lambda: cluster.job(number)["Restarts"] == "1", lambda: log.read_text(), SECONDS
    )
    cluster.bring_back(NODES[1])
    support.wait_for(lambda: " resumed from " in log.read_text(), lambda: log.read_text(), SECONDS)
    wait_for_step(resumed_at(log) + 30)
    return number, output_dir, log


def resumed_at(log: Path) -> int:
    (step,) = re.findall(r"resumed from \S+ at step (\d+)", log.read_text())
    return int(step)


def test_a_lost_node_requeues_the_job_which_repeats_the_same_steps(
    bereft: tuple[str, Path, Path],
) -> None:
    lines = re.findall(r"^step (\d+)/\d+  loss ([\d.]+),", bereft[2].read_text(), re.M)
    seen: dict[str, str] = {}
    assert all(seen.setdefault(step, loss) == loss for step, loss in lines)
    assert max(map(int, seen)) > resumed_at(bereft[2]) >= 40


def test_a_cancelled_job_saves_and_stays_cancelled(
    bereft: tuple[str, Path, Path], cluster: SlurmCluster
) -> None:
    number, output_dir, log = bereft
    cluster.execute(["scancel", number])
    cluster.wait_for_job(number, "CANCELLED", seconds=SECONDS)
    last = json.loads((output_dir / "starts.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["status"]) == ("end", 75), log.read_text()
    assert last["progress"]["."] == max(support.losses(output_dir))
    assert cluster.job(number)["JobState"] == "CANCELLED"


def test_three_restarts_without_progress_stop_a_job(
    stuck: tuple[str, Path, Path], cluster: SlurmCluster
) -> None:
    number, output_dir, log = stuck
    found = cluster.wait_for_job(number, "FAILED", "COMPLETED", seconds=SECONDS)
    assert (found["JobState"], found["Restarts"]) == ("FAILED", "3"), log.read_text()
    reason = "3 restarts without progress at step 0"
    words = f"minimoe-dist: job {number}: stopped after {reason}: look at the errors above"
    assert log.read_text().splitlines()[-1].startswith(words)
    told = cluster.execute([sys.executable, "-m", "minimoe_dist", "status", str(output_dir)])
    assert "stopped" in told.stdout and reason in told.stdout
