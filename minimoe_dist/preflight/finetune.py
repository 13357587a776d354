"""What would make ``minimoe-dist finetune`` fail, found before anything heavy is imported."""

from pathlib import Path
from typing import Any

from ..config import ConfigError
from ..config.commands import FinetuneOptions
from ..config.paths import check_length, check_output_dir, read_model_json
from ..data.tasks import Task, places_of_labels
from ..data.tasks.sources import folder_of, open_both, sources
from ..durable import check_replaceable
from ..errors import UserError
from ..model_paths import resolve_model_path
from ..runs.folder import RunFolder
from ..runtime import Launch


def check(options: FinetuneOptions, launch: Launch) -> None:
    """Refuses options, models and task files that do not fit each other.

    Raises:
        ConfigError: one line that names what is wrong and the remedy.
    """
    found = sources(options)
    _check_numbers(options)
    check_output_dir(options.output_dir)
    RunFolder(Path(options.output_dir)).check()
    models = {"model_name_or_path": options.model_name_or_path}
    if options.teacher is not None:
        models["teacher"] = options.teacher
    read = {}
    try:
        for option, path in models.items():
            read[option] = read_model_json(resolve_model_path(path))
            check_length("max_length", options.max_length, path, read[option])
        if options.teacher is not None and len(found) > 1:
            raise ConfigError("teacher: is of one task; give one --task with it")
        for source in found:
            check_replaceable(RunFolder(folder_of(options, source)).exports)
            task = open_both(source, options)[0].task
            if options.teacher is not None:
                check_same_labels(options.teacher, read["teacher"], task)
    except (UserError, OSError) as error:
        raise ConfigError(str(error)) from None
    if options.teacher is not None:
        _check_teacher(options, read)


def _check_numbers(options: FinetuneOptions) -> None:
    for name, smallest in (("learning_rates", 0.0), ("batch_sizes", 0), ("seeds", -1)):
        values = getattr(options, name)
        wrong = [value for value in values if value <= smallest]
        if wrong:
            raise ConfigError(f"{name}: must be above {smallest:g}, not {wrong[0]}")
        if len(set(values)) < len(values):
            raise ConfigError(f"{name}: {','.join(map(str, values))}: give each value once")
    if options.teacher is None and options.relation_weight:
        raise ConfigError("relation_weight: needs a teacher; give --teacher FOLDER")


def _check_teacher(options: FinetuneOptions, models: dict[str, dict[str, Any]]) -> None:
    widths = {option: model.get("hidden_size") for option, model in models.items()}
    for option, width in widths.items():
        if options.relation_weight and width is not None and width % options.num_relation_heads:
            raise ConfigError(
                f"num_relation_heads: {options.num_relation_heads} does not divide the hidden size "
                f"{width} of {option}; choose a divisor"
            )
    theirs, ours = (
        models[option].get("vocab_size") for option in ("teacher", "model_name_or_path")
    )
    if None not in (theirs, ours) and theirs != ours:
        raise ConfigError(
            f"teacher: has a vocabulary of {theirs}, the model of {ours}; give two of one tokenizer"
        )


def check_same_labels(path: str, model: dict[str, Any], task: Task) -> None:
    """Refuses a teacher that was fine-tuned for other labels; their order does not matter.

    Args:
        path: the teacher, for messages.
        model: its ``config.json``; empty where it is not known yet.
        task: with its labels.

    Raises:
        ConfigError: they differ.
    """
    if not model:
        return
    written = model.get("id2label") or {}
    labels = tuple(str(written[key]) for key in sorted(written, key=int))
    if not labels:
        raise ConfigError(
            f"teacher: {path} names no labels in its config.json; give a model that was fine-tuned "
            f"on {task.name}"
        )
    if task.kind == "regression":
        if len(labels) != 1:
            raise ConfigError(
                f"teacher: {path} is no regression model, and {task.name} is one; fine-tune it on "
                f"{task.name} first"
            )
    elif places_of_labels(labels, task.labels) is None:
        raise ConfigError(
            f"teacher: {path} has the labels {_shown(labels)}, {task.name} has "
            f"{_shown(task.labels)}; give a teacher that was fine-tuned on {task.name}, or name "
            "its labels alike in its config.json (id2label)"
        )


def _shown(labels: tuple[str, ...]) -> str:
    return ",".join(labels[:8]) + ",…" * (len(labels) > 8)
