"""The study's fine-tuning: which models learn which tasks, alone and with their teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from . import texts
from .distilling import distil, exports_of
from .gathering import BEST, LABELLED, best_models
from .jobs import Job, run_all
from .sizes import (
    LARGE,
    SMALL,
    Run,
    Size,
    runs_again,
    runs_best,
    runs_gap_again,
    runs_of,
    runs_states,
)

RATES = {"teacher": "1e-4", "teacher_large": "5e-5", "student": "3e-4"}
# Of students on tags, which gain nine points of F1 by it; on texts they lose one to four.
RATE_ON_TAGS = "1e-3"
# Of the loss with a fine-tuned teacher; the rest is of labels.
TEACHER_WEIGHT, TEMPERATURE = "0.9", "2"


def models_of(folder: Path, size: Size, is_long: bool = False) -> dict[str, str]:
    """Name -> model, of all that a part fine-tunes: "run/student" of students."""
    exports = {
        f"{run.name}/{student}": str(folder / run.name / "export" / student)
        for run in runs_of(size)
        for student in run.students
        if student != "assistant" and run.is_cached is is_long
    }
    if is_long:
        return {"teacher_large": LARGE, **exports}
    return {"teacher": SMALL, **exports, "untaught": str(folder / "untaught")}


def tune(folder: Path, size: Size, tasks: Sequence[str], is_long: bool = False) -> list[str]:
    """Every model on every task from its labels; then the longest students with the teacher."""
    models, labels, taught = models_of(folder, size, is_long), [], []
    for task in tasks:
        for name, model in models.items():
            if name.startswith("teacher") or Path(model, "config.json").is_file():
                labels.append(_tuning(folder, size, task, name, model))
    for task in tasks:
        teacher = folder / "tuned" / f"teacher_{task}" / "export"
        for name, model in models.items():
            if name.startswith(("small/", "small_long")) and Path(model, "config.json").is_file():
                more = (
                    *("--teacher", str(teacher), "--teacher_weight", TEACHER_WEIGHT),
                    *("--temperature", TEMPERATURE),
                )
                taught.append(_tuning(folder, size, task, name, model, more))
    labels.sort(key=lambda job: -job.cost)  # teachers first: others wait for them
    failed = run_all(labels, size.lanes, size.ranks, folder / "log.txt")
    return failed + run_all(taught, size.lanes, size.ranks, folder / "log.txt")


def tune_best(folder: Path, size: Size, tasks: Sequence[str]) -> list[str]:
    """The best recipe's students beside random starts as long: labels; the teacher's texts too."""
    models = {"teacher": SMALL, **exports_of(folder, best_models(size))}
    failed = _tune_on_labels(folder, size, tasks, models)
    taught = _taught_best(folder, folder, size, tasks)
    return failed + run_all(taught, size.lanes, size.ranks, folder / "log.txt")


def _tune_on_labels(
    folder: Path,
    size: Size,
    tasks: Sequence[str],
    models: Mapping[str, str],
    distilled: Path | None = None,
) -> list[str]:
    """Models by name on the few labels of the part ``best``; the teacher first.

    What comes of it is beside the distillations, where these are in another folder.
    """
    place, labels = (distilled or folder) / BEST, folder / BEST / "tasks"
    jobs = [
        _tuning(place, size, task, name, model, tasks=labels, epochs=size.best_epochs)
        for task in tasks
        for name, model in models.items()
    ]
    jobs.sort(key=lambda job: -job.cost)
    return run_all(jobs, size.lanes, size.ranks, folder / "log.txt")


def _taught_best(folder: Path, distilled: Path, size: Size, tasks: Sequence[str]) -> list[Job]:
    """The best recipe's students of a folder, fine-tuned with the teacher and texts of another."""
    return [
        _tuning(
            distilled / BEST,
            size,
            task,
            name,
            model,
            (
                *("--teacher", str(folder / BEST / "tuned" / f"teacher_{task}" / "export")),
                *("--unlabelled", str(folder / BEST / "tasks" / task / texts.UNLABELLED)),
            ),
            folder / BEST / "tasks",
            size.more_epochs,
        )
        for task in tasks
        for name, model in exports_of(distilled, runs_best(size)).items()
    ]


def tune_labelled(folder: Path, size: Size, tasks: Sequence[str]) -> list[str]:
    """The best recipe's students on tasks of more labels: with a teacher of these, and alone.

    Those that learnt last states too, where they are there.
    """
    place, epochs = folder / LABELLED, size.more_epochs
    models = exports_of(folder, [*runs_best(size), *runs_states(size)[1:]])
    if not models:
        return [f"labelled: {folder} has no students of the best recipe; run the part best first"]
    one = replace(size, seeds=size.seeds[:1])  # of a teacher; it takes the longest by far
    failed = run_all(
        [
            _tuning(place, one, task, "teacher", SMALL, tasks=place / "tasks", epochs=epochs)
            for task in tasks
        ],
        size.lanes,
        size.ranks,
        folder / "log.txt",
    )
    teachers = {
        task: ("--teacher", str(place / "tuned" / f"teacher_{task}" / "export")) for task in tasks
    }
    students = [
        _tuning(place, size, task, name, model, more, place / "tasks", epochs)
        for by_task in (teachers, dict.fromkeys(tasks, ()))
        for task, more in by_task.items()
        for name, model in models.items()
    ]
    return failed + run_all(students, size.lanes, size.ranks, folder / "log.txt")


def tune_states(folder: Path, size: Size, tasks: Sequence[str]) -> list[str]:
    """Students that learnt last states on the labels of the part ``best``, and what they bring.

    Beside the best recipe's students, if these are there.
    """
    if not (folder / BEST / "tasks").is_dir():
        return [f"states: {folder / BEST} has no tasks; run the part best first"]
    models = exports_of(folder, [*runs_best(size), *runs_states(size)])
    return _tune_on_labels(folder, size, tasks, models)


def tune_runs(folder: Path, size: Size, tasks: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Students of a part on the labels of the part ``best``, beside the teacher.

    Assistants only teach.
    """
    exports = exports_of(folder, runs)
    models = {name: path for name, path in exports.items() if not name.endswith("/assistant")}
    return _tune_on_labels(folder, size, tasks, {"teacher": SMALL, **models})


def best_again(folder: Path, size: Size, seed: int, tasks: Sequence[str]) -> list[str]:
    """Another seed of the best recipe's distillations, fine-tuned with the teacher as the first."""
    again = folder / f"again_{seed}"
    failed = distil(again, size, seed, runs_best(size), folder)
    taught = _taught_best(folder, again, size, tasks)
    return failed + run_all(taught, size.lanes, size.ranks, again / "log.txt")


def gap_again(folder: Path, size: Size, seed: int, tasks: Sequence[str]) -> list[str]:
    """Both teachers with another seed, fine-tuned on labels as the first; see ``tune_runs``."""
    again, runs = folder / f"again_{seed}", runs_gap_again(size)
    failed = distil(again, size, seed, runs, folder)
    failed += _tune_on_labels(folder, size, tasks, {"teacher": SMALL})  # that shares are of
    return failed + _tune_on_labels(folder, size, tasks, exports_of(again, runs), again)


def distil_again(folder: Path, size: Size, seed: int, tasks: Sequence[str]) -> list[str]:
    """Another seed of the distillations that compare the teachers, on the same tasks."""
    again, runs = folder / f"again_{seed}", runs_again(size)
    failed = distil(again, size, seed, runs, folder)
    tunings = [
        _tuning(again, size, task, name, path, tasks=folder / "tasks")
        for task in tasks
        for name, path in exports_of(again, runs).items()
    ]
    return failed + run_all(tunings, size.lanes, size.ranks, again / "log.txt")


def _tuning(
    folder: Path,
    size: Size,
    task: str,
    name: str,
    model: str,
    more: tuple[str, ...] = (),
    tasks: Path | None = None,
    epochs: int | None = None,
) -> Job:
    kind = name if name.startswith("teacher") else "student"
    output = folder / "tuned" / f"{name.replace('/', '-')}{'_taught' if more else ''}_{task}"
    own = texts.TASKS[task].options
    source = "--dataset" if "--task" not in own else "--data_dir"
    rate = RATE_ON_TAGS if kind == "student" and task == "ner" else RATES[kind]
    return Job(
        f"tune {name} on {task}{' with the teacher' if more else ''}",
        (
            *("finetune", model, *own, source, str((tasks or folder / "tasks") / task)),
            *("--output_dir", str(output), "--max_length", str(size.task_length)),
            *("--num_train_epochs", str(epochs or size.epochs)),
            *("--seeds", ",".join(map(str, size.seeds))),
            *("--learning_rates", rate, "--batch_sizes", "32", "--precision", "bf16"),
            *more,
        ),
        output / "results.json",
        {"teacher": 4.0, "teacher_large": 24.0, "student": 1.5 if more else 1.0}[kind],
    )
