"""Reads tasks to fine-tune and evaluate models on: GLUE, CLUE, tagged words, users' tables.

:func:`open_task` reads one split of a task by name, :func:`open_table` one of a table, and
:func:`score` measures predictions. Nothing here imports torch.
"""

from pathlib import Path
from types import ModuleType

from . import clue, conll, glue
from .conll import FIRST_AND_LAST, WordColumns
from .metrics import score
from .rows import BadRows
from .tables import Table, check_table, open_table
from .task import (
    Kind,
    Task,
    TaskData,
    places_of_labels,
    similar_labels,
    unknown_in_words,
    unlearnt_rows,
)

TASKS: tuple[str, ...] = (*glue.NAMES, *clue.NAMES, *conll.NAMES)

__all__ = [
    "TASKS",
    "BadRows",
    "Kind",
    "Table",
    "Task",
    "TaskData",
    "WordColumns",
    "check_table",
    "find_task_file",
    "open_table",
    "open_task",
    "places_of_labels",
    "score",
    "similar_labels",
    "task_of",
    "unknown_in_words",
    "unlearnt_rows",
]


def task_of(name: str) -> Task:
    """Returns the task of one of `TASKS`, with its labels where all of its files have the same."""
    return _module(name).task_of(name)


def find_task_file(name: str, data_dir: str | Path, split: str) -> Path:
    """Finds the file of a task's split.

    Raises:
        ValueError: there is no such file in ``data_dir``.
    """
    return _module(name).find(name, data_dir, split)


def open_task(
    name: str,
    data_dir: str | Path,
    split: str = "dev",
    *,
    labels: tuple[str, ...] = (),
    strict: bool = False,
    columns: WordColumns = FIRST_AND_LAST,
) -> TaskData:
    """Reads one split of a task.

    Args:
        name: one of `TASKS`.
        data_dir: the folder of the task's files, or the one above it with the task's usual name.
        split: "train", "dev" or "test" (where that has labels).
        labels: names in the order of their numbers, as a fine-tuned model's ``id2label`` has them;
            by default GLUE's own, for other tasks those of the training file.
        strict: raise at the first row that cannot be used; else they are counted in ``bad``.
        columns: of words and tags, for tasks of tagged words.

    Returns:
        Texts, labels as numbers, and the task with label names and metrics.

    Raises:
        ValueError: a file is missing or has another layout, or no row can be used.
    """
    if name in glue.NAMES:
        return glue.open_glue(name, data_dir, split, labels=labels, strict=strict)
    if name in clue.NAMES:
        return clue.open_clue(name, data_dir, split, labels=labels, strict=strict)
    return conll.open_conll(name, data_dir, split, labels=labels, strict=strict, columns=columns)


def _module(name: str) -> ModuleType:
    assert name in TASKS, name
    return next(module for module in (glue, clue, conll) if name in module.NAMES)
