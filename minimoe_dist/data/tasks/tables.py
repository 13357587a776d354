"""Reads users' own tables: TSV, CSV or JSON files with columns of text and of labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import UserError
from .rows import (
    BadRows,
    check_columns,
    header_of,
    read_comma_separated,
    read_json_records,
    read_tab_separated,
)
from .task import Kind, Reader, Row, Task, TaskData, collect

_READERS: dict[str, Callable[..., Iterator[tuple[int, dict[str, Any]]]]] = {
    ".tsv": read_tab_separated,
    ".csv": read_comma_separated,
    ".json": read_json_records,
    ".jsonl": read_json_records,
}
_DEV_NAMES = ("dev", "valid", "validation")
_METRICS: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "regression": ("spearman", "pearson"),
}


@dataclass(frozen=True)
class Table:
    """Names a user's table: its files, and which of their columns are read.

    Attributes:
        path: a folder with train and dev files, or the training file.
        text_columns: one, or two for pairs.
        label_column: of the class or the number.
        dev: the dev file where ``path`` is a file.
        kind: "classification" or "regression".
    """

    path: str
    text_columns: tuple[str, ...]
    label_column: str
    dev: str | None = None
    kind: Kind = "classification"

    @property
    def task(self) -> Task:
        """The task without its labels, which are in the files; its name is the table's."""
        path = Path(self.path).expanduser()
        # "train" says nothing of what is in it.
        name = path.absolute().parent.name if path.stem in ("train", "all") else path.stem
        return Task(name or "table", self.kind, _METRICS[self.kind])


def find(table: Table, split: str) -> Path:
    """Finds the file of a split.

    Raises:
        UserError: there is none, more than one, or one of no known kind.
    """
    root = Path(table.path).expanduser()
    if root.is_dir():
        names = _DEV_NAMES if split == "dev" else (split,)
        files = [f"{name}{suffix}" for name in names for suffix in _READERS]
        found = [name for name in files if (root / name).is_file()]
        if len(found) == 1:
            return root / found[0]
        if found:
            raise UserError(
                f"dataset: {table.path}: {', '.join(found)} all look like its {split} file; leave "
                "one"
            )
        kinds = "|".join(suffix[1:] for suffix in _READERS)
        raise UserError(f"dataset: {table.path}: no {split}.({kinds}) in that folder; give one")
    path = root if split == "train" else Path(table.dev or "").expanduser()
    option = "dataset" if split == "train" else "dev"
    if split == "test" or (split == "dev" and table.dev is None):
        raise UserError(
            f"dataset: {table.path} is one file, and a {split} file is wanted too; give --dev FILE,"
            " or a folder of files"
        )
    if not path.is_file():
        raise UserError(f"{option}: {path}: no such file or folder; give one")
    if path.suffix not in _READERS:
        raise UserError(
            f"{option}: {path}: not a {', '.join(_READERS)} file; give the table in one of these"
        )
    return path


def check_table(table: Table, split: str) -> Path:
    """Finds the file of a split, and checks that it has the table's columns.

    Raises:
        UserError: there is no such file, or a column is missing.
    """
    path = find(table, split)
    required = dict.fromkeys(table.text_columns, "text_columns")
    check_columns(path, header_of(path), {**required, table.label_column: "label_column"})
    return path


def open_table(
    table: Table, split: str, *, labels: Sequence[str] = (), strict: bool = False
) -> TaskData:
    """Reads one split of a table.

    Args:
        table: what to read.
        split: "train" or "dev"; "test" where the folder has it.
        labels: in the order of their numbers; by default the training file's.
        strict: raise at the first row that cannot be used.

    Raises:
        UserError: a file or a column is missing; in strict mode, a bad row.
    """
    path = check_table(table, split)
    is_scored = bool(labels) or split != "train"
    if table.kind != "regression" and not labels and split != "train":
        labels = open_table(table, "train").task.labels
    task = replace(table.task, labels=tuple(labels))
    records = _READERS[path.suffix]
    if path.suffix == ".csv":
        records = partial(
            records, label_column=table.label_column, values=table.kind == "regression"
        )
    reader = _reader(table, records)
    return collect(task, path, reader, strict=strict, is_scored=is_scored)


def _reader(table: Table, records: Callable[..., Iterator[tuple[int, dict[str, Any]]]]) -> Reader:
    def read(path: Path, bad: BadRows) -> Iterator[Row]:
        for line, record in records(path, bad):
            texts = [record.get(column) for column in table.text_columns]
            label = record.get(table.label_column)
            missing = next(
                (c for c in table.text_columns if not isinstance(record.get(c), str)), ""
            )
            if missing:
                bad.add(path, line, f"has no text in {missing!r}")
            elif label is None or not str(label).strip():
                bad.add(path, line, f"has nothing in {table.label_column!r}")
            else:
                yield line, tuple(str(text) for text in texts), label

    return read
