"""The trial's page: docs/reliability.md, with its numbers and picture in docs/results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minimoe_dist.durable import write_json, write_text

from .goals import rows
from .kills import GONE_SECONDS

TEMPLATE = Path(__file__).with_name("page_template.md")
NUMBERS, PICTURE, PAGE = "results/reliability.json", "results/reliability.png", "reliability.md"


def write(results: Mapping[str, Any], folder: Path) -> Path:
    """Writes page, numbers and picture; returns the page's path."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    write_json(folder / NUMBERS, results)
    draw(results, folder / PICTURE)
    write_text(folder / PAGE, text(results))
    return folder / PAGE


def table(results: Mapping[str, Any]) -> str:
    """What was measured against its goals, as Markdown."""
    lines = ["| what | goal | measured | verdict |", "|---|---|---|---|"]
    for row in rows(results):
        verdict = f"**{row.verdict}**" if row.verdict == "missed" else row.verdict
        lines.append(f"| {row.what} | {row.goal} | {row.measured} | {verdict} |")
    return "\n".join(lines) + "\n"


def inputs_table(results: Mapping[str, Any]) -> str:
    """The bad inputs and how each was refused, as Markdown."""
    tried = results.get("inputs", {}).get("inputs", [])
    lines = ["| input | command | seconds | refused |", "|---|---|---|---|"]
    lines += [
        f"| {one['name']} | `{one['command']}` | {one['seconds']:.1f} | "
        f"{one['problem'] or 'clearly'} |"
        for one in tried
    ]
    return "\n".join(lines) + "\n"


def text(results: Mapping[str, Any]) -> str:
    """The whole page."""
    return TEMPLATE.read_text("utf-8").format(
        **results["facts"],
        table=table(results),
        kills=_kills(results),
        inputs=inputs_table(results),
        picture=PICTURE,
        numbers=NUMBERS,
        note=results.get("note", ""),
    )


def _kills(results: Mapping[str, Any]) -> str:
    victims = results.get("kills", {}).get("victims", {})
    words = "Kills of training hit one rank or all, at start-up, in steps, in saves and at exports"
    if victims:
        words += f" ({', '.join(f'{name}: {count}' for name, count in sorted(victims.items()))})"
    return f"{words}; a survivor is ended by the trial after {GONE_SECONDS:.0f} s."


def draw(results: Mapping[str, Any], target: Path) -> None:
    """Times until others are gone, starts and restarts, memory over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    gone, starts, memory = figure.subplots(1, 3)
    seconds = results.get("kills", {}).get("others_gone", [])
    gone.hist(seconds, bins=30, color="C0")
    gone.set(title="one rank killed: the other is gone", xlabel="seconds", ylabel="kills")
    figures = results.get("starts", {})
    kinds = {"clean": "clean start", "restart": "restart", "forked": "restart, imported"}
    for place, (name, label) in enumerate(kinds.items()):
        times = figures.get(name, [])
        starts.plot(times, [place] * len(times), "o", alpha=0.7, color=f"C{place}", label=label)
    starts.set(title="to the first new step, two ranks", xlabel="seconds", yticks=range(3))
    starts.set_yticklabels(kinds.values())
    starts.set_xlim(left=0)
    starts.set_ylim(2.5, -0.5)
    for number, rank in enumerate(results.get("endurance", {}).get("ranks", [])):
        memory.plot(*zip(*rank["curve"], strict=True), label=f"rank {number}")
    memory.set(title="resident memory", xlabel="step", ylabel="KiB")
    if memory.lines:
        memory.set_ylim(0, 1.3 * memory.dataLim.ymax)
        memory.legend()
    for axes in (gone, starts, memory):
        axes.grid(alpha=0.3)
    figure.savefig(target, dpi=100)
