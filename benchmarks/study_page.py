"""The study's numbers as a picture and a table for docs/results.md; started by study.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMPARED = ("dense_3l_192h", "dense_4l_192h", "moe_1_4")


def grouped(results: Mapping[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(stage, student) -> its runs, one a seed."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for student in results["students"]:
        stage = student["run"].rpartition("/")[2]
        groups.setdefault((stage, student["name"]), []).append(student)
    return groups


def against_plain(student: Mapping[str, Any], results: Mapping[str, Any]) -> float | None:
    """Loss relative to the plain student of its size and seed, of the same stage if it has one.

    None for plain students themselves.
    """
    size, stage = student["student"].split()[1], student["run"].rpartition("/")[2]
    if student["student"].startswith("MiniLM"):
        return None
    plain = [
        one
        for one in results["students"]
        if one["seed"] == student["seed"] and one["student"] == f"MiniLM {size}"
    ]
    plain.sort(key=lambda one: one["run"].rpartition("/")[2] != stage)
    return float(student["heldout_loss"] / plain[0]["heldout_loss"] - 1)


def table(results: Mapping[str, Any]) -> str:
    """The numbers of the page, as Markdown."""
    seconds = {row["student"]: row for row in results["costs"]}
    lines = [
        "| stage | student | GMAC | parameters | held-out loss, a number a seed | against plain | "
        "step, CPU s | inference, CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (stage, name), runs in grouped(results).items():
        first, cost = runs[0], seconds[cost_key(runs[0]["student"])]
        losses = ", ".join(f"{run['heldout_loss']:.4f}" for run in runs)
        changes = [against_plain(run, results) for run in runs]
        shown = ", ".join("" if change is None else f"{change:+.1%}" for change in changes)
        lines.append(
            f"| {stage} | `{name}`: {first['student']} | {first['student_gmac']:.2f} | "
            f"{first['student_parameters'] / 1e6:.1f} M | {losses} | {shown.strip(', ')} | "
            f"{cost['step']:.2f} | {cost['inference']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def cost_key(words: str) -> str:
    """Of "MiniMoE 3L;192H 1,4E": "3L;192H 1,4"."""
    _, size, *experts = words.split()
    return f"{size} {experts[0].rstrip('E') if experts else '1,1'}"


def draw(results: Mapping[str, Any], target: Path) -> None:
    """Curves of the main comparison, every student's loss, and loss against compute."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 13), layout="constrained")
    panels = figure.subplots(3, 2)
    groups = grouped(results)
    for (curves, gains), stage in zip(panels, ("ladder", "steps_1000"), strict=False):
        draw_curves(curves, gains, groups, stage)
    draw_dots(panels[2, 0], groups)
    draw_sizes(panels[2, 1], groups)
    for axes in (*panels[:2].flat, panels[2, 1]):
        axes.legend()
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    figure.savefig(target, dpi=100)


def draw_curves(
    curves: Any, gains: Any, groups: Mapping[tuple[str, str], list[dict[str, Any]]], stage: str
) -> None:
    """The main comparison in a stage: losses in training, and held-out ones against plain."""
    plain = {run["seed"]: run["heldout_curve"] for run in groups[(stage, COMPARED[0])]}
    for index, name in enumerate(COMPARED):
        for number, run in enumerate(groups[(stage, name)]):
            style = {"color": f"C{index}", "alpha": 0.8, "label": None if number else name}
            curves.plot(*zip(*run["training_curve"], strict=True), **style)
            pairs = zip(run["heldout_curve"], plain[run["seed"]], strict=True)
            points = [(step, 100 * (loss / base - 1)) for (step, loss), (_, base) in pairs]
            gains.plot(*zip(*points, strict=True), "o-", **style)
    curves.set(title=f"{stage}: training, a line a seed", xlabel="step", ylabel="relation loss")
    title = f"{stage}: held-out loss against {COMPARED[0]}"
    gains.set(title=title, xlabel="step", ylabel="%")


def draw_dots(axes: Any, groups: Mapping[tuple[str, str], list[dict[str, Any]]]) -> None:
    stages = list(dict.fromkeys(stage for stage, _ in groups if stage != "sizes"))
    rows = [key for key in groups if key[0] in stages]
    for row, key in enumerate(rows):
        losses = [run["heldout_loss"] for run in groups[key]]
        axes.plot(losses, [row] * len(losses), "o", color=f"C{stages.index(key[0])}", alpha=0.7)
    axes.set(title="held-out relation loss", yticks=range(len(rows)))
    axes.set_yticklabels([f"{stage}: {name}" for stage, name in rows])
    axes.invert_yaxis()


def draw_sizes(axes: Any, groups: Mapping[tuple[str, str], list[dict[str, Any]]]) -> None:
    runs = [
        runs[0]
        for (stage, name), runs in groups.items()
        if stage in ("ladder", "sizes") and name.startswith(("dense", "moe_1_4"))
    ]
    kinds = (("MiniLM", "C0", "plain", 6), ("MiniMoE", "C2", "4 feed-forward experts", -12))
    for words, color, label, above in kinds:
        chosen = {run["student"]: run for run in reversed(runs) if run["student"].startswith(words)}
        places = [(run["student_gmac"], run["heldout_loss"]) for run in chosen.values()]
        axes.plot(*zip(*places, strict=True), "o", color=color, label=label, alpha=0.7)
        for name, place in zip(chosen, places, strict=True):
            axes.annotate(
                name.split()[1], place, (0, above), textcoords="offset points",
                fontsize=8, ha="center", color=color,
            )  # fmt: skip
    axes.margins(0.12)
    axes.set(title="held-out loss against compute, seed 776", xlabel="GMAC of a sequence of 128")
