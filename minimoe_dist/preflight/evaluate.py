"""Finds what would make ``minimoe-dist evaluate`` fail, before torch is imported."""

from pathlib import Path
from typing import Any

from ..config import ConfigError
from ..config.commands import EvaluateOptions
from ..config.paths import check_output_dir
from ..config.problems import nearest
from ..data.indexed import find_corpora
from ..data.tasks import TASKS, check_table, find_task_file, task_of
from ..data.tasks.sources import check_source_options, scored_table, table_split
from ..model_description import ModelDescription, require_model
from ..reporting.runs import find_export, find_saved
from ..runs.options import SavedRecipe, SavedTuning
from ..runtime import Launch
from .models import check_length, check_relation_heads, check_same_vocabulary
from .weights import check_weights

_DEFAULT_RELATION_HEADS = 32
_DEFAULT_LABELS = 2  # transformers', of a config.json that names none


def check(options: EvaluateOptions, launch: Launch) -> None:
    """Refuses models and corpora that are missing or do not fit each other.

    Raises:
        ConfigError: one line that names option, value and remedy.
        UserError: the same, of the source, the teacher or a corpus.
    """
    if options.step is not None:
        find_saved(options.source, options.step, options.student)
        check_output_dir(str(Path(options.output).parent) if options.output else options.source)
        _check_without_model(options)
        return
    export = find_export(options.source, options.student)
    model = require_model(str(export.folder), "source", foreign=True)
    if model.only_teaches and "Classification" not in model.architecture:
        raise ConfigError(
            f"source: {options.source} is of type {model.model_type} and without a task's head; "
            "give the output_dir of its fine-tuning, or a student"
        )
    check_weights("source", model)
    if options.max_length is not None:
        check_length("--max_length", options.max_length, "source", model)
    if options.speed and "length" in options.model_fields_set:
        check_length("--length", options.length, "source", model)
    if options.output is not None:
        check_output_dir(str(Path(options.output).parent))
    for path in options.corpus:
        find_corpora(path)
    if options.corpus and options.teacher is None and not (export.run and export.run.recipe.tree):
        raise ConfigError(
            f"--corpus: without --teacher there is nothing to hold {options.source} against; "
            "give one"
        )
    _check_relations(options, model, export.run.recipe if export.run else SavedRecipe())
    results = export.run.results if export.run else None
    _check_task(options, model, results.options if results else SavedTuning())


def _check_without_model(options: EvaluateOptions) -> None:
    """Refuses what a model that is still in a checkpoint cannot be held against."""
    if options.task is not None or options.dataset is not None:
        raise ConfigError(
            f"--step: students in checkpoints have no head for {options.task or options.dataset}; "
            "fine-tune an export, or leave the task out"
        )
    for path in options.corpus:
        find_corpora(path)
    if options.teacher is not None:
        teacher = require_model(options.teacher, "--teacher", teaches=True)
        check_weights("--teacher", teacher)
        if options.num_relation_heads is not None:
            check_relation_heads(
                "--num_relation_heads", options.num_relation_heads, "teacher", teacher
            )


def teacher_of(options: EvaluateOptions, saved: SavedRecipe) -> str | None:
    """Returns the teacher to compare a model with: given, or of the run that trained it."""
    return options.teacher or saved.teacher.model_name_or_path


def corpora_of(options: EvaluateOptions, saved: SavedRecipe) -> list[dict[str, Any]]:
    """Returns the corpora to compare them on: given, or held out by that run; may be empty."""
    corpora = [{"path": path, "weight": 1.0} for path in options.corpus]
    return corpora or [corpus.model_dump() for corpus in saved.data.heldout_path_or_regex or ()]


def relation_heads_of(options: EvaluateOptions, saved: SavedRecipe) -> int:
    """Returns the number of relation heads to compare: given, of that run, or the default."""
    saved_heads = saved.objective.num_relation_heads
    return options.num_relation_heads or saved_heads or _DEFAULT_RELATION_HEADS


def _check_relations(options: EvaluateOptions, model: ModelDescription, saved: SavedRecipe) -> None:
    """Refuses relation heads that do not fit, and a teacher that the model has no relations to."""
    if model.only_teaches:
        if options.teacher is not None:
            raise ConfigError(
                f"--teacher: {options.source} is of type {model.model_type}, which is compared "
                "with no teacher; leave it out"
            )
        return
    compared = {"source": model}
    path, corpora = teacher_of(options, saved), corpora_of(options, saved)
    if path is not None and (options.teacher is not None or corpora):
        compared["teacher"] = teacher = require_model(path, "--teacher", teaches=True)
        check_weights("--teacher", teacher)
        if options.max_length is not None:
            check_length("--max_length", options.max_length, "teacher", teacher)
        _check_teacher(options, model, teacher)
    if options.num_relation_heads is not None or ("teacher" in compared and corpora):
        heads = relation_heads_of(options, saved)
        for role, described in compared.items():
            check_relation_heads("--num_relation_heads", heads, role, described)


def _check_teacher(
    options: EvaluateOptions, model: ModelDescription, teacher: ModelDescription
) -> None:
    if model.relation_projections and "Classification" in model.architecture:
        raise ConfigError(
            f"--teacher: {options.source} is fine-tuned and has no relation projections to hold "
            "against it; evaluate the student that it was tuned from, or leave --teacher out"
        )
    check_same_vocabulary("source", model, teacher)
    for role, compared in (("source", model), ("teacher", teacher)):
        if compared.is_published_student:
            raise ConfigError(
                f"{role}: {compared.path} is a published student, whose relations are not "
                "compared here; distil from it, or give an export"
            )


def _check_table(options: EvaluateOptions, model: ModelDescription, tuning: SavedTuning) -> None:
    if options.task is not None:
        raise ConfigError(
            "dataset: give --task NAME with --data_dir FOLDER, or --dataset, not both"
        )
    _check_head(options, model, "SequenceClassification", options.dataset)
    check_source_options(options)
    table = scored_table(options, tuning, values=False)
    check_table(table, table_split(table, options.split))


def _check_head(
    options: EvaluateOptions, model: ModelDescription, head: str, task: str | None
) -> None:
    if head not in model.architecture:
        raise ConfigError(
            f"task: {task} needs a model with a head for it, and {options.source} is a "
            f"{model.architecture or 'model without a name'}; fine-tune it first"
        )


def _check_task(options: EvaluateOptions, model: ModelDescription, tuning: SavedTuning) -> None:
    if options.dataset is not None:
        _check_table(options, model, tuning)
        return
    if (options.task is None) != (options.data_dir is None):
        raise ConfigError("task: give --task NAME and --data_dir FOLDER together, or neither")
    if options.task is not None and options.task not in TASKS:
        suggestion = nearest(options.task, TASKS)
        hint = f"did you mean {suggestion}?" if suggestion else f"there are {', '.join(TASKS)}"
        raise ConfigError(f"task: {options.task!r} is not known; {hint}")
    check_source_options(options)
    if options.task is None or options.data_dir is None:
        return
    find_task_file(options.task, options.data_dir, options.split)
    kind = task_of(options.task).kind
    head = "TokenClassification" if kind == "tagging" else "SequenceClassification"
    _check_head(options, model, head, options.task)
    labels = len(model.id2label) or _DEFAULT_LABELS
    if kind != "tagging" and (labels == 1) != (kind == "regression"):
        wanted = "a number" if kind == "regression" else "classes"
        raise ConfigError(
            f"task: {options.task} has {wanted} to predict, and {options.source} is a model of "
            f"{f'{labels} classes' if labels > 1 else 'a number'}; give one that was fine-tuned on "
            f"{options.task}"
        )
