"""Finds what would make ``minimoe-dist predict`` fail, before torch is imported."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..config import ConfigError
from ..config.commands import PredictOptions
from ..config.paths import check_output_dir
from ..config.problems import nearest
from ..data.tasks import clue, find_task_file, glue, places_of_labels, task_of
from ..data.tasks.rows import check_columns, header_of
from ..data.tasks.submissions import submission_name
from ..data.tasks.unlabelled import (
    STANDARD_INPUT,
    TABLES,
    Unlabelled,
    read_lines,
    read_table,
    read_task,
    read_words,
)
from ..model_description import ModelDescription, require_model
from ..reporting.runs import find_export
from ..runs.tuning import TuningResults
from ..runtime import Launch
from .models import check_length
from .weights import check_weights

_TASKS = (*glue.NAMES, *clue.NAMES)
_TAGGING = "TokenClassification"


def check(options: PredictOptions, launch: Launch) -> None:
    """Refuses a model without a head, and texts that are not there or that it does not read.

    Raises:
        ConfigError: one line that names option, value and remedy.
        UserError: the same, of the source or of the texts.
    """
    export = find_export(options.source)
    model = require_model(str(export.folder), "source", foreign=True)
    check_weights("source", model)
    if not any(head in model.architecture for head in (_TAGGING, "SequenceClassification")):
        raise ConfigError(
            f"source: {options.source} is a {model.architecture or 'model without a name'}, which "
            "predicts nothing; give the output_dir of finetune"
        )
    if options.max_length is not None:
        check_length("max_length", options.max_length, "source", model)
    _check_texts(options, model, export.run.results if export.run else None)
    target = output_of(options)
    if target is not None:
        check_output_dir(str(target.parent))
        if target.exists() and not options.overwrite:
            raise ConfigError(f"output: {target} is there already; give another, or --overwrite")


def output_of(options: PredictOptions) -> Path | None:
    """Returns the file to write; None for standard output."""
    if options.output is None:
        return None
    path = Path(options.output).expanduser()
    if options.task is not None and (path.is_dir() or options.output.endswith("/")):
        tested = find_task_file(options.task, options.data_dir or "", options.split)
        return path / submission_name(options.task, tested)
    return path


def samples_of(
    options: PredictOptions, tuned: TuningResults | None, kind: str
) -> Iterator[Unlabelled]:
    """Reads the texts that are to be predicted.

    Args:
        options: checked.
        tuned: the model's fine-tuning, where that is known.
        kind: of the model's task.

    Raises:
        UserError: one cannot be read.
    """
    words = kind == "tagging"
    if options.task is not None:
        tested = find_task_file(options.task, options.data_dir or "", options.split)
        yield from read_task(options.task, tested)
    elif options.text is not None:
        pair = () if options.text_pair is None else (options.text_pair,)
        yield Unlabelled(0, tuple(options.text.split()) if words else (options.text, *pair))
    elif options.word_column is not None:
        yield from read_words(Path(options.input or "").expanduser(), options.word_column)
    else:
        path = options.input or STANDARD_INPUT
        if Path(path).suffix in TABLES and not words:
            yield from read_table(Path(path).expanduser(), _columns(options, tuned))
        else:
            yield from read_lines(path, words=words, pairs=_reads_pairs(tuned))


def _columns(options: PredictOptions, tuned: TuningResults | None) -> tuple[str, ...]:
    return tuple(options.text_columns or (tuned and tuned.options.text_columns) or ())


def _reads_pairs(tuned: TuningResults | None) -> bool:
    """Tells whether a model was fine-tuned on pairs, as far as its run says."""
    if tuned is None:
        return False
    if tuned.options.text_columns:
        return len(tuned.options.text_columns) == 2
    if tuned.task in glue.NAMES:
        return len(glue.text_columns(tuned.task)) == 2
    return tuned.task in clue.PAIRS


def label_places(model: Sequence[str], task: Sequence[str]) -> list[int]:
    """Returns where a task's labels are among a model's; none of a task without labels of its own.

    Raises:
        ConfigError: they are not the same.
    """
    if not task:
        return []
    places = places_of_labels(model, task)
    if places is None:
        raise ConfigError(
            f"task: its labels are {', '.join(task)}, the model's {', '.join(model)}; give a model "
            "that was fine-tuned on it"
        )
    return places


def _check_texts(
    options: PredictOptions, model: ModelDescription, tuned: TuningResults | None
) -> None:
    ways = [name for name in ("text", "input", "task") if getattr(options, name) is not None]
    if len(ways) > 1:
        raise ConfigError(f"{ways[1]}: is given beside {ways[0]}; give one of text, input and task")
    if not ways and sys.stdin.isatty():
        raise ConfigError(
            "input: is missing; give --text, --input FILE, or texts on standard input"
        )
    is_tagging = _TAGGING in model.architecture
    for option, need, is_there in (
        ("text_pair", "--text", options.text is not None and not is_tagging),
        ("data_dir", "--task", options.task is not None),
        ("format", "texts without --task", options.task is None),
        ("word_column", "--input FILE and a model of tags", options.input and is_tagging),
        ("text_columns", "--input TABLE", options.input and not is_tagging),
    ):
        if option in options.model_fields_set and getattr(options, option) and not is_there:
            raise ConfigError(f"{option}: is for {need}; leave it out")
    if options.task is not None:
        _check_task(options, model)
    elif options.input not in (None, STANDARD_INPUT):
        _check_file(options, tuned, is_tagging)


def _check_file(options: PredictOptions, tuned: TuningResults | None, is_tagging: bool) -> None:
    path = Path(str(options.input)).expanduser()
    if not path.is_file():
        raise ConfigError(f"input: {path}: no such file; give one, or - for standard input")
    columns = _columns(options, tuned)
    if path.suffix in TABLES and not is_tagging:
        if not 1 <= len(columns) <= 2:
            raise ConfigError(f"text_columns: is missing; give the columns of text of {path}")
        check_columns(path, header_of(path), dict.fromkeys(columns, "text_columns"))
    elif options.text_columns:
        raise ConfigError(
            f"text_columns: {path} is no {', '.join(TABLES)} file; give a table, or leave it out"
        )


def _check_task(options: PredictOptions, model: ModelDescription) -> None:
    name = options.task
    assert name is not None
    if name not in _TASKS:
        suggestion = nearest(name, _TASKS)
        hint = f"did you mean {suggestion}?" if suggestion else f"there are {', '.join(_TASKS)}"
        raise ConfigError(f"task: {name!r} has no submission; {hint}")
    if options.data_dir is None:
        raise ConfigError("data_dir: is missing; give the folder of the task's files")
    find_task_file(name, options.data_dir, options.split)
    labels = [str(model.id2label[key]) for key in sorted(model.id2label, key=int)]
    is_number = len(labels) == 1
    if _TAGGING in model.architecture or is_number != (task_of(name).kind == "regression"):
        raise ConfigError(
            f"task: {name} is not what {options.source} was fine-tuned on; give its own task"
        )
    if not is_number:
        label_places(labels, task_of(name).labels)
