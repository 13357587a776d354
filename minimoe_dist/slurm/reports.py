"""Reports how far a run is, from its starts, metrics, checkpoints, summary and submission."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..exit_status import ExitStatus
from ..runs.checkpoints import FINISHED, SavedFacts, SavedState, newest_state, saved_step
from ..runs.folder import RunFolder
from ..runs.health import conditions
from ..runs.launches import Start, read_starts
from ..runs.metrics import SavedMetrics
from ..runs.starts import Event, read_events
from ..runs.submissions import Submission, last_submission
from ..runs.summaries import Summary
from ..runs.tuning import CellResult, TuningResults, finished_cells
from .queue import Job, find_job

_TAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """The newest saved state; ``age`` is in seconds."""

    step: int
    path: str
    age: int


@dataclass(frozen=True)
class Cells:
    """How far a fine-tuning is.

    Attributes:
        done: cells of the grid that have a result.
        total: None before its end.
        best: the best of their scores; None without any.
        metric: of it, where it is known.
    """

    done: int
    total: int | None
    best: float | None
    metric: str | None


@dataclass(frozen=True)
class RunReport:
    """The state of one run; a field is None where it is not known.

    Attributes:
        detail: explanation of the state.
        seconds_left: seconds to the last step, at the last rate.
        losses: last losses of students; those of the last evaluation as "NAME held-out".
        restarts: number of restarts of the newest job; without a job, of the run.
        starts: every start, where, and how it ended; oldest first.
        log: log file of that job.
        health: what is wrong still, in words.
        cells: of a fine-tuning.
    """

    folder: str
    run_id: str | None
    state: str
    detail: str
    step: int
    total_steps: int | None
    steps_per_second: float | None
    sequences_per_second: float | None
    seconds_left: int | None
    losses: dict[str, float | None]
    restarts: int
    starts: list[str]
    checkpoint: Checkpoint | None
    job: Job | None
    log: str | None
    health: list[str]
    cells: Cells | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns all fields as JSON."""
        return asdict(self)


def runs_below(folder: Path) -> list[Path]:
    """Lists the folders of runs: those of the folder's stages, or itself."""
    below = sorted(path for path in folder.glob("*") if path.is_dir() and _is_run(path))
    return below or ([folder] if _is_run(folder) else [])


def _is_run(folder: Path) -> bool:
    run = RunFolder(folder)
    files = (run.metrics, run.checkpoints, run.submissions, run.starts)
    return any(path.exists() for path in files)


def report(folder: Path) -> RunReport:
    """Reports on the run in a folder."""
    events, submission = _events(folder), _submission(folder)
    started = [event for event in events if event.event == "start"]
    number = _newest_job(started, submission)
    job = find_job(number) if number else None
    starts = read_starts(folder) or read_starts(folder.parent)
    state, detail = _state(folder, events, job)
    saved = newest_state(folder)
    facts = saved.facts if saved else SavedFacts()
    plan = _plan(started, folder)
    run = RunFolder(folder)
    metrics, summary = SavedMetrics.find(run.metrics, _TAIL_BYTES), Summary.find(run.summary)
    results = TuningResults.find(run.results)
    cells = _finished_cells(run, results)
    total = facts.total_steps or plan.total_steps or (summary.steps if summary else None)
    trained = metrics.trained[-1] if metrics.trained else None
    step = max(trained.step if trained else 0, saved.step if saved else 0)
    sequences = trained.sequences_per_second if trained else None
    batch = facts.global_batch_size or plan.global_batch_size
    rate = sequences / batch if sequences and batch else None
    return RunReport(
        folder=str(folder),
        run_id=started[-1].run_id if started else None,
        state=state,
        detail=detail,
        step=step,
        total_steps=total,
        steps_per_second=rate,
        sequences_per_second=sequences,
        seconds_left=round((total - step) / rate) if total and rate else None,
        losses=_losses(metrics),
        restarts=_restarts(started, starts, number),
        starts=[start.describe() for start in starts],
        checkpoint=_checkpoint(saved) if saved else None,
        job=job,
        log=submission.log if submission and submission.job == number else None,
        health=[
            words
            for condition, words in [
                *((condition, condition.describe()) for condition in conditions(metrics.health)),
                *(told for cell in cells for told in cell.told()),
            ]
            if condition.ended is None
        ],
        cells=_cells(cells, results) if results or run.cells.is_dir() else None,
    )


def _finished_cells(run: RunFolder, results: TuningResults | None) -> list[CellResult]:
    try:
        return finished_cells(run)
    except UserError:  # of a damaged file the fine-tuning itself tells
        return list(results.cells) if results else []


def _cells(done: Sequence[CellResult], results: TuningResults | None) -> Cells:
    scores = [cell.score for cell in done if cell.score is not None]
    return Cells(
        len(done),
        len(results.cells) if results else None,
        max(scores, default=None),
        results.metric if results else None,
    )


def newest_job(folder: Path) -> str | None:
    """Returns the job of a run's last start or of its last submission, whichever came later."""
    started = [event for event in _events(folder) if event.event == "start"]
    return _newest_job(started, _submission(folder))


def _newest_job(started: Sequence[Event], submission: Submission | None) -> str | None:
    if submission and (not started or submission.time > started[-1].time):
        return submission.job
    return started[-1].job if started else None


def _events(folder: Path) -> list[Event]:
    """Reads the events of the run, or of the chain that it is a stage of."""
    return read_events(folder) or read_events(folder.parent)


def _submission(folder: Path) -> Submission | None:
    return last_submission(folder) or last_submission(folder.parent)


def _state(folder: Path, events: Sequence[Event], job: Job | None) -> tuple[str, str]:
    """Returns the name of a run's state, and its explanation."""
    if job is not None and job.is_alive:
        names = {"PENDING": "waiting", "RUNNING": "running", "COMPLETING": "ending"}
        return names.get(job.state, job.state.lower()), job.reason
    if saved_step(folder) == FINISHED:
        return "finished", ""
    if _is_locked(folder):
        return "running", "outside Slurm"
    last = events[-1] if events else None
    if last and last.event == "stop":
        return "stopped", f"{last.reason}: look at the log, then submit again"
    if job is not None and job.state not in ("COMPLETED", "FAILED"):
        return job.state.lower(), "submit again to go on"
    if last and last.event == "end" and last.status == ExitStatus.STOPPED:
        return "saved", "submit again to go on"
    if last and last.event == "end":
        return "failed", f"status {last.status}: look at the log, then submit again"
    if job is not None and job.state == "FAILED":
        return "failed", "look at the log, then submit again"
    if last:
        return "lost", "ended without a word; submit again to go on"
    return "not running", ""


def _is_locked(folder: Path) -> bool:
    """Tells whether a run on this machine holds the folder.

    It reads the kernel's list: trying the lock would refuse a run that starts just then.
    """
    endings = []
    for path in (RunFolder(folder).lock, folder):  # the file may have been deleted
        with suppress(OSError):
            endings.append(f":{path.stat().st_ino}")
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return False
    return any(
        "FLOCK" in fields and any(field.endswith(tuple(endings)) for field in fields)
        for fields in locks
    )


def _restarts(started: Sequence[Event], starts: Sequence[Start], job: str | None) -> int:
    if job is None:
        return max(0, len(starts) - 1)
    return sum(1 for event in started if event.job == job and event.restart)


def _checkpoint(saved: SavedState) -> Checkpoint:
    return Checkpoint(saved.step, str(saved.path), round(time.time() - saved.time))


def _losses(metrics: SavedMetrics) -> dict[str, float | None]:
    losses: dict[str, float | None] = {}
    if metrics.evaluated:
        heldout = metrics.evaluated[-1].heldout_loss
        losses |= {f"{name} held-out": loss for name, loss in heldout.items()}
    if metrics.trained:
        losses |= {name: student.loss for name, student in metrics.trained[-1].students.items()}
    return losses


def _plan(started: Sequence[Event], folder: Path) -> SavedFacts:
    """Returns the plan in the last start for the run in `folder`, or for that stage."""
    plans = started[-1].plans if started else {}
    return plans.get(".") or plans.get(folder.name) or SavedFacts()
