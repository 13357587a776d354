"""Rows of text files with their places, and a count of those that could not be used.

A file is read line by line as bytes, so that a line which is no UTF-8 is one bad row and not the
end of the file. What is wrong with a row is told as file:line.
"""

import csv
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError

_BYTE_ORDER_MARK = "\ufeff"
NO_TEXT = "is not UTF-8"
SAVE_AS_TEXT = "save the file as UTF-8, as with iconv -f GB18030 -t UTF-8"


@dataclass
class BadRows:
    """What was left out.

    Attributes:
        strict: raise at the first one instead of counting.
        count: rows left out so far.
        first: "file:line: what is wrong" of the first one.
    """

    strict: bool = False
    count: int = 0
    first: str | None = None

    def add(self, path: Path, line: int, reason: str) -> None:
        """Takes note of a row.

        Raises:
            UserError: in strict mode.
        """
        words = f"{path}:{line}: {reason}"
        if self.strict:
            raise UserError(f"{words}; correct the row, or leave --strict out")
        self.count += 1
        self.first = self.first or words


def columns_in_words(count: int) -> str:
    """As "1 column" or "3 columns"."""
    return f"{count} column{'s' if count != 1 else ''}"


@dataclass
class Lines(Iterator[str]):
    """The lines of a file that are text, without their ends.

    Attributes:
        path: the file.
        bad: gets the lines that are not.
        number: of the line that was given last, from 1.
    """

    path: Path
    bad: BadRows
    number: int = 0
    _source: Iterator[bytes] | None = field(default=None, repr=False)

    def __next__(self) -> str:
        if self._source is None:
            self._source = self._read()
        while True:
            raw = next(self._source)
            self.number += 1
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                self.bad.add(self.path, self.number, NO_TEXT)
                continue
            if "\0" in text:
                self.bad.add(self.path, self.number, "has a NUL byte")
                continue
            text = text.rstrip("\r\n")
            return text.removeprefix(_BYTE_ORDER_MARK) if self.number == 1 else text

    def _read(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from file


def read_tab_separated(
    path: Path, bad: BadRows, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column -> value) of a TSV file in which quotes are text like any other.

    Args:
        path: the file.
        bad: gets rows with another number of columns.
        columns: their names; None takes them from the first line.
    """
    lines = Lines(path, bad)
    if columns is None:
        columns = next(lines, "").split("\t")
    for line in lines:
        if not line.strip():
            continue
        values = line.split("\t")
        if len(values) != len(columns):
            bad.add(path, lines.number, f"has {columns_in_words(len(values))}, not {len(columns)}")
            continue
        yield lines.number, dict(zip(columns, values, strict=True))


def read_comma_separated(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column -> value) of a CSV file with a header; quoted values may span lines."""
    lines = Lines(path, bad)
    rows = _readable_rows(csv.reader(line + "\n" for line in lines), lines)
    columns = next(rows, [])
    for values in rows:
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(columns):
            bad.add(path, lines.number, f"has {columns_in_words(len(values))}, not {len(columns)}")
            continue
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
    """(line, record) of JSON lines, or of one array, whose records are counted as lines.

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
        try:
            yield lines.number, json.loads(line)
        except ValueError as error:
            bad.add(path, lines.number, f"is no JSON ({error})")


def check_columns(path: Path, there: Sequence[str], wanted: Mapping[str, str]) -> None:
    """Refuses a file without a column that is to be read.

    Args:
        path: the file.
        there: its columns.
        wanted: column -> the option, or the task, that names it.

    Raises:
        UserError: one is missing.
    """
    for column, origin in wanted.items():
        if column not in there:
            found = difflib.get_close_matches(column, there, 1)
            names = ", ".join(there) or "none"
            hint = f"did you mean {found[0]}?" if found else f"its columns are {names[:200]}"
            raise UserError(f"{path}:1: has no column {column!r}, which {origin} wants; {hint}")


def header_of(path: Path) -> list[str]:
    """The columns of a TSV or CSV file, by its name; of JSON, the first record's keys.

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
    if bad.first is not None:
        raise UserError(f"{bad.first}; {SAVE_AS_TEXT}")
    if not line.strip():
        raise UserError(f"{path}:1: is empty; give a file whose first line names its columns")
    if path.suffix == ".csv":
        return next(csv.reader([line]), [])
    return line.split("\t")
