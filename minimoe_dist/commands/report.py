"""``minimoe-dist report``: writes an HTML page, and its numbers as JSON, about runs."""

from pathlib import Path

from ..config.commands import ReportOptions
from ..config.paths import check_output_dir
from ..durable import write_json, write_text
from ..errors import UserError
from ..reporting.facts import collect
from ..reporting.page import render
from ..reporting.runs import read_runs
from ..runtime import Launch, logger

_log = logger("report")


def run(options: ReportOptions, launch: Launch) -> int:
    """Reads the runs and writes the page and its JSON.

    Returns:
        0.

    Raises:
        UserError: a path holds no run, or a file of a run is not readable.
    """
    page = Path(options.output)
    if page.suffix != ".html":
        raise UserError(f"--output: {page} is no .html file; give a name that ends in .html")
    check_output_dir(str(page.parent))
    runs = read_runs(options.runs)
    facts = collect(runs)
    names = ", ".join(run.name for run in runs)
    title = options.title or (names if len(names) <= 80 else f"{len(runs)} runs")
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, render(facts, title))
    numbers = page.with_suffix(".json")
    write_json(numbers, facts)
    _log.info("page in %s, its numbers in %s", page, numbers)
    return 0
