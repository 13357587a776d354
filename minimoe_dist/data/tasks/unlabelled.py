"""Reads texts without labels: lines, tables, words in columns, and tasks' own test files.

Each text is to have a prediction, in the order of the file, so that nothing is left out: a row that
cannot be read is an error.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from . import clue, glue
from .rows import (
    BadRows,
    Lines,
    check_columns,
    damage_of,
    header_of,
    read_json_records,
    read_tab_separated,
    read_values,
)

TABLES = (".tsv", ".csv", ".json", ".jsonl")
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Unlabelled:
    """A text, a pair of them, or a sentence's words.

    Attributes:
        name: by which a task's file calls it; its number where it has no name.
        texts: of it; all empty where the line is.
    """

    name: str | int
    texts: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to predict anything of."""
        return not any(text.strip() for text in self.texts)


def read_lines(path: str, *, words: bool, pairs: bool) -> Iterator[Unlabelled]:
    """Yields a file's lines, or those of standard input as they come.

    Args:
        path: of the file; "-" for standard input.
        words: a line is a sentence, its words between blanks.
        pairs: a line has two texts, with a tab between them.

    Raises:
        UserError: the file cannot be read, a line is not UTF-8, or is no pair.
    """
    source = Path("standard input" if path == STANDARD_INPUT else path)
    lines: Iterable[str]
    if path == STANDARD_INPUT:
        lines = (_text(raw) for raw in sys.stdin.buffer)
    else:
        lines = Lines(source, BadRows())
    for number, line in enumerate(lines):
        _refuse(source, number + 1, damage_of([line]))
        texts = tuple(line.split()) if words else tuple(line.split("\t")) if pairs else (line,)
        if pairs and line.strip() and len(texts) != 2:
            _refuse(source, number + 1, f"has {len(texts) - 1} tabs, and two texts have one")
        yield Unlabelled(number, texts or ("",))


def read_words(path: Path, column: int) -> Iterator[Unlabelled]:
    """Yields sentences of a file with a word a line; empty lines are between them.

    Args:
        path: of the file.
        column: of the words, from 1, between tabs or blanks.

    Raises:
        UserError: the file cannot be read, or a line has not that many columns or is not UTF-8.
    """
    words: list[str] = []
    count = 0
    lines = Lines(path, BadRows())
    for line in lines:
        _refuse(path, lines.number, damage_of([line]))
        values = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or values[0] == "-DOCSTART-":
            if words:
                yield Unlabelled(count, tuple(words))
                words, count = [], count + 1
            continue
        if len(values) < column:
            _refuse(path, lines.number, f"has no column {column}; check --word_column")
        words.append(values[column - 1].strip())
    if words:
        yield Unlabelled(count, tuple(words))


def read_table(path: Path, columns: tuple[str, ...]) -> Iterator[Unlabelled]:
    """Yields the rows of a TSV, CSV or JSON table.

    Raises:
        UserError: the file cannot be read, a column is missing, or a row has no text in it.
    """
    check_columns(path, header_of(path), dict.fromkeys(columns, "text_columns"))
    bad = BadRows()
    rows = read_values(path, bad)
    for number, (line, record) in enumerate(_all(rows, bad)):
        texts = tuple(record.get(column) for column in columns)
        wrong = next((c for c, text in zip(columns, texts, strict=True) if text is None), None)
        if wrong is not None or not all(isinstance(text, str) for text in texts):
            _refuse(path, line, f"has no text in {wrong or columns[0]!r}")
        yield Unlabelled(number, tuple(map(str, texts)))


def read_task(name: str, path: Path) -> Iterator[Unlabelled]:
    """Yields the samples of a GLUE or CLUE file, by the names that its submission has.

    Raises:
        UserError: the file cannot be read, or a row is not the task's.
    """
    bad = BadRows()
    if name in glue.NAMES:
        texts = glue.text_columns(name)
        check_columns(path, header_of(path), dict.fromkeys(texts, name))
        for number, (_, row) in enumerate(_all(read_tab_separated(path, bad), bad)):
            own = row.get("index", row.get("id", str(number)))
            yield Unlabelled(own, tuple(row[column] for column in texts))
        return
    for number, (line, record) in enumerate(_all(read_json_records(path, bad), bad)):
        try:
            found = clue.texts_of(name, record)
        except KeyError as error:
            _refuse(path, line, f"has no {error.args[0]!r}")
        except (TypeError, ValueError) as error:
            _refuse(path, line, str(error))
        own = record.get("id", number)
        yield Unlabelled(own if isinstance(own, str | int) else number, found)


def _all(
    rows: Iterator[tuple[int, dict[str, Any]]], bad: BadRows
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields rows; raises at the first one that is none."""
    for row in rows:
        if bad.count:
            break
        yield row
    if bad.count:
        raise UserError(f"{bad.first}; each row has to have a prediction: correct it")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape").rstrip("\r\n")


def _refuse(path: Path, line: int, problem: str | None) -> None:
    if problem is not None:
        raise UserError(f"{path}:{line}: {problem}; each line has to have a prediction: correct it")
