"""Defines what a task is, and collects what a file of one holds."""

import difflib
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ...errors import UserError
from ...foreign import is_whole_number
from .rows import BadRows, number_of

Kind = Literal["classification", "regression", "tagging"]
_MANY = 10  # a file with fewer bad rows may be a trial
_MANY_LINES = 3  # that are no UTF-8: fewer may be damage
_SHOWN = 12


@dataclass(frozen=True)
class Task:
    """Describes a task of sentences, pairs of them, or words.

    Attributes:
        name: as on the command line: "sst2", "ner", …; of a table, its file's.
        kind: a class each, a number each, or a tag for every word.
        metrics: names in :mod:`.metrics`; the first one decides which model is best.
        labels: in the order of their numbers; empty for regression.
        unlearnt: of a file to score on, its labels that are none of ``labels``. Their numbers
            follow those of ``labels``, so that no prediction equals them.
    """

    name: str
    kind: Kind
    metrics: tuple[str, ...]
    labels: tuple[str, ...] = ()
    unlearnt: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskData:
    """Holds the samples of one file of a task.

    Attributes:
        task: with its labels.
        path: the file.
        texts: of each sample, its text, its two texts, or its words.
        labels: of each sample, its label's number, its value, or its words' label numbers.
        bad: the rows that were left out.
        unknown: of each label that is none of the task's, how many rows have it. Those rows are
            left out of a file to train on, and count as wrong in one to score on.
    """

    task: Task
    path: Path
    texts: list[tuple[str, ...]]
    labels: list[Any]
    bad: BadRows
    unknown: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.texts)


# (line, texts, the label as it is written, or the words' tags)
Row = tuple[int, tuple[str, ...], Any]
Reader = Callable[[Path, BadRows], Iterable[Row]]


def collect(
    task: Task, path: Path, reader: Reader, *, strict: bool = False, is_scored: bool = False
) -> TaskData:
    """Reads a file into samples whose labels are numbers.

    Args:
        task: without labels, they are those that the file has, in order.
        path: the file.
        reader: gives its rows.
        strict: raise at the first row that cannot be used.
        is_scored: predictions are scored on this file: a row whose label is none of the task's
            stays, and whatever is predicted of it is wrong.

    Raises:
        UserError: no row can be used, or most cannot; in strict mode, a bad one.
    """
    bad = BadRows(strict)
    rows = []
    for line, sample, written in reader(path, bad):
        problem, target = _target(task, written)
        labels = [] if task.kind == "regression" else target
        problem = problem or _damage_of((*sample, *labels))
        if problem is None:
            rows.append((line, sample, target))
        else:
            bad.add(path, line, problem)
    if task.kind != "regression" and not task.labels:
        task = replace(task, labels=_labels_in_order(target for _, _, target in rows))
    numbers: dict[str, int] = {}
    for number, name in enumerate(task.labels):
        # A model may know both spellings of one.
        numbers[_normal(name) if _normal(name) not in numbers else name] = number
    task_labels = frozenset(numbers)
    data = TaskData(task, path, [], [], bad)
    label: Any
    for line, sample, target in rows:
        row_labels = [] if task.kind == "regression" else target
        unknown_labels = {name for name in row_labels if name not in task_labels}
        data.unknown.update(unknown_labels)
        problem = None
        if task.kind == "regression":
            label = target
        elif unknown_labels and (strict or not is_scored):
            kind = "tag" if task.kind == "tagging" else "label"
            problem = f"the {kind} {min(unknown_labels)!r} is none of {_listed(task.labels)}"
        else:
            label = [numbers.setdefault(name, len(numbers)) for name in row_labels]
            label = label if task.kind == "tagging" else label[0]
        if not any(text.strip() for text in sample):
            problem = "has no text"
        if problem is not None:
            bad.add(path, line, problem)
            continue
        data.texts.append(sample)
        data.labels.append(label)
    data = replace(data, task=replace(task, unlearnt=tuple(numbers)[len(task.labels) :]))
    _check_most_fit(data)
    return data


def unlearnt_rows(data: TaskData) -> int:
    """Counts samples with a label that the task has not, so that any prediction is wrong."""
    labels = len(data.task.labels)
    if not data.task.unlearnt:
        return 0
    if data.task.kind == "tagging":
        return sum(max(numbers, default=0) >= labels for numbers in data.labels)
    return sum(number >= labels for number in data.labels)


def unknown_in_words(data: TaskData) -> str:
    """Names the labels that are none of the task's, with their rows and likely spellings.

    As ``dev.tsv: 'positiv' (20 rows; did you mean 'positive'?) is none of negative, positive``.

    ``data.unknown`` has at least one.
    """
    names = []
    for label, count in data.unknown.most_common(_SHOWN):
        near = difflib.get_close_matches(label, data.task.labels, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        names.append(f"{label!r} ({count:,} row{'s' * (count != 1)}{hint})")
    more = ", …" if len(data.unknown) > _SHOWN else ""
    verb = "is" if len(data.unknown) == 1 else "are"
    return f"{data.path}: {', '.join(names)}{more} {verb} none of {_listed(data.task.labels)}"


def _check_most_fit(data: TaskData) -> None:
    """Refuses a file of which so much cannot be used that it is not what it was taken for.

    Raises:
        UserError: it is in another encoding, no row can be used, or fewer than cannot.
    """
    bad, path, name = data.bad, data.path, data.task.name
    if bad.num_undecodable >= _MANY_LINES and bad.num_undecodable > bad.num_beyond_ascii:
        lines = bad.num_undecodable + bad.num_beyond_ascii
        raise UserError(
            f"{path}: is not UTF-8 in {bad.num_undecodable:,} of the {lines:,} lines that have "
            f"more than ASCII; {bad.encoding_remedy()}"
        )
    unlearnt = unlearnt_rows(data)
    used, unused = len(data) - unlearnt, bad.count + unlearnt
    if used > unused:
        return
    if unlearnt > bad.count and (not used or unused >= _MANY):
        raise UserError(
            f"{unknown_in_words(data)}; {used:,} of {used + unused:,} rows have a known label: "
            f"give {name}'s own files, or a model of these labels"
        )
    remedy = "give its files in the usual layout (docs/finetuning.md)"
    if bad.undecodable and not used:
        remedy = bad.encoding_remedy()
    if not used:
        raise UserError(
            f"{bad.first or f'{path}: has no rows'}; none of the rows can be used for {name}: "
            f"{remedy}"
        )
    if unused >= _MANY:
        raise UserError(
            f"{bad.first}; {unused:,} of {used + unused:,} rows cannot be used for {name}: {remedy}"
        )


def _labels_in_order(targets: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Orders a file's labels: numbers by size, others by name; of tags, O first."""
    labels = {label for names in targets for label in names}
    if all(is_whole_number(label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels, key=lambda label: (label != "O", label)))


def _target(task: Task, written: Any) -> tuple[str | None, Any]:
    """Reads what a row is to be predicted as: (what is wrong, its number, label or tags)."""
    if task.kind == "regression":
        number = number_of(written)
        return (f"its value {written!r:.60} is no number" if number is None else None), number
    if task.kind == "tagging":
        return None, written if "".join(written).isascii() else [*map(_normal, written)]
    if isinstance(written, bool):  # of JSON
        return None, [str(written).lower()]
    if isinstance(written, str | int) or (isinstance(written, float) and math.isfinite(written)):
        return None, [_normal(str(written).strip())]
    return f"its label {written!r:.60} is neither text nor a number", []


def _normal(label: str) -> str:
    """Composes accents, which look the same in one character and in two."""
    return label if label.isascii() else unicodedata.normalize("NFC", label)


def _damage_of(texts: Iterable[Any]) -> str | None:
    """Says why texts of a row, as JSON may hold them, are none; None where they are."""
    try:
        "".join(texts).encode()
    except TypeError:
        return "has something else where a text should be"
    except UnicodeEncodeError:
        return "has one half of a character (a lone surrogate)"
    return None


def similar_labels(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups labels that look like one label: by case, blanks, invisible marks, or as numbers."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(_likeness(label), []).append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _likeness(label: str) -> str:
    visible = (mark for mark in label if unicodedata.category(mark) not in ("Cf", "Cc"))
    text = "".join(unicodedata.normalize("NFKC", "".join(visible)).casefold().split())
    number = number_of({"true": "1", "false": "0"}.get(text, text))
    return text if number is None else str(number)


def places_of_labels(model: Sequence[str], task: Sequence[str]) -> list[int] | None:
    """Finds where each of a task's labels stands among a model's, by name.

    Args:
        model: its labels in the order of their numbers.
        task: the task's.

    Returns:
        Of each of the task's labels its number in the model. Case does not count where names differ
        by more than that. None where the two do not have the same names.
    """
    for spelling in (str, str.casefold):
        numbers = {spelling(label): number for number, label in enumerate(model)}
        spelt = [spelling(label) for label in task]
        if len(numbers) == len(model) == len(task) and numbers.keys() == set(spelt):
            return [numbers[label] for label in spelt]
    return None


def _listed(labels: Sequence[str]) -> str:
    first = ", ".join(labels[:_SHOWN])
    return first + ", …" * (len(labels) > _SHOWN)


def data_folder(data_dir: str | Path) -> Path:
    """Returns the folder of a task's files.

    Raises:
        UserError: there is none.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"data_dir: {data_dir}: no such folder; give the one of the task's files")
    return root


def find_file(
    data_dir: str | Path, folders: Sequence[str], names: Sequence[str], task: str
) -> Path:
    """Finds the first of some files in a folder, or in its folders of a task's usual names.

    Raises:
        UserError: there is none.
    """
    root = data_folder(data_dir)
    usual = {folder.lower() for folder in folders}
    inner = sorted(p for p in root.iterdir() if p.is_dir() and p.name.lower() in usual)
    for folder in (root, *inner):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    looked = f", nor in a folder {' or '.join(folders)}" if folders else ""
    raise UserError(
        f"data_dir: {data_dir}: no {' or '.join(names)} ({task}) in it{looked}; give the folder "
        "of the task's usual files"
    )
