"""What a task is, and what a file of one holds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import UserError
from .rows import NO_TEXT, SAVE_AS_TEXT, BadRows

Kind = Literal["classification", "regression", "tagging"]
_MANY = 10  # a file with fewer bad rows may be a trial


@dataclass(frozen=True)
class Task:
    """A task of sentences, pairs of them, or words.

    Attributes:
        name: as on the command line: "sst2", "ner", …; of a table, its file's.
        kind: a class each, a number each, or a tag for every word.
        metrics: names in :mod:`.metrics`; the first one decides which model is best.
        labels: in the order of their numbers; empty for regression.
    """

    name: str
    kind: Kind
    metrics: tuple[str, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskData:
    """One file of a task.

    Attributes:
        task: with its labels.
        path: the file.
        texts: of each sample, its text, its two texts, or its words.
        labels: of each sample, its label's number, its value, or its words' label numbers.
        bad: the rows that were left out.
    """

    task: Task
    path: Path
    texts: list[tuple[str, ...]]
    labels: list[Any]
    bad: BadRows

    def __len__(self) -> int:
        return len(self.texts)


# (line, texts, the label as it is written, or the words' tags)
Row = tuple[int, tuple[str, ...], Any]
Reader = Callable[[Path, BadRows], Iterable[Row]]


def collect(task: Task, path: Path, reader: Reader, *, strict: bool = False) -> TaskData:
    """Reads a file into samples whose labels are numbers.

    Args:
        task: without labels, they are those that the file has, in order.
        path: the file.
        reader: gives its rows.
        strict: raise at the first row that cannot be used.

    Raises:
        UserError: no row can be used, or a bad one in strict mode.
    """
    bad = BadRows(strict)
    rows = list(reader(path, bad))
    if task.kind != "regression" and not task.labels:
        task = Task(task.name, task.kind, task.metrics, labels_in_order(task, rows))
    numbers = {label: number for number, label in enumerate(task.labels)}
    texts: list[tuple[str, ...]] = []
    labels: list[Any] = []
    for line, sample, written in rows:
        problem, label = _label(task, written, numbers)
        if not any(text.strip() for text in sample):
            problem = "has no text"
        if problem is not None:
            bad.add(path, line, problem)
            continue
        texts.append(sample)
        labels.append(label)
    _check_most_fit(task, path, len(texts), bad)
    return TaskData(task, path, texts, labels, bad)


def _check_most_fit(task: Task, path: Path, used: int, bad: BadRows) -> None:
    """Refuses a file of which so much is left out that it is not what it was taken for.

    Raises:
        UserError: no row can be used, or more are left out than are used.
    """
    if used > bad.count:
        return
    remedy = "give its files in the usual layout (docs/finetuning.md)"
    if bad.first is not None and bad.first.endswith(NO_TEXT):
        remedy = SAVE_AS_TEXT
    if not used:
        raise UserError(
            f"{bad.first or f'{path}: has no rows'}; none of the rows can be used for {task.name}: "
            f"{remedy}"
        )
    if bad.count >= _MANY:
        raise UserError(
            f"{bad.first}; {bad.count:,} of {used + bad.count:,} rows cannot be used for "
            f"{task.name}: {remedy}"
        )


def labels_in_order(task: Task, rows: Iterable[Row]) -> tuple[str, ...]:
    """Numbers by size, other labels by name; of tags, O first."""
    found: set[str] = set()
    for _, _, written in rows:
        found.update(written if task.kind == "tagging" else [str(written)])
    if all(label.isdecimal() for label in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found, key=lambda label: (label != "O", label)))


def _label(task: Task, written: Any, numbers: dict[str, int]) -> tuple[str | None, Any]:
    """(what is wrong, the label)."""
    if task.kind == "regression":
        try:
            value = float(written)
        except (TypeError, ValueError):
            return f"its value {written!r} is no number", None
        # Also true of not-a-number.
        return (None, value) if abs(value) < 1e30 else (f"its value {written!r} is no number", None)
    if task.kind == "tagging":
        unknown = next((tag for tag in written if tag not in numbers), None)
        if unknown is not None:
            return f"the tag {unknown!r} is none of {_some(task.labels)}", None
        return None, [numbers[tag] for tag in written]
    label = str(written)
    if label not in numbers:
        return f"the label {label!r} is none of {_some(task.labels)}", None
    return None, numbers[label]


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:12])
    return shown + ", …" * (len(labels) > 12)


def find_file(
    data_dir: str | Path, folders: Sequence[str], names: Sequence[str], task: str
) -> Path:
    """The first of some files in a folder, or in one of its folders of a task's usual names.

    Raises:
        UserError: there is none.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"data_dir: {data_dir}: no such folder; give the one of the task's files")
    usual = {folder.lower() for folder in folders}
    places = [root, *sorted(p for p in root.iterdir() if p.is_dir() and p.name.lower() in usual)]
    for place in places:
        for name in names:
            if (place / name).is_file():
                return place / name
    looked = f", nor in a folder {' or '.join(folders)}" if folders else ""
    raise UserError(
        f"data_dir: {data_dir}: no {' or '.join(names)} ({task}) in it{looked}; give the folder "
        "of the task's usual files"
    )
