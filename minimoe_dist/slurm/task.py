"""Runs a task of a job: ``srun python -m minimoe_dist.slurm.task COMMAND …``.

With one task per device the task is the rank. With one task per node and several devices it starts
one rank for each, as children that know their place from the task's own variables: torchrun would
die of Slurm's signals and hide the exit status of a saved run.
"""

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from ..errors import UserError
from ..exit_status import ExitStatus
from ..foreign import is_whole_number
from ..runtime import Launch, detect_launch, tasks_per_node
from .script import count_gpus

PROCESSES = "MINIMOE_PROCESSES_PER_TASK"
_POLL_SECONDS = 0.05
_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


def processes_per_task(environ: Mapping[str, str]) -> int:
    """Returns the ranks of one task: as set, else one for each GPU of a task alone on its node.

    Raises:
        UserError: the variable is no number, or several tasks of a node want several ranks each.
    """
    is_alone = environ.get("SLURM_NTASKS_PER_NODE") == "1" or _tasks_here(environ) == 1
    text = environ.get(PROCESSES) or (_gpus_per_node(environ) if is_alone else "1")
    if not is_whole_number(text) or int(text) < 1:
        raise UserError(f"environment: {PROCESSES}={text!r} is no number of at least 1")
    if int(text) > 1 and not is_alone:
        raise UserError(
            f"environment: {PROCESSES}={text} with several tasks a node; give --ntasks-per-node=1, "
            f"or one task per device and {PROCESSES}=1"
        )
    if PROCESSES not in environ and is_alone:
        _refuse_uneven_nodes(int(text), environ)
    return int(text)


def _refuse_uneven_nodes(count: int, environ: Mapping[str, str]) -> None:
    """Refuses nodes of different numbers of GPUs, whose ranks no task could number alone.

    Raises:
        UserError: ``--gpus`` asks for another number than all nodes together would have then.
    """
    total = count_gpus(environ.get("SLURM_GPUS", ""))
    names = ("SLURM_JOB_NUM_NODES", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")  # one task a node
    nodes = next((int(environ[name]) for name in names if environ.get(name)), 1)
    if total and total != count * nodes:
        raise UserError(
            f"environment: {total} GPUs (--gpus) are not {count} on each of {nodes} nodes; give "
            "--gpus-per-node, or one task per GPU (--ntasks-per-node and --gpus-per-task)"
        )


def _gpus_per_node(environ: Mapping[str, str]) -> str:
    """Returns the number of GPUs that the job requests ("a100:4" or "4"), else this node's."""
    requested = count_gpus(environ.get("SLURM_GPUS_PER_NODE", ""))
    return str(requested) if requested else environ.get("SLURM_GPUS_ON_NODE") or "1"


def _tasks_here(environ: Mapping[str, str]) -> int:
    """Returns the tasks of this node: of the step, or, around it, of the job's steps."""
    if "SLURM_STEP_ID" in environ:
        return detect_launch(environ).local_world_size
    counts = tasks_per_node(environ.get("SLURM_TASKS_PER_NODE", ""))
    return counts[0] if counts else 1  # the batch script runs on the first node


def variables_of_rank(task: Launch, index: int, count: int) -> dict[str, str]:
    """Returns torchrun's variables for one of a task's ranks.

    Args:
        task: the task's own launch; one task a node.
        index: index of the rank in the task, from 0.
        count: number of ranks of every task.
    """
    return {
        "RANK": str(task.rank * count + index),
        "WORLD_SIZE": str(task.world_size * count),
        "LOCAL_RANK": str(index),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": task.master_addr,
        "MASTER_PORT": str(task.master_port),
    }


def main(arguments: Sequence[str]) -> int:
    """Runs ``python -m minimoe_dist`` with the arguments, here or in several children."""
    try:
        count = processes_per_task(os.environ)
        task = detect_launch(os.environ)
    except UserError as error:
        if os.environ.get("SLURM_PROCID", "0") == "0":
            print(f"minimoe-dist: {error}", file=sys.stderr)
        return ExitStatus.REFUSED
    if count == 1:
        sys.argv = ["minimoe-dist", *arguments]
        runpy.run_module("minimoe_dist", run_name="__main__", alter_sys=True)
        return 0
    return _run_children(arguments, [variables_of_rank(task, i, count) for i in range(count)])


def _run_children(arguments: Sequence[str], variables: Sequence[Mapping[str, str]]) -> int:
    """Starts the ranks and waits for all; one that fails ends the others.

    Returns:
        0 where all end well, else the status of the first one that did not.
    """
    command = [sys.executable, "-m", "minimoe_dist", *arguments]
    children: list[subprocess.Popen[bytes]] = []

    def forward_signal(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    for number in _SIGNALS:
        signal.signal(number, forward_signal)
    for rank_variables in variables:
        children.append(subprocess.Popen(command, env={**os.environ, **rank_variables}))
    first_failure = 0
    running = list(children)
    while running:
        time.sleep(_POLL_SECONDS)
        ended = [child for child in running if child.poll() is not None]
        running = [child for child in running if child not in ended]
        for child in ended:
            if child.returncode and not first_failure:
                status: int = child.returncode
                first_failure = status if status > 0 else 128 - status
                # One that has saved ends by itself, and the others with it.
                for sibling in running if first_failure != ExitStatus.STOPPED else ():
                    sibling.terminate()
    return first_failure


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
