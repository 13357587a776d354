"""The same command, the same numbers: alone, by deepspeed, by srun (torchrun: test_distill)."""

import sys
from pathlib import Path

import pytest

from tests.commands import support
from tests.commands.support import Workshop
from tests.slurm_cluster import slurm_cluster

BIN = Path(sys.executable).parent


@pytest.mark.slow
def test_console_script_alone_does_what_one_forked_rank_does(
    workshop: Workshop, tmp_path: Path
) -> None:
    options = ["parallel.expert_parallel_size=1", "training.max_steps=5"]
    recipe = workshop.recipe(tmp_path / "script")
    command = [str(BIN / "minimoe-dist"), "distill", "--config", str(recipe), *options]
    done = support.execute(command)
    assert done.returncode == 0, done.stderr
    support.finish(workshop.recipe(tmp_path / "forked"), *options, world_size=1)
    support.assert_same_run(tmp_path / "script", tmp_path / "forked")


@pytest.mark.slow
def test_deepspeed_does_what_torchrun_does(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    launcher = [str(BIN / "deepspeed"), "--num_gpus", "2", f"--master_port={support.free_port()}"]
    command = [*launcher, "--module", "minimoe_dist", "distill", "--config", str(recipe)]
    done = support.execute(command)
    assert done.returncode == 0, done.stdout + done.stderr
    support.assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_srun_does_what_torchrun_does(workshop: Workshop, unbroken: Path, tmp_path: Path) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    with slurm_cluster() as cluster:
        srun = ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
        command = [sys.executable, "-m", "minimoe_dist", "distill", "--config", str(recipe)]
        done = cluster.execute([*srun, *command], OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    support.assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK"])
def test_a_half_set_launch_is_refused(variable: str, workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    done = support.execute(
        [sys.executable, "-m", "minimoe_dist", "distill", "--config", str(recipe)],
        WORLD_SIZE="2",
        **({"RANK": "0"} if variable == "LOCAL_RANK" else {"LOCAL_RANK": "0"}),
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"environment: {variable} is not set" in done.stderr
