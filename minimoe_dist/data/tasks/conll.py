"""Tags of words from files in columns: a word a line, an empty line between sentences.

The first column is the word, the last one its tag; columns are separated by a tab or by blanks.
CoNLL-2003 has four of them and ``-DOCSTART-`` lines; Chinese files in BIO, BMES, BMEO or BIOES
have two, of which the first is a character. WikiANN's words have their language before them
(``en:Paris``), which is taken off where every word of a file has the same.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import UserError
from .rows import BadRows, Lines, columns_in_words
from .task import Reader, Row, Task, TaskData, collect

NAMES = ("ner", "conll2003")
_METRICS = ("chunk_f1", "chunk_precision", "chunk_recall", "accuracy")
_DOCUMENT_START = "-DOCSTART-"
# CoNLL-2003's own file names say "testa" for the dev part.
_SPLIT_WORDS = {
    "train": ("train",),
    "dev": ("dev", "valid", "validation", "testa"),
    "test": ("test", "testb"),
}
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*:")
_NO_DATA = (".md", ".py", ".json", ".gz", ".zip", ".tgz")


def task_of(name: str) -> Task:
    """A task of one of `NAMES`; its tags are in its files."""
    return Task(name, "tagging", _METRICS)


def find(name: str, data_dir: str | Path, split: str) -> Path:
    """The file of a split, such as ``train.txt``, ``eng.testa`` or ``dev.char.bmes``.

    Raises:
        UserError: there is none, or more than one.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"data_dir: {data_dir}: no such folder; give the one of the task's files")
    words = _SPLIT_WORDS[split]
    found = [
        path
        for path in sorted(root.iterdir())
        if path.is_file()
        and path.suffix not in _NO_DATA
        and any(part in words for part in re.split(r"[._-]", path.name.lower()))
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            f"data_dir: {data_dir}: no {split} file of {name} in it; give a folder with "
            "train.txt and dev.txt in columns"
        )
    names = ", ".join(path.name for path in found)
    raise UserError(f"data_dir: {data_dir}: {names} all look like its {split} file; leave one")


def open_conll(
    name: str,
    data_dir: str | Path,
    split: str,
    *,
    labels: tuple[str, ...] = (),
    strict: bool = False,
) -> TaskData:
    """Reads one split.

    Args:
        name: one of `NAMES`.
        data_dir: the folder of the files.
        split: "train", "dev" or "test".
        labels: tags in the order of their numbers; by default the training file's.
        strict: raise at the first sentence that cannot be used.

    Raises:
        UserError: a file is missing, or not in columns; in strict mode, a bad row.
    """
    if not labels and split != "train":
        labels = open_conll(name, data_dir, "train").task.labels
    task = Task(name, "tagging", _METRICS, labels)
    return collect(task, find(name, data_dir, split), _reader(), strict=strict)


def _reader() -> Reader:
    def read(path: Path, bad: BadRows) -> Iterator[Row]:
        rows = list(_sentences(path, bad))
        length = len(_language_of(rows))
        for line, words, tags in rows:
            yield line, tuple(word[length:] for word in words), tags

    return read


def _language_of(rows: list[Row]) -> str:
    """What all words begin with where that is a language and a colon, else nothing."""
    found = _LANGUAGE.match(rows[0][1][0]) if rows else None
    prefix = found[0] if found else ""
    return prefix if all(word.startswith(prefix) for _, words, _ in rows for word in words) else ""


def _sentences(path: Path, bad: BadRows) -> Iterator[Row]:
    words: list[str] = []
    tags: list[str] = []
    columns = first_line = 0
    broken = False
    lines = Lines(path, bad)
    for line in lines:
        values = _columns_of(line)
        if not values or values[0] == _DOCUMENT_START:
            if words and not broken:
                yield first_line, tuple(words), tags
            words, tags, broken = [], [], False
            continue
        columns = columns or len(values)
        if len(values) != columns or columns < 2:
            # A sentence without one of its tags is of no use.
            wanted = f"not {columns}" if columns > 1 else "not a word and its tag"
            bad.add(path, lines.number, f"has {columns_in_words(len(values))}, {wanted}")
            broken = True
            columns = 0 if columns < 2 else columns
            continue
        first_line = first_line if words else lines.number
        words.append(values[0])
        tags.append(values[-1])
    if words and not broken:
        yield first_line, tuple(words), tags


def _columns_of(line: str) -> list[str]:
    """By tabs where there are some, else by blanks: a Chinese file's word may be a wide blank."""
    if "\t" in line:
        values = line.split("\t")
        return values if any(value.strip() for value in values) else []
    return [value for value in line.split(" ") if value] if line.strip() else []
