"""Table and picture of the study."""

import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .gathering import learnt_tasks, shares

COLORS = {"plain": "#4878a8", "control": "#8a8a8a", "minimoe": "#d0743c", "wide": "#8a6cae"}
# What goes on from a narrow student: the end of its run's name, words, color.
_GOING_ON = (
    ("more", "plain", COLORS["plain"]),
    ("experts", "copies", COLORS["minimoe"]),
    ("clusters", "copies on clusters", "#7a9a3c"),
)


def write(found: Mapping[str, Any], folder: Path) -> None:
    """Writes numbers and pictures into a folder, and prints the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scores.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, path.with_suffix(".png"))
    print(table(found), table_again(found), sep="\n")
    for part, draw_part in (
        ("best", draw_best),
        ("labelled", draw_best),
        ("narrow", draw_narrow),
        ("gap", draw_best),
        ("gap_again", draw_best),
    ):
        if part in found:
            draw_part(found[part], folder / f"{part}_scores.png")
            print(table(found[part]), table_again(found[part], above_chance=False), sep="\n")
    draw_room(found, folder / "gap_room.png")


def models(found: Mapping[str, Any]) -> list[str]:
    """All with scores, the teacher first; a student's taught form behind its other one."""
    return [name for name in found["scores"] if name != "teacher"]


# How students began, and what they learnt, behind the number of their steps and the teacher.
_STARTS = {
    "teacher": " from its weights on",
    "teacher, last states": " from its weights on, with its last states",
    "student, last states": " more behind these, without dropout",
    "copies, last states": " as copies of these, without dropout",
    "clusters, last states": " as copies of these on clusters of tokens, without dropout",
}


def words_of(found: Mapping[str, Any], model: str) -> str:
    """A model in words."""
    if model == "teacher":
        return "teacher 6L;384H"
    if model == "teacher_large":
        return "teacher 12L;768H"
    if model.startswith("untaught"):
        return "plain, not distilled"
    name, _, taught = model.partition(" ")
    student = next(one for one in found["students"] if one["model"] == name)
    said = _words_of_student(student)
    first, _, assistant = student["teacher"].partition("/")
    teacher = {"small": "6L", "large": "12L"}[first.partition("_")[0]]
    if assistant:
        teacher = f"an assistant of {teacher}"
    start = _STARTS.get(student.get("start", ""), "")
    how = ", fine-tuned with the teacher" if taught else ""
    if taught and "unlabelled" in found["setup"]:
        how += " and texts without labels"
    return f"{said}, {student['steps']:,} steps by {teacher}{start}{how}"


def table(found: Mapping[str, Any]) -> str:
    """Scores as Markdown: mean and deviation by task, shares of the teacher's over all tasks."""
    tasks, learnt = found["tasks"], learnt_tasks(found)
    heads = [
        f"{name}{'' if name in learnt else ' (no share)'}, {facts['metric']}"
        for name, facts in tasks.items()
    ]
    lines = [
        f"| model | held-out loss | {' | '.join(heads)} | of the teacher's score | above chance |",
        "|---" * (4 + len(heads)) + "|",
    ]
    chances = " | ".join(f"{100 * facts['chance']:.1f}" for facts in tasks.values())
    lines.append(f"| always the same | | {chances} | | 0% |")
    for model in ("teacher", *models(found)):
        cells = [_score(found["scores"].get(model, {}).get(task)) for task in tasks]
        losses = [
            f"{one['heldout_loss']:.4f}"
            for one in found["students"]
            if one["model"] == model and one["heldout_loss"] is not None
        ]
        both = [_share(shares(found, model, above)) for above in (False, True)]
        lines.append(
            f"| {words_of(found, model)} | {''.join(losses)} | {' | '.join(cells)} | "
            f"{both[0]} | {both[1]} |"
        )
    return "\n".join(lines) + "\n"


def table_again(found: Mapping[str, Any], above_chance: bool = True) -> str:
    """What has been run with two seeds of distillation, a column each, as Markdown.

    Args:
        found: with what the other seed gave.
        above_chance: see :func:`.gathering.shares`.
    """
    again = found.get("again")
    if not again or not again["scores"]:
        return ""
    seeds = (found["setup"]["seed"], again["seed"])
    other = {**found, "scores": {"teacher": found["scores"]["teacher"], **again["scores"]}}
    share = "above chance" if above_chance else "of the teacher's score"
    heads = " | ".join(f"seed {seed}: held-out loss | {share}" for seed in seeds)
    lines = [f"| student | {heads} |", "|---" * 5 + "|"]
    for model in again["scores"]:
        cells = []
        for numbers, students in ((found, found["students"]), (other, again["students"])):
            name = model.partition(" ")[0]
            (student,) = [each for each in students if each["model"] == name]
            kept = _share(shares(numbers, model, above_chance))
            cells.append(f"{student['heldout_loss']:.4f} | {kept}")
        lines.append(f"| {words_of(found, model)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _score(values: Sequence[float] | None) -> str:
    if not values:
        return "not run"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def _share(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread} %"


def draw_best(found: Mapping[str, Any], path: Path) -> None:
    """What the best recipe's students keep of their teacher's scores: the mean, and task by task.

    Nothing is drawn where no student has all tasks.
    """
    from matplotlib.figure import Figure

    names = [name for name in models(found) if shares(found, name, above_chance=False)]
    if not names:
        return
    tasks = learnt_tasks(found)
    figure = Figure(figsize=(12, 1.2 + 0.5 * max(5, len(names))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3), sharey=True)
    _draw_shares(found, names, left)
    for place, name in enumerate(reversed(names)):
        look = _look_of(name)
        height = 0.8 / len(tasks)
        for number, task in enumerate(tasks):
            share = 100 * statistics.mean(found["scores"][name][task])
            share /= statistics.mean(found["scores"]["teacher"][task])
            at = place + 0.4 - (number + 0.5) * height
            right.barh(at, share, height, **look)
            right.text(
                1,
                at,
                f"{task} {share:.0f} %",
                va="center",
                fontsize=6,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
    for axes, title in ((left, "mean over tasks"), (right, "task by task")):
        axes.axvline(100, color="black", linewidth=0.8)
        axes.axvline(95, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlabel("share of the teacher's score, in % (dotted: 95)")
        axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=130)


def draw_narrow(found: Mapping[str, Any], path: Path) -> None:
    """Narrow students: held-out losses as they go on, plain and as copies; and their shares.

    Nothing is drawn before a plain student and copies of one width have gone on.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    runs = {model.partition("/")[0]: None for model in found["curves"]}  # the widest first
    widths = [run for run in runs if {f"{run}_more", f"{run}_experts"} <= runs.keys()]
    if not widths:
        return
    names = [name for name in models(found) if shares(found, name, above_chance=False)]
    figure = Figure(figsize=(4 * len(widths) + 5 * bool(names), 4), layout="constrained")
    places = figure.subplots(1, len(widths) + bool(names), squeeze=False)[0]
    curves = places[: len(widths)]
    for axes, run in zip(curves, widths, strict=True):
        for end, words, color in _GOING_ON:
            for model in (one for one in found["curves"] if one.startswith(f"{run}_{end}/")):
                # The first lines are of the warm-up, which throws all back.
                steps, losses = zip(*found["curves"][model][1:], strict=True)
                said = f"{words}, {losses[-1]:.4f} at the end"
                axes.plot(steps, losses, "o-", color=color, markersize=3, label=said)
        width = run.partition("_")[2]
        axes.set_title(f"3L;{width}H: held-out loss", fontsize=9)
        axes.set_xlabel("steps behind the plain student that all go on from")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.legend(fontsize=7)
    if names:
        _draw_shares(found, names, places[-1])
        places[-1].set_title("share of the teacher's score, mean over tasks, in %", fontsize=9)
    figure.savefig(path, dpi=130)


def draw_room(found: Mapping[str, Any], path: Path) -> None:
    """What students of the small teacher lack: held-out losses against their compute.

    Of the parts ``gap`` and ``gap_again``, all students that the teacher itself has taught for as
    long as the others; an assistant is a student of twice the layers. Nothing is drawn where there
    is one of them at most.
    """
    from matplotlib.figure import Figure

    students = [
        one
        for part in ("gap", "gap_again")
        for one in found.get(part, {}).get("students", ())
        if one["teacher"] == "small" and one["heldout_loss"] is not None
    ]
    steps = min((one["steps"] for one in students), default=0)
    students = [one for one in students if one["steps"] == steps]
    if len(students) < 2:
        return
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    students.sort(key=lambda one: -one["heldout_loss"])
    for one in students:
        said, kind = _words_of_student(one), _kind_of(one["model"])
        axes.plot(one["gmac"], one["heldout_loss"], "o", color=COLORS.get(kind, "#8a8a8a"))
        # Those of one compute stand close together; their words keep the order of their losses.
        beside = [each for each in students if round(each["gmac"], 2) == round(one["gmac"], 2)]
        height = 6 * (len(beside) - 1 - 2 * beside.index(one)) - 3
        axes.annotate(
            f"{said}: {one['heldout_loss']:.4f}",
            (one["gmac"], one["heldout_loss"]),
            xytext=(8, height),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlim(0, 1.5 * max(one["gmac"] for one in students))
    axes.margins(y=0.15)
    axes.set_xlabel("compute of a sequence of 128, in GMAC")
    axes.set_ylabel("held-out loss, relations and last states")
    axes.set_title(f"What a student of {steps:,} steps by 6L lacks", fontsize=9)
    figure.savefig(path, dpi=130)


def _words_of_student(student: Mapping[str, Any]) -> str:
    """A student's sizes in words, without its distillation."""
    said = str(student["words"]).replace("MiniLM", "plain")
    moves = "MiniMoE" in said and student["model"].partition("/")[0].endswith("_moving")
    return f"{said}, routers moving" if moves else said


def _draw_shares(found: Mapping[str, Any], names: Sequence[str], axes: Any) -> None:
    """Mean shares of the teacher's score, a bar a student, the first one on top."""
    for place, name in enumerate(reversed(names)):
        values = [100 * share for share in shares(found, name, above_chance=False)]
        mean = statistics.mean(values)
        axes.barh(place, mean, **_look_of(name))
        if len(values) > 1:
            axes.errorbar(mean, place, xerr=statistics.stdev(values), color="black", capsize=2,
                          linewidth=1)  # fmt: skip
        axes.text(2, place, f"{mean:.1f} %", va="center", fontsize=8,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    words = [textwrap.fill(words_of(found, name), 46) for name in reversed(names)]
    axes.set_yticks(range(len(names)), words, fontsize=7)


def _look_of(model: str) -> dict[str, Any]:
    """A bar's color by the kind of student, hatched where it learnt from the tuned teacher."""
    return {
        "color": COLORS.get(_kind_of(model), "#bbbbbb"),
        "edgecolor": "white",
        "hatch": "//" if model.endswith(" taught") else None,
    }


def _kind_of(model: str) -> str:
    """Of "run/kind_width": plain, control or minimoe."""
    return model.partition("/")[2].partition("_")[0]


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Shares of the teacher's score above chance: of each student, and against its loss.

    Nothing is drawn where there are none: of a teacher that is no better than saying always the
    same, or where no student has all tasks.
    """
    from matplotlib.figure import Figure

    names = [name for name in models(found) if shares(found, name)]
    if not names:
        return
    figure = Figure(figsize=(12, 1.5 + 0.34 * max(8, len(names))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, name in enumerate(reversed(names)):
        values = shares(found, name)
        mean = 100 * statistics.mean(values)
        kind = _kind_of(name)
        left.barh(place, mean, color=COLORS.get(kind, "#bbbbbb"),
                  hatch="//" if name.endswith(" taught") else None, edgecolor="white")  # fmt: skip
        if len(values) > 1:
            left.errorbar(mean, place, xerr=100 * statistics.stdev(values), color="black",
                          capsize=2, linewidth=1)  # fmt: skip
    left.set_yticks(range(len(names)), [words_of(found, name) for name in reversed(names)],
                    fontsize=7)  # fmt: skip
    left.axvline(100, color="black", linewidth=0.8)
    most = max(100 * statistics.mean(shares(found, name)) for name in names)
    left.set_xlim(0, 1.05 * max(100.0, most))
    left.set_xlabel("share of the teacher's score above chance, mean over tasks, in %")
    left.set_title("What students keep (line: the teacher)", fontsize=9)
    for kind in COLORS:
        points = [
            (one["heldout_loss"], 100 * statistics.mean(values), one["steps"])
            for one in found["students"]
            if one["teacher"] == "small" and one["model"].partition("/")[2].startswith(kind)
            and "192" in one["model"] and one["model"].startswith("small")
            and one["heldout_loss"] is not None and (values := shares(found, one["model"]))
        ]  # fmt: skip
        points.sort(reverse=True)
        losses, kept = [one[0] for one in points], [one[1] for one in points]
        if points:
            right.plot(losses, kept, "o-", color=COLORS[kind], label=kind, markersize=4)
        for loss, share, step in points:
            right.annotate(f"{step:,}", (loss, share), fontsize=6, xytext=(3, -9),
                           textcoords="offset points")  # fmt: skip
    right.margins(x=0.12)
    right.invert_xaxis()
    right.locator_params(axis="x", nbins=5)
    right.set_xlabel("held-out relation loss (better to the right)")
    right.set_ylabel("share above chance, in %")
    right.set_title("Loss and score by steps of distillation, 3L;192H", fontsize=9)
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=7)
    figure.savefig(path, dpi=130)
