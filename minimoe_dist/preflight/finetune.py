"""Finds what would make ``minimoe-dist finetune`` fail, before anything heavy is imported."""

import math
from pathlib import Path

import yaml

from ..config import ConfigError
from ..config.commands import FinetuneOptions
from ..config.paths import check_output_dir
from ..data.tasks import Task, TaskData, places_of_labels
from ..data.tasks.sources import folder_of, open_both, open_unlabelled, sources
from ..durable import check_replaceable
from ..errors import UserError
from ..exit_status import ExitStatus
from ..model_description import ModelDescription, require_model
from ..rendezvous import check_rendezvous
from ..runs.folder import RunFolder
from ..runs.locks import check_free
from ..runtime import Launch
from .models import check_length, check_relation_heads, check_same_vocabulary
from .weights import check_weights


def check(options: FinetuneOptions, launch: Launch) -> None:
    """Refuses what :func:`check_run` does, and a start that would come to nothing now.

    Raises:
        ConfigError: one line that names what is wrong and the remedy.
        UserError: another run is at work in the folder.
        LaunchError: the rendezvous does not answer.
    """
    check_run(options, launch)
    for source in sources(options):
        check_free(folder_of(options, source))
    check_rendezvous(launch, options.timeout_seconds)


def show(options: FinetuneOptions, launch: Launch) -> ExitStatus:
    """Prints each task's data and the cells of its grid as comments, then all options as YAML.

    Raises:
        ConfigError: one line that names what would stop the run.
    """
    comments = _checked(options)
    if launch.rank == 0:
        resolved = yaml.safe_dump(options.as_json(), sort_keys=False, allow_unicode=True)
        print(*comments, resolved, sep="\n", end="")
    return ExitStatus.DONE


def _described(
    options: FinetuneOptions, files: tuple[TaskData, TaskData, TaskData | None], folder: Path
) -> str:
    """Returns comments of what a task's files hold, and how long its cells take at most."""
    train, dev, unlabelled = files
    task, sizes, rows = train.task, options.batch_sizes, len(train)
    more = ""
    if unlabelled is not None:
        rows += len(unlabelled)
        more = f" and {len(unlabelled):,} without labels"
    cells = len(options.seeds) * len(options.learning_rates) * len(sizes)
    steps = " or ".join(f"{math.ceil(rows / size):,}" for size in sizes)
    labels = f", {len(task.labels)} labels ({_join(task.labels)})" if task.labels else ""
    left_out = train.bad.count + dev.bad.count
    return (
        f"# {task.name}: {len(train):,} rows{more} to learn from, {len(dev):,} to score on, "
        f"{left_out:,} left out{labels}, scored by {task.metrics[0]}\n"
        f"# {task.name}: {cells} cell{'s' * (cells > 1)} of at most "
        f"{options.epochs_of(task.kind)} epochs of {steps} steps, in {folder}"
    )


def check_run(options: FinetuneOptions, launch: Launch) -> None:
    """Refuses options, models and task files that do not fit each other.

    Raises:
        ConfigError: one line that names what is wrong and the remedy.
    """
    _checked(options)


def _checked(options: FinetuneOptions) -> list[str]:
    """Refuses what :func:`check_run` does; returns comments of each task."""
    task_sources = sources(options)
    _check_numbers(options)
    check_output_dir(options.output_dir)
    RunFolder(Path(options.output_dir)).check()
    models = {"model_name_or_path": options.model_name_or_path}
    if options.teacher is not None:
        models["teacher"] = options.teacher
    described: dict[str, ModelDescription] = {}
    comments: list[str] = []
    try:
        for option, path in models.items():
            described[option] = require_model(path, option, foreign=True)
            check_weights(option, described[option])
            check_length("max_length", options.max_length, option, described[option])
        if options.teacher is not None and len(task_sources) > 1:
            raise ConfigError("teacher: is of one task; give one --task with it")
        for source in task_sources:
            folder = RunFolder(folder_of(options, source))
            folder.check()
            check_replaceable(folder.exports)
            train, dev = open_both(source, options)
            if options.teacher is not None:
                _check_same_labels(described["teacher"], train.task)
            unlabelled = open_unlabelled(train, options)
            comments.append(_described(options, (train, dev, unlabelled), folder.path))
    except (UserError, OSError) as error:
        raise ConfigError(str(error)) from None
    if options.teacher is not None:
        _check_teacher(options, described)
    return comments


def _check_numbers(options: FinetuneOptions) -> None:
    for name, smallest in (("learning_rates", 0.0), ("batch_sizes", 0), ("seeds", -1)):
        values = getattr(options, name)
        wrong = [value for value in values if value <= smallest]
        if wrong:
            raise ConfigError(f"{name}: must be above {smallest:g}, not {wrong[0]}")
        if len(set(values)) < len(values):
            raise ConfigError(f"{name}: {','.join(map(str, values))}: give each value once")
    if options.teacher is None:
        for name in (
            *("relation_weight", "teacher_weight", "temperature", "num_relation_heads"),
            "unlabelled",
        ):
            if options.is_changed(name) and getattr(options, name):
                raise ConfigError(f"{name}: needs a teacher; give --teacher FOLDER")
    elif options.unlabelled is not None and options.teacher_weight == 0.0:
        raise ConfigError(
            f"unlabelled: {options.unlabelled} teaches nothing with teacher_weight 0; leave one out"
        )
    elif options.is_changed("num_relation_heads") and not options.relation_weight:
        raise ConfigError("num_relation_heads: needs relations; give --relation_weight")


def _check_teacher(options: FinetuneOptions, models: dict[str, ModelDescription]) -> None:
    if options.relation_weight:
        for option, model in models.items():
            if model.only_teaches:
                raise ConfigError(
                    f"relation_weight: {option} {model.path} is of type {model.model_type}, whose "
                    "relations are compared in distill alone; use 0"
                )
            check_relation_heads("num_relation_heads", options.num_relation_heads, option, model)
    check_same_vocabulary("model_name_or_path", models["model_name_or_path"], models["teacher"])


def _check_same_labels(teacher: ModelDescription, task: Task) -> None:
    """Refuses a teacher that was fine-tuned for other labels; their order does not matter."""
    labels = tuple(str(teacher.id2label[key]) for key in sorted(teacher.id2label, key=int))
    if not labels:
        raise ConfigError(
            f"teacher: {teacher.path} names no labels in its config.json; give a model that was "
            f"fine-tuned on {task.name}"
        )
    if task.kind == "regression":
        if len(labels) != 1:
            raise ConfigError(
                f"teacher: {teacher.path} is no regression model, and {task.name} is one; "
                f"fine-tune it on {task.name} first"
            )
    elif places_of_labels(labels, task.labels) is None:
        raise ConfigError(
            f"teacher: {teacher.path} has the labels {_join(labels)}, {task.name} has "
            f"{_join(task.labels)}; give a teacher that was fine-tuned on {task.name}, or name "
            "its labels alike in its config.json (id2label)"
        )


def _join(labels: tuple[str, ...]) -> str:
    return ",".join(labels[:8]) + ",…" * (len(labels) > 8)
