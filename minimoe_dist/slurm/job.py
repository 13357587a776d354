"""Runs around a job's srun: ``python -m minimoe_dist.slurm.job begin|end …``.

``slurm/job.sh`` calls it on the job's first node. ``begin`` notes the start in the run's folder and
refuses a run that does not get on; ``end`` reads srun's exit status and requeues the job where
another start may help. Neither imports torch.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from ..config import ConfigError, RunConfig
from ..config.command_line import read_options
from ..config.commands import CommandOptions, DistillOptions, FinetuneOptions, SparsifyOptions
from ..errors import UserError
from ..exit_status import ExitStatus
from ..preflight import distill as preflight_distill
from ..preflight import finetune as preflight_finetune
from ..runs.checkpoints import SavedFacts, progress_of
from ..runs.folder import RunFolder
from ..runs.starts import (
    MOST_RESTARTS_WITHOUT_PROGRESS,
    Event,
    add_event,
    describe_progress,
    read_events,
    restarts_without_progress,
    run_id,
)
from ..runtime import Launch
from .facts import code_version
from .queue import SlurmError, execute, show_job
from .task import processes_per_task

_LOCK_SECONDS = 60.0
_BY_SIGNAL = 128
_RECIPE_COMMANDS = {"distill": DistillOptions, "sparsify": SparsifyOptions}


@dataclass(frozen=True)
class JobRun:
    """The run that a job's command starts.

    Attributes:
        folder: folder of the run.
        stages: stages of its recipe; empty for a fine-tuning.
        check: function that raises ConfigError for what would stop every rank at its start.
    """

    folder: Path
    stages: Sequence[RunConfig]
    check: Callable[[Launch], None]


def open_run(command: str, arguments: Sequence[str]) -> JobRun:
    """Parses a job's command and its arguments into the run that they start.

    Raises:
        ConfigError: the command is not one for jobs, or an argument is wrong.
    """
    if command in _RECIPE_COMMANDS:
        options = read_options(command, _RECIPE_COMMANDS[command], arguments)
        check = partial(preflight_distill.check_run, options)
        return JobRun(run_folder(options.stages), options.stages, check)
    if command != "finetune":
        choices = ", ".join([*_RECIPE_COMMANDS, "finetune"])
        raise ConfigError(f"{command}: not a command for jobs; there are {choices}")
    finetuning = read_options(command, FinetuneOptions, arguments)
    check_finetuning = partial(preflight_finetune.check_run, finetuning)
    return JobRun(Path(finetuning.output_dir), [], check_finetuning)


def run_folder(stages: Sequence[RunConfig]) -> Path:
    """Returns the folder of a run: of its only stage, or the one above all stages."""
    folder = Path(stages[0].output_dir)
    return folder.parent if len(stages) > 1 else folder


def folder_of_run(options: CommandOptions) -> Path:
    """Returns the folder of the run that the options of a command for jobs name."""
    if isinstance(options, FinetuneOptions):
        return Path(options.output_dir)
    assert isinstance(options, DistillOptions)
    return run_folder(options.stages)


def begin(run: JobRun, environ: Mapping[str, str]) -> int:
    """Notes a start; returns 0, or 1 where the run does not get on.

    Raises:
        ConfigError: something would stop every rank at its start.
    """
    folder, ranks = run.folder, ranks_of_job(environ)
    run.check(Launch(0, ranks, 0, 1, "", 0, "slurm"))
    folder.mkdir(parents=True, exist_ok=True)
    job, restart = _start_of(environ)
    events, progress = read_events(folder), progress_of(folder)
    if restart and _is_stuck(folder, job, restart):
        return ExitStatus.FAILED
    if restart:
        _wait_for_former_start(folder)
    nodes = environ.get("SLURM_JOB_NODELIST", "")
    name = run_id(folder, events)
    event = Event(
        event="start",
        job=job,
        restart=restart,
        run_id=name,
        nodes=nodes,
        progress=progress,
        plans=_plans(run, ranks),
        code=code_version(),
    )
    add_event(folder, event)
    _say(
        f"run {name}: job {job}, restart {restart}, on {nodes}, from {describe_progress(progress)}"
    )
    return ExitStatus.DONE


def _plans(run: JobRun, ranks: int) -> dict[str, SavedFacts]:
    """Returns each stage's global batch and, where the recipe says it, number of steps."""
    return {
        Path(stage.output_dir).relative_to(run.folder).as_posix(): SavedFacts(
            global_batch_size=stage.global_batch_size(ranks),
            total_steps=stage.training.max_steps,
        )
        for stage in run.stages
    }


def ranks_of_job(environ: Mapping[str, str]) -> int:
    """Returns the number of ranks that srun will start."""
    tasks = environ.get("SLURM_NTASKS") or environ.get("SLURM_JOB_NUM_NODES", "1")
    return int(tasks) * processes_per_task(environ)


def end(status: int, folder: Path, environ: Mapping[str, str]) -> int:
    """Notes an end, and requeues the job where that may help; returns the job's exit status."""
    job, restart = _start_of(environ)
    progress = progress_of(folder)
    event = Event(event="end", job=job, restart=restart, status=status, progress=progress)
    add_event(folder, event)
    if status == ExitStatus.DONE:
        _say(f"job {job}: done; see minimoe-dist status {folder}")
        return status
    how = "stopped and saved" if status == ExitStatus.STOPPED else f"ended with status {status}"
    if status - _BY_SIGNAL in signal.valid_signals():
        how += f" ({signal.strsignal(status - _BY_SIGNAL)})"
    where = f"job {job}: {how} at {describe_progress(progress)}"
    if status == ExitStatus.REFUSED:
        _say(f"{where}: mend what the line above names and submit again")
        return status
    refusal = _why_not_requeue(job, restart)
    if refusal is not None:
        _say(f"{where}: {refusal}")
        return status
    if _is_stuck(folder, job, restart):
        return ExitStatus.FAILED
    _say(f"{where}: requeued")
    try:
        execute(["scontrol", "requeue", job])
    except SlurmError as error:
        _say(f"{where}: not requeued ({error}); submit again to go on")
    return status


def _is_stuck(folder: Path, job: str, restart: int) -> bool:
    """Tells whether the last restarts made no progress; prints and records it then."""
    progress, most = progress_of(folder), MOST_RESTARTS_WITHOUT_PROGRESS
    if restarts_without_progress(read_events(folder), job, progress) < most:
        return False
    reason = f"{most} restarts without progress at {describe_progress(progress)}"
    add_event(folder, Event(event="stop", job=job, restart=restart, reason=reason))
    _say(f"job {job}: stopped after {reason}: look at the errors above, then submit again")
    return True


def _why_not_requeue(job: str, restart: int) -> str | None:
    """Returns why a job is not requeued: it was cancelled, or Slurm did it already; else None."""
    try:
        record = show_job(job)
    except SlurmError as error:
        return f"not requeued ({error}); submit again to go on"
    if record.get("Restarts", str(restart)) != str(restart):
        return "Slurm requeued it already"
    if record.get("JobState") != "RUNNING":
        return f"not requeued (it is {record.get('JobState')}); submit again to go on"
    if record.get("Requeue") == "0":
        return "not requeued (submitted with --no-requeue); submit again to go on"
    return None


def _wait_for_former_start(folder: Path) -> None:
    """Waits for a start that Slurm has given up, but that still saves."""
    with ExitStack() as stack:
        for path in RunFolder.locks(folder):
            try:
                stack.enter_context(FileLock(path).acquire(timeout=_LOCK_SECONDS))
            except Timeout:
                _say(f"{path}: still held by another run after {_LOCK_SECONDS:g} s")


def _start_of(environ: Mapping[str, str]) -> tuple[str, int]:
    if "SLURM_JOB_ID" not in environ:
        raise ConfigError("environment: no SLURM_JOB_ID; this runs inside a job only")
    return environ["SLURM_JOB_ID"], int(environ.get("SLURM_RESTART_COUNT", "0"))


def _say(message: str) -> None:
    print(f"minimoe-dist: {message}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Runs ``begin COMMAND …`` or ``end STATUS COMMAND …``; returns the exit status."""
    action, *rest = arguments
    command, *options = rest if action == "begin" else rest[1:]
    try:
        run = open_run(command, options)
        if action == "begin":
            return begin(run, os.environ)
        return end(int(rest[0]), run.folder, os.environ)
    except (UserError, OSError) as error:
        print(f"minimoe-dist: {error}", file=sys.stderr)
        return ExitStatus.REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
