"""``minimoe-dist status RUN``: how far a run is, or each stage of a chain."""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..config import ConfigError
from ..config.commands import StatusOptions
from ..runtime import Launch
from ..slurm.queue import Job
from ..slurm.reports import RunReport, report, runs_below

_WIDTH = 160


def run(options: StatusOptions, launch: Launch) -> int:
    """Prints a table, or a list of objects as JSON.

    Raises:
        ConfigError: the folder is of no run.
    """
    folder = Path(options.run).expanduser()
    found = [report(one) for one in runs_below(folder)]
    if not found:
        raise ConfigError(f"{options.run}: no run in it; give the output_dir of one")
    if options.json_:
        print(json.dumps([one.as_json() for one in found], indent=1))
    else:
        _show(found, folder)
    return 0


def _show(found: Sequence[RunReport], folder: Path) -> None:
    table = Table(show_header=len(found) > 1)
    table.add_column("")
    for one in found:
        table.add_column(Path(one.folder).name, overflow="fold")
    columns = [_column(one) for one in found]
    for name in columns[0]:
        if any(column[name] for column in columns):
            table.add_row(name, *(column[name] for column in columns))
    console = Console()
    # Elsewhere than on a terminal it is read by programs or kept: do not wrap at 80 columns.
    Console(width=None if console.is_terminal else _WIDTH).print(table)


def _column(one: RunReport) -> dict[str, str]:
    """The words for one run."""
    saved, job = one.checkpoint, one.job
    is_running = one.state == "running"
    return {
        "run": one.run_id or "",
        "state": one.state + (f": {one.detail}" if one.detail else ""),
        "step": f"{one.step}" + (f" of {one.total_steps}" if one.total_steps else ""),
        "rate": _rate(one),
        "time left": _clock(one.seconds_left) if is_running else "",
        "loss": ", ".join(f"{name} {_number(loss)}" for name, loss in one.losses.items()),
        "last checkpoint": f"step {saved.step}, {_clock(saved.age)} ago" if saved else "none",
        "restarts": str(one.restarts),
        "job": _job(job) if job else "",
        "log": one.log or "",
        "folder": one.folder,
    }


def _rate(one: RunReport) -> str:
    if one.sequences_per_second is None:
        return ""
    steps = one.steps_per_second
    told = "" if steps is None else f"{steps:.3g} steps/s, "
    return f"{told}{one.sequences_per_second:.4g} sequences/s"


def _job(job: Job) -> str:
    words = [f"{job.number} {job.state}"]
    if job.nodes:
        words.append(f"on {job.nodes}")
    if job.state == "RUNNING" and job.time_left:
        words.append(f"{job.time_left} to its limit")
    if job.state == "PENDING" and job.start:
        words.append(f"may start {job.start}")
    return ", ".join(words)


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


def _number(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4g}"
