"""Reads CLUE's classification tasks from the JSON lines in which they are published."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from .rows import BadRows, read_json_records
from .task import Reader, Row, Task, TaskData, collect, find_file

_NLI = ("entailment", "neutral", "contradiction")
_BETWEEN_KEYWORDS = re.compile(r"[\s,;|，；、]+")
_Texts = Callable[[dict[str, Any]], tuple[str, ...]]


def _text(record: Any, key: str) -> str:
    """Returns a record's text.

    Raises:
        UserError: what is there is none.
    """
    if not isinstance(record[key], str):
        raise UserError(f"has no text in {key!r}")
    return str(record[key])


def _pair(record: dict[str, Any]) -> tuple[str, ...]:
    return _text(record, "sentence1"), _text(record, "sentence2")


def _sentence(record: dict[str, Any]) -> tuple[str, ...]:
    return (_text(record, "sentence"),)


def _keywords(record: dict[str, Any]) -> tuple[str, ...]:
    """Returns the keywords, a list in CLUE and one string in other copies, and the abstract."""
    keywords = record["keyword"]
    if isinstance(keywords, str):
        keywords = _BETWEEN_KEYWORDS.split(keywords.strip())
    if not isinstance(keywords, list) or not all(isinstance(word, str) for word in keywords):
        raise UserError("has no texts in 'keyword'")
    return " ".join(keyword for keyword in keywords if keyword), _text(record, "abst")


def _marked_spans(record: dict[str, Any]) -> tuple[str, ...]:
    """Marks ``_name_`` around the name and ``[it]`` around the pronoun in the text.

    Raises:
        UserError: a span's text does not stand at its index, and not at one other place alone; or
            something is no text.
    """
    target = record["target"]
    text = _text(record, "text")
    spans = [
        (_place_of(text, _text(target, f"{span}_text"), target[f"{span}_index"]), span, *marks)
        for span, marks in (("span1", "__"), ("span2", "[]"))
    ]
    # From the back, so that the places of the other span stay.
    for start, span, opening, closing in sorted(spans, reverse=True):
        end = start + len(target[f"{span}_text"])
        text = text[:start] + opening + text[start:end] + closing + text[end:]
    return (text,)


def _place_of(text: str, span: str, index: int) -> int:
    """Finds where a span begins: some files count the characters of its text otherwise."""
    if span and index >= 0 and text.startswith(span, index):
        return index
    if not span or text.count(span) != 1:
        raise UserError(f"the span {span!r} is not at character {index} of the text")
    return text.index(span)


@dataclass(frozen=True)
class _Files:
    task: Task
    texts: _Texts
    train: tuple[str, ...] = ("train.json",)

    @property
    def folders(self) -> tuple[str, ...]:
        return self.task.name, f"{self.task.name}_public"


def _classes(name: str, *labels: str) -> Task:
    return Task(name, "classification", ("accuracy",), labels)


_TASKS = {
    files.task.name: files
    for files in (
        _Files(_classes("tnews"), _sentence),
        _Files(_classes("afqmc", "0", "1"), _pair),
        _Files(_classes("iflytek"), _sentence),
        _Files(_classes("ocnli", *_NLI), _pair, ("train.json", "train.50k.json")),
        _Files(_classes("cmnli", *_NLI), _pair),
        _Files(_classes("csl", "0", "1"), _keywords),
        _Files(_classes("cluewsc2020", "false", "true"), _marked_spans),
    )
}
NAMES = tuple(_TASKS)
PAIRS = tuple(name for name, files in _TASKS.items() if files.texts in (_pair, _keywords))


def task_of(name: str) -> Task:
    """Returns the task of one of `NAMES`; labels of tnews and iflytek are in their files."""
    return _TASKS[name].task


def texts_of(name: str, record: dict[str, Any]) -> tuple[str, ...]:
    """Returns the texts of a task's record, whether it has a label or not.

    Raises:
        KeyError: it has no text of a name.
        ValueError: something in it is no text, or does not fit the rest.
    """
    return _TASKS[name].texts(record)


def find(name: str, data_dir: str | Path, split: str) -> Path:
    """Finds the file of a split.

    Raises:
        UserError: there is none.
    """
    files = _TASKS[name]
    names = files.train if split == "train" else (f"{split}.json",)
    return find_file(data_dir, files.folders, names, f"{name}'s {split} file")


def open_clue(
    name: str,
    data_dir: str | Path,
    split: str,
    *,
    labels: tuple[str, ...] = (),
    strict: bool = False,
) -> TaskData:
    """Reads one split of a CLUE task.

    Args:
        name: one of `NAMES`.
        data_dir: its folder, or one that holds it.
        split: "train", "dev" or "test" (where that has labels).
        labels: in the order of their numbers; by default those of ``labels.json`` beside the file,
            else those of the training file.
        strict: raise at the first row that cannot be used.

    Raises:
        UserError: a file is missing; in strict mode, a bad row.
    """
    files = _TASKS[name]
    path = find(name, data_dir, split)
    is_scored = bool(labels) or split != "train"
    labels = labels or files.task.labels or _published_labels(path.parent / "labels.json")
    if not labels and split != "train":
        labels = open_clue(name, data_dir, "train").task.labels
    task = replace(files.task, labels=labels)
    return collect(task, path, _reader(files.texts), strict=strict, is_scored=is_scored)


def _published_labels(path: Path) -> tuple[str, ...]:
    """Returns the labels of a file of them, each once; none where there is no such file.

    Raises:
        UserError: a record has none.
    """
    if not path.is_file():
        return ()
    bad = BadRows()
    records = list(read_json_records(path, bad))
    without = (line for line, record in records if not isinstance(record.get("label"), str | int))
    wrong = bad.first or next((f"{path}:{line}: has no 'label'" for line in without), None)
    if wrong is not None:
        raise UserError(
            f'{wrong}; give a line {{"label": "100"}} for each label, or take the file away'
        )
    return tuple(dict.fromkeys(str(record["label"]) for _, record in records))


def _reader(texts: _Texts) -> Reader:
    def read(path: Path, bad: BadRows) -> Iterator[Row]:
        for line, record in read_json_records(path, bad):
            # "-" marks pairs on which the annotators did not agree.
            if record.get("label") == "-":
                continue
            try:
                yield line, texts(record), record["label"]
            except KeyError as error:
                bad.add(path, line, f"has no {error.args[0]!r}")
            except (TypeError, ValueError) as error:
                bad.add(path, line, str(error))

    return read
