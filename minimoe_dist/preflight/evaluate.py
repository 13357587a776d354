"""What can be refused of an evaluation before torch is imported."""

from pathlib import Path

from ..config import ConfigError
from ..config.commands import EvaluateOptions
from ..config.paths import check_output_dir, read_model_json
from ..config.problems import nearest
from ..data.indexed import find_corpora
from ..data.tasks import TASKS, check_table, find_task_file, task_of
from ..data.tasks.sources import scored_table, table_split
from ..model_paths import resolve_model_path
from ..reporting.runs import find_export
from ..runs.options import SavedTuning
from ..runtime import Launch


def check(options: EvaluateOptions, launch: Launch) -> None:
    """Refuses models and corpora that are not there or do not fit each other.

    Raises:
        ConfigError: one line that names option, value and remedy.
        UserError: the same, of the source, the teacher or a corpus.
    """
    export = find_export(options.source, options.student)
    model = read_model_json(str(export.folder))
    if options.output is not None:
        check_output_dir(str(Path(options.output).parent))
    for path in options.corpus:
        find_corpora(path)
    if options.corpus and options.teacher is None and not (export.run and export.run.recipe.tree):
        raise ConfigError(
            f"--corpus: without --teacher there is nothing to hold {options.source} against; "
            "give one"
        )
    _check_widths(options, model)
    _check_relations(options, model)
    results = export.run.results if export.run else None
    _check_task(options, model, results.options if results else SavedTuning())


def _check_relations(options: EvaluateOptions, model: dict[str, object]) -> None:
    if options.teacher is None or not model.get("relation_projections"):
        return
    if "Classification" in _architecture(model):
        raise ConfigError(
            f"--teacher: {options.source} is fine-tuned and has no relation projections to hold "
            "against it; evaluate the student that it was tuned from, or leave --teacher out"
        )


def _check_table(options: EvaluateOptions, model: dict[str, object], tuning: SavedTuning) -> None:
    if options.task is not None:
        raise ConfigError(
            "dataset: give --task NAME with --data_dir FOLDER, or --dataset, not both"
        )
    _check_head(options, model, "SequenceClassification", options.dataset)
    table = scored_table(options, tuning, values=False)
    check_table(table, table_split(table, options.split))


def _architecture(model: dict[str, object]) -> str:
    names = model.get("architectures") or [""]
    assert isinstance(names, list)
    return str(names[0])


def _check_head(
    options: EvaluateOptions, model: dict[str, object], wanted: str, task: str | None
) -> None:
    if wanted not in _architecture(model):
        raise ConfigError(
            f"task: {task} needs a model with a head for it, and {options.source} is a "
            f"{_architecture(model) or 'model without a name'}; fine-tune it first"
        )


def _check_task(options: EvaluateOptions, model: dict[str, object], tuning: SavedTuning) -> None:
    if options.dataset is not None:
        _check_table(options, model, tuning)
        return
    if (options.task is None) != (options.data_dir is None):
        raise ConfigError("task: give --task NAME and --data_dir FOLDER together, or neither")
    if options.task is None or options.data_dir is None:
        return
    if options.task not in TASKS:
        found = nearest(options.task, TASKS)
        hint = f"did you mean {found}?" if found else f"there are {', '.join(TASKS)}"
        raise ConfigError(f"task: {options.task!r} is not known; {hint}")
    find_task_file(options.task, options.data_dir, options.split)
    is_tagging = task_of(options.task).kind == "tagging"
    wanted = "TokenClassification" if is_tagging else "SequenceClassification"
    _check_head(options, model, wanted, options.task)


def _check_widths(options: EvaluateOptions, model: dict[str, object]) -> None:
    models = {"source": (options.source, model)}
    if options.teacher is not None:
        teacher = read_model_json(resolve_model_path(options.teacher))
        models["--teacher"] = (options.teacher, teacher)
        if teacher and teacher.get("vocab_size") != model.get("vocab_size"):
            raise ConfigError(
                f"--teacher: {options.teacher} has {teacher.get('vocab_size')} words and "
                f"{options.source} {model.get('vocab_size')}; give its own teacher"
            )
    heads = options.num_relation_heads
    for name, (path, config) in models.items():
        hidden = config.get("hidden_size")
        if heads is not None and isinstance(hidden, int) and hidden % heads:
            raise ConfigError(
                f"--num_relation_heads: {heads} does not divide the hidden size {hidden} of "
                f"{name} {path}; choose a divisor"
            )
