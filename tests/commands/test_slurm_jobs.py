"""The shipped job scripts on a real Slurm: start, signal, requeue, chain, share out a corpus."""

import getpass
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import support
from tests.commands.support import Workshop
from tests.forked_python import forked_python
from tests.slurm_cluster import SlurmCluster, slurm_cluster

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "slurm"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a job may start three times
STEPS = 150
TRAINING = {"max_steps": STEPS}
SECONDS = 400.0  # of a job, on a machine that does much else


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with pytest.MonkeyPatch.context() as patch, forked_python() as python:
        patch.setenv("MINIMOE_PYTHON", python)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        with slurm_cluster(cpus=4, gpus=2) as started:
            yield started


def minimoe_dist(cluster: SlurmCluster, *words: str) -> subprocess.CompletedProcess[str]:
    return cluster.execute([sys.executable, "-m", "minimoe_dist", *words])


def records(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of jobs; those of launches are :mod:`minimoe_dist.runs.launches`' own."""
    lines = (output_dir / "starts.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [record for record in found if record["event"] not in ("launch", "hosts", "leave")]


def test_a_submitted_run_on_two_nodes_does_what_torchrun_does(
    cluster: SlurmCluster, workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    done = minimoe_dist(cluster, "submit", str(recipe), "--nodes", "2")
    assert done.returncode == 0, done.stderr
    (number,) = re.findall(r"submitted job (\d+)", done.stdout)
    found = cluster.wait_for_job(number, "COMPLETED", "FAILED", seconds=SECONDS)
    log = tmp_path / "run" / f"slurm-{number}.out"
    assert (found["JobState"], found["NumNodes"]) == ("COMPLETED", "2"), log.read_text()
    support.assert_same_run(tmp_path / "run", unbroken)
    (told,) = json.loads(minimoe_dist(cluster, "status", str(tmp_path / "run"), "--json").stdout)
    assert (told["state"], told["step"], told["total_steps"]) == ("finished", 30, 30)


@pytest.fixture(scope="module")
def interrupted(cluster: SlurmCluster, workshop: Workshop) -> tuple[Path, str]:
    """A finished run that was signalled first and requeued then, and its log."""
    output_dir, log = workshop.folder / "interrupted", workshop.folder / "interrupted.out"
    recipe = workshop.recipe(output_dir, training=TRAINING)
    number = cluster.submit(
        "--nodes=1", "--ntasks-per-node=2", f"--output={log}", f"--chdir={workshop.folder}",
        str(SCRIPTS / "distill.sbatch"), str(recipe), "resume=never",
    )  # fmt: skip

    def wait_for_step(step: int) -> None:
        support.wait_for(
            lambda: max(support.losses(output_dir), default=0) >= step,
            lambda: log.read_text() if log.exists() else "no log",
            SECONDS,
        )

    wait_for_step(5)
    cluster.execute(["scancel", "--signal=USR1", number])
    support.wait_for(lambda: len(records(output_dir)) > 2, lambda: log.read_text(), SECONDS)
    wait_for_step(records(output_dir)[2]["progress"]["."] + 5)
    cluster.execute(["scontrol", "requeue", number])
    found = cluster.wait_for_job(number, "COMPLETED", "FAILED", seconds=SECONDS)
    assert found["JobState"] == "COMPLETED", log.read_text()
    return output_dir, log.read_text()


def test_a_signalled_job_saves_requeues_itself_and_goes_on(
    interrupted: tuple[Path, str],
) -> None:
    first, ended, second = records(interrupted[0])[:3]
    assert (first["restart"], ended["status"], second["restart"]) == (0, 75, 1)
    assert 5 <= ended["progress"]["."] < STEPS
    assert second["progress"] == ended["progress"]


def test_a_job_requeued_by_scontrol_goes_on(interrupted: tuple[Path, str]) -> None:
    second, third = [one for one in records(interrupted[0]) if one["event"] == "start"][1:]
    assert third["restart"] == 2
    assert second["progress"]["."] + 5 <= third["progress"]["."] < STEPS


def test_restarts_change_no_number(
    interrupted: tuple[Path, str], workshop: Workshop, tmp_path: Path
) -> None:
    support.finish(workshop.recipe(tmp_path / "whole", training=TRAINING))
    support.assert_same_run(interrupted[0], tmp_path / "whole")


def test_all_starts_share_one_log_and_one_run_id(interrupted: tuple[Path, str]) -> None:
    output_dir, log = interrupted
    assert len({one["run_id"] for one in records(output_dir) if "run_id" in one}) == 1
    starts = re.findall(r"^minimoe-dist: run (\S+): job (\d+), restart (\d)", log, re.M)
    assert [restart for *_, restart in starts] == ["0", "1", "2"]
    steps = [int(step) for step in re.findall(r"^step (\d+)/\d+  loss", log, re.M)]
    assert steps == list(range(1, STEPS + 1))


def test_stages_run_one_after_the_other_and_not_twice(
    cluster: SlurmCluster, workshop: Workshop, tmp_path: Path
) -> None:
    small = {"layer": 1, "hidden": 16, "heads": 2}
    recipe = workshop.recipe(
        tmp_path / "chain",
        model_type="bert_minilm",
        stages=[{"name": "first", "students": [small]}, {"name": "second", "students": [small]}],
        training={"max_steps": 4, "save_interval": 2},
        parallel={"expert_parallel_size": 1},
    )
    words = ("submit", str(recipe), "--processes_per_task", "2")
    first, second = re.findall(r"submitted job (\d+)", minimoe_dist(cluster, *words).stdout)
    assert f"afterok:{first}" in cluster.job(second)["Dependency"]
    found = cluster.wait_for_job(second, "COMPLETED", "FAILED", "CANCELLED", seconds=SECONDS)
    logs = "".join(path.read_text() for path in (tmp_path / "chain").glob("*/slurm-*.out"))
    assert found["JobState"] == "COMPLETED", logs
    summary = json.loads((tmp_path / "chain" / "second" / "summary.json").read_text())
    assert summary["teacher"] == str(tmp_path / "chain" / "first" / "export" / "student")
    assert summary["world_size"] == 2
    assert "every stage is finished" in minimoe_dist(cluster, *words).stdout


def test_a_fine_tuning_is_a_job_too_and_so_is_a_prediction(
    cluster: SlurmCluster, workshop: Workshop, tmp_path: Path
) -> None:
    for name in ("train", "dev"):
        rows = "".join(f"word{n} word{n + 1}\t{n % 2}\n" for n in range(12))
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    words = [
        "--task", "sst2", "--data_dir", str(tmp_path), "--max_length", "16", "--seeds", "1,2",
        "--num_train_epochs", "1", "--output_dir", str(tmp_path / "tuned"), "--use_cpu",
    ]  # fmt: skip
    done = minimoe_dist(cluster, "submit", "finetune", str(workshop.teacher), *words)
    assert done.returncode == 0, done.stderr
    (number,) = re.findall(r"submitted job (\d+)", done.stdout)
    found = cluster.wait_for_job(number, "COMPLETED", "FAILED", seconds=SECONDS)
    log = (tmp_path / "tuned" / f"slurm-{number}.out").read_text()
    assert found["JobState"] == "COMPLETED", log
    (told,) = json.loads(minimoe_dist(cluster, "status", str(tmp_path / "tuned"), "--json").stdout)
    assert (told["state"], told["cells"]["done"], told["cells"]["total"]) == ("finished", 2, 2)
    assert [record["event"] for record in records(tmp_path / "tuned")] == ["start", "end"]
    (tmp_path / "texts").write_text("word1 word2\nword3\n")
    output = tmp_path / "labels.tsv"
    words = ["--input", str(tmp_path / "texts"), "--output", str(output), "--use_cpu"]
    done = minimoe_dist(cluster, "submit", "predict", str(tmp_path / "tuned"), *words)
    assert done.returncode == 0, done.stderr
    (number,) = re.findall(r"submitted job (\d+)", done.stdout)
    found = cluster.wait_for_job(number, "COMPLETED", "FAILED", seconds=SECONDS)
    assert found["JobState"] == "COMPLETED", Path(found["StdOut"]).read_text()
    lines = [line.split("\t") for line in output.read_text().splitlines()]
    assert [line[-1] for line in lines] == ["word1 word2", "word3"]
    assert {line[0] for line in lines} <= {"0", "1"}


# Stands for apptainer: notes how it was called, and starts what comes behind the image.
CONTAINER = """#!/bin/bash
echo "$SLURM_PROCID $*" >> {calls}
[[ $1 == exec && $2 == --nv && $3 == *.sif ]] || exit 9
shift 3
exec "$@"
"""


def test_tasks_run_in_a_container_with_a_rank_for_each_gpu_of_a_typed_resource(
    cluster: SlurmCluster, workshop: Workshop, tmp_path: Path
) -> None:
    container, calls = tmp_path / "container", tmp_path / "calls"
    container.write_text(CONTAINER.format(calls=calls))
    container.chmod(0o755)
    recipe = workshop.recipe(
        tmp_path / "run",
        training={"max_steps": 4, "save_interval": 2, "global_batch_size": 4},
    )
    inside = f"{container} exec --nv image.sif {os.environ['MINIMOE_PYTHON']}"
    words = ["--nodes", "2", "--gres", "gpu:a100:2", "--python", inside]
    done = minimoe_dist(cluster, "submit", str(recipe), *words)
    assert done.returncode == 0, done.stderr
    (number,) = re.findall(r"submitted job (\d+)", done.stdout)
    found = cluster.wait_for_job(number, "COMPLETED", "FAILED", seconds=SECONDS)
    log = tmp_path / "run" / f"slurm-{number}.out"
    assert found["JobState"] == "COMPLETED", log.read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["world_size"] == 4
    lines = sorted(calls.read_text().splitlines())
    # The tasks, one for each GPU, and nothing around them.
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3"]
    assert all("minimoe_dist.slurm.task distill" in line for line in lines)
    assert [record["event"] for record in records(tmp_path / "run")] == ["start", "end"]


def test_an_array_of_shares_gives_the_corpus_of_one_machine(
    cluster: SlurmCluster, workshop: Workshop, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(3):
        documents = (f"word{i} word{i + number} word3 word{i % 7}." for i in range(60))
        (text / f"{number}.txt").write_text("\n\n".join(documents) + "\n")
    arguments = [
        "--input_dir", str(text), "--input_regex", "*.txt", "--output_prefix", "tiny",
        "--heldout_fraction", "0.2", "--tokenizer_name_or_path", str(workshop.teacher),
        "--minimum_words", "1",
    ]  # fmt: skip
    held = cluster.execute(
        ["scontrol", "create", "reservation=corpus", "starttime=now", "duration=60",
         f"users={getpass.getuser()}", f"nodes={','.join(cluster.nodes)}"]
    )  # fmt: skip
    assert held.returncode == 0, held.stderr
    array = cluster.submit(
        "--array=0-1", "--cpus-per-task=1", f"--chdir={tmp_path}", "--reservation=corpus",
        str(SCRIPTS / "preprocess_array.sbatch"), *arguments, "--output_dir", "shared",
    )  # fmt: skip
    alone = [sys.executable, str(ROOT / "tools" / "preprocess" / "build_indexed.py")]
    subprocess.run([*alone, *arguments, "--output_dir", tmp_path / "alone"], check=True)
    log = tmp_path / f"preprocess-{array}_0.out"
    support.wait_for(
        lambda: log.exists() and "Submitted batch job" in log.read_text(), lambda: "no merge"
    )
    (merge,) = re.findall(r"Submitted batch job (\d+)", log.read_text())
    found = cluster.wait_for_job(merge, "COMPLETED", "FAILED", "CANCELLED", seconds=SECONDS)
    logs = "".join(path.read_text() for path in tmp_path.glob("*.out"))
    assert found["JobState"] == "COMPLETED", logs
    assert found["Reservation"] == "corpus"
    cluster.execute(["scontrol", "delete", "reservation=corpus"])
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert "tiny.bin" in names and "tiny_heldout.idx" in names
    for name in names:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
