"""``minimoe-dist status RUN``: shows how far a run is, or each stage of a chain."""

import json
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..config import ConfigError
from ..config.commands import StatusOptions
from ..runtime import Launch
from ..slurm.queue import Job
from ..slurm.reports import Cells, RunReport, report, runs_below

_WIDTH = 160  # where there is no terminal
_NAMES_WIDTH, _COLUMN_WIDTH = 19, 35  # of a table with a run a column, at least
_MOST_IN_DETAIL = 6
_MOST_STARTS = 5  # the last ones; --json has all


def run(options: StatusOptions, launch: Launch) -> int:
    """Prints a table, or a list of objects as JSON.

    Raises:
        ConfigError: the folder holds no run.
    """
    folder = Path(options.run).expanduser()
    reports = [report(path) for path in runs_below(folder)]
    if not reports:
        raise ConfigError(f"{options.run}: no run in it; give the output_dir of one")
    if options.json_:
        print(json.dumps([run_report.as_json() for run_report in reports], indent=1))
    else:
        _show(reports, folder)
    return 0


def _show(reports: Sequence[RunReport], folder: Path) -> None:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # It is read by programs or kept: do not wrap at 80 columns.
        console = Console(width=_WIDTH)
    if len(reports) > _MOST_IN_DETAIL:
        console.print(_overview(reports))
        return
    # Side by side where there is room, else one below the other.
    fits = _NAMES_WIDTH + _COLUMN_WIDTH * len(reports) <= console.width
    for together in [reports] if fits else [[each] for each in reports]:
        console.print(_table(together, named=len(reports) > 1))


def _table(reports: Sequence[RunReport], *, named: bool) -> Table:
    """Makes a table of runs in columns."""
    table = Table(show_header=named)
    table.add_column("")
    for run_report in reports:
        table.add_column(Path(run_report.folder).name, overflow="fold")
    columns = [_column(run_report) for run_report in reports]
    for name in columns[0]:
        if any(column[name] for column in columns):
            table.add_row(name, *(column[name] for column in columns))
    return table


def _overview(reports: Sequence[RunReport]) -> Table:
    """Makes a table of many runs, a row each."""
    table = Table()
    table.add_column("run", overflow="fold")
    for head in ("state", "step", "left", "best, or last losses"):
        table.add_column(head)
    for run_report in reports:
        column = _column(run_report)
        table.add_row(
            Path(run_report.folder).name,
            column["state"],
            column["cells"] or column["step"],
            column["time left"],
            column["best"] or column["loss"],
        )
    return table


def _column(run: RunReport) -> dict[str, str]:
    """Formats the values of one run, by name."""
    checkpoint, job = run.checkpoint, run.job
    is_running = run.state == "running"
    return {
        "run": run.run_id or "",
        "state": run.state + (f": {run.detail}" if run.detail else ""),
        "step": "" if run.cells else _of(run.step, run.total_steps),
        "cells": f"{_of(run.cells.done, run.cells.total)} done" if run.cells else "",
        "best": _best(run.cells) if run.cells else "",
        "rate": _rate(run),
        "time left": _clock(run.seconds_left) if is_running else "",
        "loss": ", ".join(f"{name} {_number(loss)}" for name, loss in run.losses.items()),
        "wrong": _wrong(run),
        "last checkpoint": f"step {checkpoint.step}, {_clock(checkpoint.age)} ago"
        if checkpoint
        else ("" if run.cells else "none"),
        "restarts": str(run.restarts),
        "starts": "\n".join(run.starts[-_MOST_STARTS:]),
        "job": _job(job) if job else "",
        "log": run.log or "",
        "folder": run.folder,
    }


def _of(count: int, total: int | None) -> str:
    return f"{count}" + (f" of {total}" if total else "")


def _best(cells: Cells) -> str:
    return "" if cells.best is None else f"{cells.metric or 'score'} {cells.best:.4f}"


def _wrong(run: RunReport) -> str:
    more = f"; and {len(run.health) - 1:,} more" if len(run.health) > 1 else ""
    return f"{run.health[0]}{more}" if run.health else ""


def _rate(run: RunReport) -> str:
    if run.sequences_per_second is None:
        return ""
    steps = run.steps_per_second
    prefix = "" if steps is None else f"{steps:.3g} steps/s, "
    return f"{prefix}{run.sequences_per_second:.4g} sequences/s"


def _job(job: Job) -> str:
    parts = [f"{job.number} {job.state}"]
    if job.nodes:
        parts.append(f"on {job.nodes}")
    if job.state == "RUNNING" and job.time_left:
        parts.append(f"{job.time_left} to its limit")
    if job.state == "PENDING" and job.start:
        parts.append(f"may start {job.start}")
    return ", ".join(parts)


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


def _number(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4g}"
