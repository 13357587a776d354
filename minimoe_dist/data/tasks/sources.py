"""Finds the files that a fine-tuning run reads: tasks by name, or a table of the user's own."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...config import ConfigError
from ...config.commands import EvaluateOptions, FinetuneOptions
from ...config.problems import nearest
from ...runs.options import SavedTuning
from . import (
    TASKS,
    Table,
    Task,
    TaskData,
    WordColumns,
    open_table,
    open_task,
    task_of,
    unknown_in_words,
)
from .encoding import UNLABELLED, UNLABELLED_VALUE
from .rows import BadRows
from .unlabelled import STANDARD_INPUT, TABLES, read_lines, read_table

_MANY_CLASSES = 50
_LOOKED_AT = 100


def sources(options: FinetuneOptions) -> list[str | Table]:
    """Returns the run's tasks by name, or its table.

    Raises:
        ConfigError: there is neither, both, an unknown task, a part of a table is missing, or an
            option is of the other source.
    """
    if (options.task is None) == (options.dataset is None):
        raise ConfigError(
            "task: give --task NAME with --data_dir FOLDER, or --dataset PATH with --text_columns "
            "and --label_column, and not both"
        )
    if options.task is not None:
        for name in options.task:
            if name not in TASKS:
                match = nearest(name, TASKS)
                hint = f"did you mean {match}?" if match else f"there are {', '.join(TASKS)}"
                raise ConfigError(f"task: {name!r} is not known; {hint}")
        if options.data_dir is None:
            raise ConfigError("data_dir: is missing; give the folder of the task's files")
        if len(set(options.task)) < len(options.task) or not options.task:
            raise ConfigError(f"task: {','.join(options.task)}: give each task once")
        check_source_options(options)
        _check_word_columns(options)
        return list(options.task)
    columns = options.text_columns or []
    if options.label_column is None:
        raise ConfigError("label_column: is missing; give the table's column of classes or numbers")
    _check_table_columns(columns, options.label_column)
    check_source_options(options)
    assert options.dataset is not None
    return [
        Table(
            options.dataset,
            tuple(columns),
            options.label_column,
            options.dev,
            "regression" if options.regression else "classification",
        )
    ]


def check_source_options(options: FinetuneOptions | EvaluateOptions) -> None:
    """Refuses options that were given and that nothing would read.

    Raises:
        ConfigError: there is one.
    """
    names = [options.task] if isinstance(options.task, str) else options.task or ()
    path = None if options.dataset is None else Path(options.dataset).expanduser()
    tags = "--task ner or conll2003", any(task_of(name).kind == "tagging" for name in names)
    table = "--dataset", path is not None
    needs = {
        "data_dir": ("--task", bool(names)),
        "word_column": tags,
        "tag_column": tags,
        "text_columns": table,
        "label_column": table,
        "regression": table,
        "dev": ("--dataset FILE", path is not None and not path.is_dir()),
        "split": (
            "--task, or --dataset FOLDER",
            bool(names) or (path is not None and not path.is_file()),
        ),
    }
    for option, (need, is_there) in needs.items():
        value = getattr(options, option, None)
        if value and not is_there and options.is_changed(option):
            written = ",".join(value) if isinstance(value, list) else value
            raise ConfigError(f"{option}: {written} is for {need}; leave it out")


def _check_table_columns(texts: Sequence[str], label: str) -> None:
    """Refuses other than one or two columns of text, and one column in two places.

    Raises:
        ConfigError: there are.
    """
    if not 1 <= len(texts) <= 2:
        raise ConfigError(
            f"text_columns: {','.join(texts) or 'nothing'}; give one column of the table, or two"
        )
    if len(set(texts)) < len(texts):
        raise ConfigError(f"text_columns: {','.join(texts)}: give each column once")
    if label in texts:
        raise ConfigError(f"label_column: {label!r} is a column of text too; give the labels'")


def _check_word_columns(options: FinetuneOptions | EvaluateOptions) -> None:
    """Refuses a column of words that leaves open which one has their tags.

    Raises:
        ConfigError: it does, or both are one column.
    """
    word, tag = options.word_column or 1, options.tag_column
    if word > 1 and tag is None:
        raise ConfigError(
            f"tag_column: is missing beside word_column {word}; give the column of the tags, "
            "counted from 1"
        )
    if word == tag:
        raise ConfigError(f"tag_column: {tag} is the words' column too; give the tags'")


def word_columns(options: EvaluateOptions, tuning: SavedTuning) -> WordColumns:
    """Returns the columns of words and tags to score a fine-tuned model on.

    Args:
        options: of the evaluation; its columns win.
        tuning: options of the model's own fine-tuning; all None where that is not known.

    Raises:
        ConfigError: see :func:`_check_word_columns`.
    """
    if options.word_column is None and options.tag_column is None:
        return WordColumns(tuning.word_column or 1, tuning.tag_column)
    _check_word_columns(options)
    return WordColumns(options.word_column or 1, options.tag_column)


def scored_table(options: EvaluateOptions, tuning: SavedTuning, *, values: bool) -> Table:
    """Returns the table to score a fine-tuned model on.

    Args:
        options: of the evaluation; its columns win.
        tuning: options of the model's own fine-tuning; all None where that is not known.
        values: the model predicts numbers.

    Raises:
        ConfigError: nobody says which columns, or they are no texts and labels.
    """
    assert options.dataset is not None
    texts = options.text_columns or tuning.text_columns or []
    label = options.label_column or tuning.label_column
    for option, value in (("text_columns", texts), ("label_column", label)):
        if not value:
            raise ConfigError(f"{option}: is missing; give the table's, as in the fine-tuning")
    _check_table_columns(texts, str(label))
    return Table(
        options.dataset,
        tuple(texts),
        str(label),
        None,
        "regression" if values else "classification",
    )


def table_split(table: Table, split: str) -> str:
    """Returns the split to open a table with: a file has no splits, it is read whole."""
    return "train" if Path(table.path).expanduser().is_file() else split


def task_named(source: str | Table) -> Task:
    """Returns the task, with its labels where they are known without reading its files."""
    return source.task if isinstance(source, Table) else task_of(source)


def open_split(
    source: str | Table,
    options: FinetuneOptions,
    split: str,
    labels: tuple[str, ...] = (),
) -> TaskData:
    """Opens one split of one of :func:`sources`.

    Raises:
        ValueError: a file is missing or has another layout, or no row can be used.
    """
    if isinstance(source, Table):
        return open_table(source, split, labels=labels, strict=options.strict)
    assert options.data_dir is not None
    columns = WordColumns(options.word_column, options.tag_column)
    return open_task(
        source, options.data_dir, split, labels=labels, strict=options.strict, columns=columns
    )


def open_both(source: str | Table, options: FinetuneOptions) -> tuple[TaskData, TaskData]:
    """Opens the training samples, and the samples to score on with the same labels.

    Raises:
        ValueError: see :func:`open_split`; or the training file has a single class, or hardly two
            rows of one.
    """
    train = open_split(source, options, "train")
    if train.task.kind != "regression" and len(train.task.labels) < 2:
        raise ConfigError(
            f"{train.path}: all rows have the label {train.task.labels[0]!r}; nothing can be "
            "learnt; check --label_column"
        )
    if isinstance(source, Table):
        _check_classes(train, source)
    _check_all_labels(train)
    return train, open_split(source, options, "dev", train.task.labels)


def open_unlabelled(train: TaskData, options: FinetuneOptions) -> TaskData | None:
    """Opens the texts without labels that a task's training samples are followed by, if any.

    Lines without text are left out.

    Raises:
        UserError: the file cannot be read, or has no text.
    """
    if options.unlabelled is None:
        return None
    path, task = Path(options.unlabelled).expanduser(), train.task
    words = task.kind == "tagging"
    if options.unlabelled == STANDARD_INPUT:
        raise ConfigError("unlabelled: -: is read more than once; give a file")
    if not path.is_file():
        raise ConfigError(f"unlabelled: {path}: no such file; give one of texts")
    if words and (path.suffix in TABLES or _has_columns(path)):
        raise ConfigError(
            f"unlabelled: {path} has columns; of tags give a sentence a line, words between blanks"
        )
    if path.suffix in TABLES:
        if not options.text_columns:
            raise ConfigError(
                f"unlabelled: {path} is a table, and {task.name} has no text_columns; give a file "
                "with a text a line"
            )
        rows = read_table(path, tuple(options.text_columns))
    else:
        rows = read_lines(str(path), words=words, pairs=len(train.texts[0]) == 2 and not words)
    texts = [row.texts for row in rows if not row.is_empty]
    if not texts:
        raise ConfigError(f"unlabelled: {path} has no text; give another file, or leave it out")
    of_a_text: Any = UNLABELLED_VALUE if task.kind == "regression" else UNLABELLED
    labels = [[UNLABELLED] * len(text) if words else of_a_text for text in texts]
    return TaskData(task, path, texts, labels, BadRows())


def _has_columns(path: Path) -> bool:
    """Tells whether a file's first lines have tabs: words with their tags, not sentences."""
    with path.open("rb") as file:
        return any(b"\t" in line for line in itertools.islice(file, _LOOKED_AT))


def _check_all_labels(train: TaskData) -> None:
    """Refuses a training file that spells one of its task's labels otherwise.

    Raises:
        ConfigError: rows have labels that the task has not, and none has one of its labels.
    """
    if not train.unknown or train.task.kind != "classification":
        return
    without = [
        label for number, label in enumerate(train.task.labels) if number not in train.labels
    ]
    if without:
        raise ConfigError(
            f"{unknown_in_words(train)}, and no row has {', '.join(without)}; correct the labels, "
            "or give the file as --dataset"
        )


def _check_classes(train: TaskData, table: Table) -> None:
    """Refuses a label column of texts or numbers, of which nearly every row has its own."""
    labels = len(train.task.labels)
    if labels > _MANY_CLASSES and 2 * labels > len(train):
        raise ConfigError(
            f"{train.path}: {table.label_column!r} has {labels:,} different values in "
            f"{len(train):,} rows, so it is no column of classes; check --label_column, or give "
            "--regression for numbers"
        )


def folder_of(options: FinetuneOptions, source: str | Table) -> Path:
    """Returns where a task's results go: below ``output_dir`` where there are several tasks."""
    root = Path(options.output_dir)
    several = options.task is not None and len(options.task) > 1
    return root / task_named(source).name if several else root
