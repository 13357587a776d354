"""Reads rows of text files with their line numbers, and counts those that cannot be used.

A file is read line by line as bytes, so that a line which is no UTF-8 spoils the row that it is
part of and nothing else. What is wrong with a row is told as file:line.
"""

import csv
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..encodings import likely_encoding

_BYTE_ORDER_MARK = "\ufeff"
# Bytes that are no UTF-8 are read as lone surrogates, which no UTF-8 text holds.
_UNDECODABLE = re.compile("[\udc80-\udcff]")
_KEPT_LINES = 1000  # of those that are no UTF-8: enough to guess the encoding from


@dataclass
class BadRows:
    """Counts the rows that were left out.

    Attributes:
        strict: raise at the first one instead of counting.
        count: rows left out so far.
        first: "file:line: what is wrong" of the first one.
        undecodable: lines that are no UTF-8 or have NUL bytes, at most the first thousand.
        num_undecodable: how many there are of those.
        num_beyond_ascii: how many of the other lines have more than ASCII.
    """

    strict: bool = False
    count: int = 0
    first: str | None = None
    undecodable: list[bytes] = field(default_factory=list, repr=False)
    num_undecodable: int = 0
    num_beyond_ascii: int = 0

    def add(self, path: Path, line: int, reason: str) -> None:
        """Takes note of a row.

        Raises:
            UserError: in strict mode.
        """
        problem = f"{path}:{line}: {reason}"
        if self.strict:
            raise UserError(f"{problem}; correct the row, or leave --strict out")
        self.count += 1
        self.first = self.first or problem

    def encoding_remedy(self) -> str:
        """Says how to make UTF-8 of the file, with the encoding that it looks like."""
        encoding = likely_encoding(self.undecodable)
        if encoding is None:
            return "save it as UTF-8"
        return f"it looks like {encoding}: save it as UTF-8, as with iconv -f {encoding} -t UTF-8"


def columns_in_words(count: int) -> str:
    """Writes a number of columns out, as "1 column" or "3 columns"."""
    return f"{count} column{'s' if count != 1 else ''}"


@dataclass
class Lines(Iterator[str]):
    """Iterates over a file's lines without their ends; :func:`damage_of` says which are no text.

    Attributes:
        path: the file.
        bad: counts the lines that are no UTF-8.
        number: of the line that was given last, from 1.
    """

    path: Path
    bad: BadRows
    number: int = 0
    _raw_lines: Iterator[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._raw_lines = self._read()

    def __next__(self) -> str:
        raw = next(self._raw_lines)
        self.number += 1
        text = raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if not text.isascii() or "\0" in text:
            self._note(raw, text)
        return text.removeprefix(_BYTE_ORDER_MARK) if self.number == 1 else text

    def _note(self, raw: bytes, text: str) -> None:
        if "\0" not in text and not _UNDECODABLE.search(text):
            self.bad.num_beyond_ascii += 1
            return
        self.bad.num_undecodable += 1
        if len(self.bad.undecodable) < _KEPT_LINES:
            self.bad.undecodable.append(raw)

    def _read(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from file


def damage_of(values: Iterable[str]) -> str | None:
    """Says why lines of :class:`Lines`, or parts of them, are no text; None where they are."""
    for value in values:
        if not value.isascii() and _UNDECODABLE.search(value):
            return "is not UTF-8"
        if "\0" in value:
            return "has a NUL byte"
    return None


def read_tab_separated(
    path: Path, bad: BadRows, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line, column -> value) of a TSV file in which quotes are text like any other.

    Args:
        path: the file.
        bad: gets rows with another number of columns.
        columns: their names; None takes them from the first line.
    """
    lines = Lines(path, bad)
    if columns is None:
        columns = next(lines, "").split("\t")
    yield from _complete_rows(lines, (line.split("\t") for line in lines), columns)


def read_comma_separated(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line, column -> value) of a CSV file with a header; quoted values may span lines."""
    lines = Lines(path, bad)
    rows = _readable_rows(csv.reader(line + "\n" for line in lines), lines)
    columns = next(rows, [])
    yield from _complete_rows(lines, rows, columns)


def _complete_rows(
    lines: Lines, rows: Iterable[list[str]], columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line, column -> value) of the rows that are text and have a value for each column."""
    for values in rows:
        if not any(value.strip() for value in values):
            continue
        problem = damage_of(values)
        if problem is None and len(values) != len(columns):
            problem = f"has {columns_in_words(len(values))}, not {len(columns)}"
        if problem is not None:
            lines.bad.add(lines.path, lines.number, problem)
        else:
            yield lines.number, dict(zip(columns, values, strict=True))


def _readable_rows(rows: Iterator[list[str]], lines: Lines) -> Iterator[list[str]]:
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            lines.bad.add(
                lines.path, lines.number, f"is no row of a CSV file ({error}); is a quote open?"
            )


def read_json_records(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line, record) of JSON lines, or of one array, whose records are counted as lines.

    Raises:
        UserError: an array that is no JSON.
    """
    with path.open("rb") as file:
        is_array = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    records: Iterator[tuple[int, Any]]
    if is_array:
        try:
            records = enumerate(json.loads(path.read_text("utf-8-sig")), start=1)
        except ValueError as error:
            raise UserError(f"{path}: is no JSON ({error}); give an array or JSON lines") from None
    else:
        records = _json_lines(path, bad)
    for number, record in records:
        if isinstance(record, dict):
            yield number, record
        else:
            bad.add(path, number, "is no JSON object")


def _json_lines(path: Path, bad: BadRows) -> Iterator[tuple[int, Any]]:
    lines = Lines(path, bad)
    for line in lines:
        if not line.strip():
            continue
        problem = damage_of([line])
        if problem:
            bad.add(path, lines.number, problem)
            continue
        try:
            yield lines.number, json.loads(line)
        except ValueError as error:
            bad.add(path, lines.number, f"is no JSON ({error})")


def check_columns(path: Path, columns: Sequence[str], required: Mapping[str, str]) -> None:
    """Refuses a file without a column that is to be read.

    Args:
        path: the file.
        columns: those that it has.
        required: column -> the option, or the task, that names it.

    Raises:
        UserError: one is missing, or there are several of its name.
    """
    for column, origin in required.items():
        if columns.count(column) > 1:
            raise UserError(
                f"{path}:1: has {columns.count(column)} columns {column!r}, which {origin} wants; "
                "give each its own name"
            )
        if column not in columns:
            matches = difflib.get_close_matches(column, columns, 1)
            names = ", ".join(columns) or "none"
            hint = f"did you mean {matches[0]}?" if matches else f"its columns are {names[:200]}"
            raise UserError(f"{path}:1: has no column {column!r}, which {origin} wants; {hint}")


def header_of(path: Path) -> list[str]:
    """Reads the columns of a TSV or CSV file, by its name; of JSON, the first record's keys.

    Raises:
        UserError: there is no first record, or the first line is no text.
    """
    bad = BadRows()
    if path.suffix in (".json", ".jsonl"):
        first = next(read_json_records(path, bad), None)
        if first is None:
            raise UserError(f"{path}: {bad.first or 'holds no record'}; give JSON objects")
        return list(first[1])
    line = next(Lines(path, bad), "")
    problem = damage_of([line])
    if problem:
        bad.undecodable = bad.undecodable or [line.encode("utf-8", "surrogateescape")]
        raise UserError(f"{path}:1: {problem}; {bad.encoding_remedy()}")
    if not line.strip():
        raise UserError(f"{path}:1: is empty; give a file whose first line names its columns")
    if path.suffix == ".csv":
        return next(csv.reader([line]), [])
    return line.split("\t")
