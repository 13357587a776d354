"""``minimoe-dist report``: writes an HTML page, and its numbers as JSON, about runs."""

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from ..config.commands import ReportOptions
from ..config.paths import check_output_dir
from ..durable import write_json, write_text
from ..errors import UserError
from ..reporting.facts import collect
from ..reporting.page import render
from ..reporting.runs import Run, read_runs
from ..runs.launches import read_starts
from ..runtime import Launch, logger
from ..slurm.reports import RunReport, report

_STILL_SECONDS = 120.0  # before a run that neither works nor has finished counts as over
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
        _write(options, page, read_runs(options.runs), [])
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
    told, watch = None, _Watch()
    while True:
        try:
            runs = read_runs(options.runs)
            states = [report(run.folder.path) for run in runs if not _is_evaluation(run)]
            is_over = watch.is_over(options.runs, states, time.monotonic())
            _write(options, page, runs, [] if is_over else states)
            told = None
            if is_over:
                _log.info("all runs are over")
                return
        except UserError as error:
            if str(error) != told:
                _log.info("not yet: %s", error)
            told = str(error)
        time.sleep(seconds)


def _is_evaluation(run: Run) -> bool:
    """Whether there is nothing of a run but its evaluation, behind which nothing comes."""
    is_trained = run.summary or run.results or run.metrics.trained or run.metrics.evaluated
    return bool(run.evaluations) and not is_trained


class _Watch:
    """Knows when there is nothing more to come of some runs."""

    def __init__(self) -> None:
        self._still_since: dict[str, float] = {}

    def is_over(self, paths: Sequence[str], states: Sequence[RunReport], now: float) -> bool:
        """Returns whether all runs have finished, or ended otherwise and stayed so for a while.

        What was never started is waited for, and so is a chain between two of its stages.
        """
        return not any(self._is_to_come(state, now) for state in states) and not any(
            _is_chain_under_way(Path(path), states) for path in paths
        )

    def _is_to_come(self, run: RunReport, now: float) -> bool:
        if run.state == "finished":
            return False
        is_alive = run.state == "running" or (run.job is not None and run.job.is_alive)
        if is_alive or not run.starts:
            self._still_since.pop(run.folder, None)
            return True
        return now - self._still_since.setdefault(run.folder, now) < _STILL_SECONDS


def _is_chain_under_way(folder: Path, states: Sequence[RunReport]) -> bool:
    """Whether the folder is that of several runs, one process of which has not ended yet."""
    if any(Path(state.folder) == folder for state in states):
        return False
    starts = read_starts(folder) if folder.is_dir() else []
    return bool(starts) and starts[-1].leave is None


def _write(
    options: ReportOptions, page: Path, runs: Sequence[Run], states: Sequence[RunReport]
) -> None:
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
