"""Reads GLUE's ten tasks from the TSV files in which they are published.

Every file but CoLA's has a header, so columns are found by name. Quotes are not special.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import UserError
from ...foreign import UnreadableError, read_text
from .rows import BadRows, check_columns, header_of, read_tab_separated
from .task import Reader, Row, Task, TaskData, collect, find_file

_COLA_COLUMNS = ("source", "label", "mark", "sentence")
_PAIR = ("sentence1", "sentence2")
_MRPC_TRAIN, _MRPC_TEST = "msr_paraphrase_train.txt", "msr_paraphrase_test.txt"


@dataclass(frozen=True)
class _Files:
    """Says where a task's files are, and what their columns are called."""

    task: Task
    folders: tuple[str, ...]
    texts: tuple[str, ...]
    label: str
    train: tuple[str, ...] = ("train.tsv",)
    dev: tuple[str, ...] = ("dev.tsv",)
    test: tuple[str, ...] = ("test.tsv",)


def _classes(name: str, *labels: str, metrics: tuple[str, ...] = ("accuracy",)) -> Task:
    return Task(name, "classification", metrics, labels)


_NLI = ("entailment", "neutral", "contradiction")
_F1 = ("f1", "accuracy")
_TASKS = {
    files.task.name: files
    for files in (
        _Files(_classes("rte", "entailment", "not_entailment"), ("RTE",), _PAIR, "label"),
        _Files(
            _classes("mrpc", "0", "1", metrics=_F1), ("MRPC",), ("#1 String", "#2 String"),
            "Quality", train=("train.tsv", _MRPC_TRAIN),
            # Without dev_ids.tsv the published test file, which has labels, is what there is.
            dev=("dev.tsv", "dev_ids.tsv", _MRPC_TEST), test=("test.tsv", _MRPC_TEST),
        ),
        _Files(
            Task("stsb", "regression", ("spearman", "pearson")), ("STS-B", "STSB"), _PAIR, "score"
        ),
        _Files(_classes("sst2", "0", "1"), ("SST-2", "SST2"), ("sentence",), "label"),
        _Files(
            _classes("qnli", "entailment", "not_entailment"), ("QNLI",), ("question", "sentence"),
            "label",
        ),
        _Files(
            _classes("qqp", "0", "1", metrics=_F1), ("QQP",), ("question1", "question2"),
            "is_duplicate",
        ),
        _Files(
            _classes("mnli", *_NLI), ("MNLI",), _PAIR, "gold_label",
            dev=("dev_matched.tsv",), test=("test_matched.tsv",),
        ),
        _Files(
            _classes("mnlimm", *_NLI), ("MNLI",), _PAIR, "gold_label",
            dev=("dev_mismatched.tsv",), test=("test_mismatched.tsv",),
        ),
        _Files(
            _classes("cola", "0", "1", metrics=("matthews", "accuracy")), ("CoLA",),
            ("sentence",), "label",
        ),
        _Files(_classes("wnli", "0", "1"), ("WNLI",), _PAIR, "label"),
    )
}  # fmt: skip
NAMES = tuple(_TASKS)


def task_of(name: str) -> Task:
    """Returns the task of one of `NAMES`."""
    return _TASKS[name].task


def text_columns(name: str) -> tuple[str, ...]:
    """Returns the columns of a task's texts: one, or two of pairs."""
    return _TASKS[name].texts


def find(name: str, data_dir: str | Path, split: str) -> Path:
    """Finds the file of a split.

    Raises:
        ValueError: there is none.
    """
    files = _TASKS[name]
    names = {"train": files.train, "dev": files.dev}.get(split, files.test)
    return find_file(data_dir, files.folders, names, f"{name}'s {split} file")


def open_glue(
    name: str,
    data_dir: str | Path,
    split: str,
    *,
    labels: tuple[str, ...] = (),
    strict: bool = False,
) -> TaskData:
    """Reads one split of a GLUE task.

    MRPC is read from ``train.tsv`` and ``dev.tsv``, or from the corpus as Microsoft publishes it
    (``msr_paraphrase_train.txt``, with the ids of the dev part in ``dev_ids.tsv``; without those
    the dev part is ``msr_paraphrase_test.txt``).

    Args:
        name: one of `NAMES`.
        data_dir: its folder, or one that holds it.
        split: "train", "dev" or "test" (where that has labels).
        labels: the task's own in another order of numbers.
        strict: raise at the first row that cannot be used.

    Raises:
        ValueError: a file is missing or has not the task's columns; in strict mode, a bad row.
    """
    files = _TASKS[name]
    task = replace(files.task, labels=labels or files.task.labels)
    path = find(name, data_dir, split)
    reading = {"strict": strict, "is_scored": bool(labels) or split != "train"}
    if path.name == "dev_ids.tsv":
        return collect(task, path.parent / _MRPC_TRAIN, _mrpc(path, True), **reading)
    ids = path.parent / "dev_ids.tsv"
    if path.name == _MRPC_TRAIN and ids.is_file():
        return collect(task, path, _mrpc(ids, False), **reading)
    return collect(task, path, _reader(files), **reading)


def _reader(files: _Files) -> Reader:
    def read(path: Path, bad: BadRows) -> Iterator[Row]:
        columns = _COLA_COLUMNS if files.task.name == "cola" else None
        if columns is None:
            required = dict.fromkeys((*files.texts, files.label), files.task.name)
            check_columns(path, header_of(path), required)
        for line, row in read_tab_separated(path, bad, columns):
            label = row[files.label]
            # MNLI marks pairs on which the annotators did not agree.
            if label != "-":
                yield line, tuple(row[column] for column in files.texts), label

    return read


def _mrpc(ids_path: Path, inside: bool) -> Reader:
    """Rows of the training file whose ids are in ``dev_ids.tsv``, or those whose are not."""
    try:
        ids = {tuple(line.split("\t")) for line in read_text(ids_path).splitlines()}
    except UnreadableError as error:
        raise UserError(f"{ids_path}: {error}; copy the task's folder again") from None
    files = _TASKS["mrpc"]

    def read(path: Path, bad: BadRows) -> Iterator[Row]:
        required = dict.fromkeys((*files.texts, files.label, "#1 ID", "#2 ID"), "mrpc")
        check_columns(path, header_of(path), required)
        for line, row in read_tab_separated(path, bad):
            if ((row["#1 ID"], row["#2 ID"]) in ids) == inside:
                yield line, tuple(row[column] for column in files.texts), row[files.label]

    return read
