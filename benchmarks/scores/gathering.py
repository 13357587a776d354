"""The numbers of the study, from what its runs left behind."""

import csv
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .sizes import (
    GMAC,
    Run,
    Size,
    runs_again,
    runs_best,
    runs_gap,
    runs_gap_again,
    runs_narrow,
    runs_of,
    runs_states,
)
from .texts import TASKS

# Scores of which saying always the same gets nothing.
_FROM_ZERO = ("Matthews", "chunk F1")
BEST, LABELLED = "best", "labelled"  # folders of the parts of these names


def gather(
    folder: Path,
    size: Size,
    tasks: Sequence[str],
    facts: Mapping[str, Any],
    again: int | None = None,
) -> dict[str, Any]:
    """What is done: students with their losses, and every model's scores by task, a number a seed.

    Models are named "teacher", "RUN/STUDENT", and with " taught" behind it where the fine-tuned
    teacher's predictions were learnt too.

    Args:
        folder: of the study.
        size: of it.
        tasks: by name.
        facts: that belong to its setup.
        again: the other seed of distillation, whose numbers are under "again", if there are any,
            and those of the part ``gap_again`` under its name.
    """
    students = _students(folder, runs_of(size))
    names = ["teacher", "teacher_large", *(one["model"] for one in students), "untaught"]
    found = {
        "setup": {
            **facts,
            "batch": size.batch,
            "length": size.length,
            "samples": size.samples,
            "epochs": size.epochs,
            "teacher_gmac": GMAC["small"],
        },
        "tasks": {task: task_facts(folder / "tasks" / task, task) for task in tasks},
        "students": students,
        "scores": _scores(folder, names, tasks),
    }
    other = folder / f"again_{again}"
    if other.is_dir():
        students = _students(other, runs_again(size))
        scores = _scores(other, [one["model"] for one in students], tasks)
        found["again"] = {"seed": again, "students": students, "scores": scores}
    for part, runs, setup in (
        (
            BEST,
            [*best_models(size), *runs_states(size)],
            {"epochs": size.best_epochs, "unlabelled": size.unlabelled},
        ),
        (
            LABELLED,
            [*runs_best(size), *runs_states(size)[1:]],
            {"epochs": size.more_epochs, "samples": size.samples + size.unlabelled},
        ),
    ):
        if (folder / part / "tuned").is_dir():
            found[part] = {
                "setup": found["setup"] | setup,
                **_fine_tuned(folder / part, _students(folder, runs), tasks),
            }
    for part, runs in (("narrow", runs_narrow(size)), ("gap", runs_gap(size))):
        if students := _students(folder, runs):
            found[part] = {
                "setup": found["setup"] | {"epochs": size.best_epochs},
                "curves": {one["model"]: _losses(folder, one["model"]) for one in students},
                **_fine_tuned(folder / BEST, students, tasks),
            }
    if students := _students(other, runs_gap_again(size)):
        found["gap_again"] = {
            "setup": found["setup"] | {"epochs": size.best_epochs, "seed": again},
            **_fine_tuned(folder / BEST, students, tasks, other / BEST),
        }
    if BEST in found and (other / BEST).is_dir():
        students = _students(other, runs_best(size))
        scores = _scores(other / BEST, [one["model"] for one in students], tasks)
        found[BEST]["again"] = {"seed": again, "students": students, "scores": scores}
    return found


def _fine_tuned(
    folder: Path,
    students: list[dict[str, Any]],
    tasks: Sequence[str],
    of_students: Path | None = None,
) -> dict[str, Any]:
    """A part with tasks of its own, of those that its teacher has scores of.

    Students' scores are in a folder of their own where another seed has distilled them.
    """
    scores = _scores(folder, ["teacher"], tasks)
    scores |= _scores(of_students or folder, [one["model"] for one in students], tasks)
    return {
        "tasks": {
            task: task_facts(folder / "tasks" / task, task)
            for task in tasks
            if task in scores.get("teacher", {})
        },
        "students": students,
        "scores": scores,
    }


def best_models(size: Size) -> list[Run]:
    """The best recipe's distillations, behind those as long that start at random weights."""
    steps = size.long_steps or size.steps
    names = {f"{kind}_{width}" for kind in ("plain", "minimoe") for width in size.widths}
    random = [
        run
        for run in runs_of(size)
        if run.steps == steps and run.teacher == "small" and names & set(run.students)
    ]
    return [*random, *runs_best(size)]


def _students(folder: Path, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Students that are done; their held-out losses are of what each has learnt."""
    from minimoe_dist.runs.folder import RunFolder
    from minimoe_dist.runs.summaries import Summary

    students = []
    for run in runs:
        path = RunFolder(folder / run.name).summary
        if not path.is_file():
            continue
        for name, summary in Summary.read(path).students.items():
            students.append(
                {
                    "model": f"{run.name}/{name}",
                    "teacher": run.teacher,
                    "steps": run.steps,
                    "start": _start_of(run, run.students.get(name, {})),
                    "words": summary.student,
                    "gmac": summary.student_gmac,
                    "parameters": summary.student_parameters,
                    "heldout_loss": summary.heldout_loss_after,
                }
            )
    return students


def _losses(folder: Path, model: str) -> list[list[float]]:
    """A student's held-out losses while it was distilled: steps and loss."""
    from minimoe_dist.runs.folder import RunFolder
    from minimoe_dist.runs.metrics import SavedMetrics

    run, _, student = model.partition("/")
    evaluated = SavedMetrics.find(RunFolder(folder / run).metrics).evaluated
    losses = {one.step: one.heldout_loss.get(student) for one in evaluated}
    return [[step, round(loss, 4)] for step, loss in losses.items() if loss is not None]


def _start_of(run: Run, options: Mapping[str, Any]) -> str:
    """Says what a student started from, and whether it learnt last states."""
    start = str(options.get("start", "random"))
    if run.goes_on:
        start = start if start in ("copies", "clusters") else "student"
    return f"{start}, last states" if run.state_weight else start


def _scores(
    folder: Path, names: Sequence[str], tasks: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    from minimoe_dist.runs.folder import RunFolder
    from minimoe_dist.runs.tuning import finished_cells

    scores: dict[str, dict[str, list[float]]] = {}
    for name in names:
        for words in ("", "_taught"):
            by_task = {}
            for task in tasks:
                cells = RunFolder(folder / "tuned" / f"{name.replace('/', '-')}{words}_{task}")
                found = [cell.score for cell in finished_cells(cells) if cell.score is not None]
                if found:
                    by_task[task] = [round(score, 4) for score in found]
            if by_task:
                scores[name + words.replace("_", " ")] = by_task
    return scores


def task_facts(folder: Path, task: str) -> dict[str, Any]:
    """Metric, samples of both parts, and the score of saying always the same."""
    metric = TASKS[task].metric
    if task == "ner":
        counts = [
            len([one for one in (folder / f"{part}.txt").read_text("utf-8").split("\n\n") if one])
            for part in ("train", "dev")
        ]
        return {"metric": metric, "train": counts[0], "dev": counts[1], "chance": 0.0}
    column = {"accept": 1, "sst2": 1}.get(task, -1)
    labels = {part: _column(folder / f"{part}.tsv", column) for part in ("train", "dev")}
    if task != "accept":
        labels = {part: values[1:] for part, values in labels.items()}  # without the heads
    most = Counter(labels["dev"]).most_common(1)[0][1] / len(labels["dev"])
    chance = 0.0 if metric in _FROM_ZERO else round(most, 4)
    return {
        "metric": metric,
        "train": len(labels["train"]),
        "dev": len(labels["dev"]),
        "chance": chance,
    }


def _column(path: Path, number: int) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            row[number] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row
        ]


def learnt_tasks(found: Mapping[str, Any]) -> list[str]:
    """The tasks that the teacher itself has learnt: of others there are no shares.

    It has where its mean is above always saying the same by more than two deviations.
    """
    learnt = []
    for task, scores in found["scores"].get("teacher", {}).items():
        gain = statistics.mean(scores) - found["tasks"][task]["chance"]
        if gain > 0 and (len(scores) == 1 or gain > 2 * statistics.stdev(scores)):
            learnt.append(task)
    return learnt


def shares(found: Mapping[str, Any], model: str, above_chance: bool = True) -> list[float]:
    """Shares of the teacher's score, mean over tasks that it has learnt, a number a seed.

    Empty where a score of these is missing.

    Args:
        found: of :func:`gather`.
        model: one of its scores.
        above_chance: what always saying the same gets is taken off both scores.
    """
    teacher, own = found["scores"].get("teacher", {}), found["scores"].get(model, {})
    tasks = learnt_tasks(found)
    if not tasks or not all(own.get(task) for task in tasks):
        return []
    seeds = min(len(own[task]) for task in tasks)
    rows = []
    for number in range(seeds):
        of_tasks = []
        for task in tasks:
            chance = found["tasks"][task]["chance"] if above_chance else 0.0
            whole = statistics.mean(teacher[task]) - chance
            of_tasks.append((own[task][number] - chance) / whole)
        rows.append(statistics.mean(of_tasks))
    return rows
