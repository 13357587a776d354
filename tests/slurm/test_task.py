"""One task, one rank or several: how many, their variables, their signals and statuses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minimoe_dist.runtime import detect_launch
from minimoe_dist.slurm import task
from minimoe_dist.slurm.job import ranks_of_job
from minimoe_dist.slurm.task import processes_per_task, variables_of_rank

STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_STEP_NODELIST": "localhost,n2",
}


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 1),
        ({"SLURM_GPUS_ON_NODE": "4"}, 4),
        ({"SLURM_GPUS_PER_NODE": "a100:8", "SLURM_GPUS_ON_NODE": "4"}, 8),
        ({"SLURM_GPUS_PER_NODE": "a100:2,v100:1", "SLURM_GPUS_ON_NODE": "3"}, 3),
        ({"SLURM_GPUS_ON_NODE": "3", "SLURM_GPUS": "a100:6"}, 3),
        ({"SLURM_GPUS_ON_NODE": "4", "MINIMOE_PROCESSES_PER_TASK": "1"}, 1),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 1),
    ],
)
def test_a_task_alone_on_its_node_stands_for_all_its_gpus(
    changes: dict[str, str], count: int
) -> None:
    assert processes_per_task(STEP | changes) == count


def test_around_the_steps_of_a_job_its_tasks_are_counted_too() -> None:
    batch = {
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_GPUS": "4",
    }
    a_gpu_each = batch | {"SLURM_NTASKS_PER_NODE": "2", "SLURM_TASKS_PER_NODE": "2(x2)"}
    assert processes_per_task(a_gpu_each) == 1
    assert ranks_of_job(a_gpu_each) == 4
    one_task = batch | {"SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)"}
    assert processes_per_task(one_task) == 2
    assert ranks_of_job(one_task) == 4
    with pytest.raises(ValueError, match="6 GPUs"):
        processes_per_task(one_task | {"SLURM_GPUS": "6"})


def test_nodes_of_different_numbers_of_gpus_are_refused() -> None:
    environ = STEP | {"SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS": "a100:6"}
    with pytest.raises(
        ValueError, match=r"6 GPUs .* are not 4 on each of 2 nodes; give --gpus-per"
    ):
        processes_per_task(environ)
    # One task a GPU knows its place from Slurm, whatever the nodes have.
    spread = environ | {"SLURM_STEP_TASKS_PER_NODE": "4,2", "SLURM_NTASKS": "6"}
    assert processes_per_task(spread | {"SLURM_NODEID": "0"}) == 1


def test_several_ranks_of_several_tasks_are_refused() -> None:
    environ = STEP | {"MINIMOE_PROCESSES_PER_TASK": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    with pytest.raises(ValueError, match="with several tasks a node; give --ntasks-per-node=1"):
        processes_per_task(environ)


@pytest.mark.parametrize("count", ["0", "two"])
def test_a_wrong_number_of_ranks_is_refused(count: str) -> None:
    with pytest.raises(ValueError, match=f"MINIMOE_PROCESSES_PER_TASK='{count}'"):
        processes_per_task(STEP | {"MINIMOE_PROCESSES_PER_TASK": count})


def test_ranks_of_all_tasks_count_through() -> None:
    ranks = [detect_launch(variables_of_rank(detect_launch(STEP), i, 3)) for i in range(3)]
    assert [(one.rank, one.local_rank, one.world_size) for one in ranks] == [
        (3, 0, 6),
        (4, 1, 6),
        (5, 2, 6),
    ]
    assert {(one.local_world_size, one.master_addr) for one in ranks} == {(3, "localhost")}


# Stands in for the package's own command line: children run it as `python -m minimoe_dist`.
FAKE = """\
import os, signal, sys, time
print("up", flush=True)
if sys.argv[1] == "wait":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    open(os.environ["READY"] + os.environ["RANK"], "w").close()
    time.sleep(60)
if os.environ["RANK"] == "1":
    sys.exit(int(sys.argv[1]))
time.sleep(60 if sys.argv[1] != "0" else 0)
"""


def start_task(folder: Path, *words: str) -> "subprocess.Popen[str]":
    (folder / "minimoe_dist").mkdir()
    (folder / "minimoe_dist" / "__init__.py").touch()
    (folder / "minimoe_dist" / "__main__.py").write_text(FAKE)
    environment = os.environ | {
        "READY": str(folder / "ready"),
        "MINIMOE_PROCESSES_PER_TASK": "2",
        "PYTHONPATH": str(folder),
    }
    # The module itself needs the real package.
    code = f"import sys; sys.path.insert(0, {str(Path(task.__file__).parents[2])!r}); "
    code += f"from minimoe_dist.slurm import task; sys.exit(task.main({list(words)!r}))"
    return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=folder, text=True)


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_of_the_first_failure_is_the_tasks(status: int, tmp_path: Path) -> None:
    with start_task(tmp_path, str(status)) as process:
        assert process.wait(30) == status


def test_a_signal_reaches_every_rank_and_75_comes_back(tmp_path: Path) -> None:
    with start_task(tmp_path, "wait") as process:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == 75
