"""``minimoe-dist report``: writes an HTML page, and its numbers as JSON, about runs."""

import time
from datetime import timedelta
from pathlib import Path

from ..config.commands import ReportOptions
from ..config.paths import check_output_dir
from ..durable import write_json, write_text
from ..errors import UserError
from ..reporting.facts import collect
from ..reporting.page import render
from ..reporting.runs import read_runs
from ..runtime import Launch, logger
from ..slurm.reports import RunReport, report, runs_below

_log = logger("report")


def run(options: ReportOptions, launch: Launch) -> int:
    """Reads the runs and writes the page and its JSON; with ``--watch`` again and again.

    Returns:
        0.

    Raises:
        UserError: a path holds no run, or a file of a run is not readable.
    """
    page = Path(options.output)
    if page.suffix != ".html":
        raise UserError(f"--output: {page} is no .html file; give a name that ends in .html")
    check_output_dir(str(page.parent))
    page.parent.mkdir(parents=True, exist_ok=True)
    if options.watch is None:
        _write(options, page, [])
        _log.info("page in %s, its numbers in %s", page, page.with_suffix(".json"))
        return 0
    missing = [path for path in options.runs if not Path(path).exists()]
    if missing:
        raise UserError(f"{missing[0]}: no such folder: give the output_dir of a run")
    _watch(options, page, options.watch)
    return 0


def _watch(options: ReportOptions, page: Path, seconds: int) -> None:
    """Writes the page until all runs are over; what cannot be read yet is tried again."""
    _log.info("page in %s, anew every %d s until all runs are over; Ctrl-C ends it", page, seconds)
    told = None
    while True:
        states = [report(folder) for path in options.runs for folder in runs_below(Path(path))]
        is_over = bool(states) and all(state.state == "finished" for state in states)
        try:
            _write(options, page, [] if is_over else states)
            told = None
        except UserError as error:
            if is_over:
                raise
            if str(error) != told:
                _log.info("not yet: %s", error)
            told = str(error)
        if is_over:
            _log.info("all runs are over")
            return
        time.sleep(seconds)


def _write(options: ReportOptions, page: Path, states: list[RunReport]) -> None:
    runs = read_runs(options.runs)
    facts = collect(runs)
    names = ", ".join(run.name for run in runs)
    title = options.title or (names if len(names) <= 80 else f"{len(runs)} runs")
    lines = [_in_words(state) for state in states]
    write_text(page, render(facts, title, lines, options.watch if states else None))
    write_json(page.with_suffix(".json"), facts)


def _in_words(state: RunReport) -> str:
    """Says how far a run is: "minimoe: running, step 740 of 900, 0:03:09 left"."""
    parts = [state.state]
    if state.cells is None:
        total = f" of {state.total_steps:,}" if state.total_steps else ""
        parts.append(f"step {state.step:,}{total}")
    else:
        parts.append(f"{state.cells.done} cells done")
    if state.state == "running" and state.seconds_left:
        parts.append(f"{timedelta(seconds=state.seconds_left)} left")
    return f"{Path(state.folder).name}: {', '.join(parts)}"
