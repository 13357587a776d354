"""Reads rows of text files with their line numbers, and counts those that cannot be used.

A file is read line by line as bytes, so that a line which is no UTF-8 spoils the row that it is
part of and nothing else. What is wrong with a row is told as file:line.
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ...errors import UserError
from ...foreign import UnreadableError, open_file
from ..encodings import likely_encoding

_BYTE_ORDER_MARK = "\ufeff"
_MOST = 0.9
# Bytes that are no UTF-8 are read as lone surrogates, which no UTF-8 text holds.
_UNDECODABLE = re.compile("[\udc80-\udcff]")
# More is no row: of a damaged file, or of one that has no lines. Parsed, it may take 20 times that.
_MOST_ROW_BYTES = 1 << 24
_READ = 1 << 16
_SPACES = re.compile(r"[ \t\r\n]*")
_KEPT_LINES = 1000  # of those that are no UTF-8: enough to guess the encoding from


@dataclass
class BadRows:
    """Counts the rows that were left out; of what is no row of a table, its lines.

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

    def add(self, path: Path, line: int, reason: str, rows: int = 1) -> None:
        """Takes note of a row that begins at a line, or of so many rows.

        Raises:
            UserError: in strict mode.
        """
        problem = f"{path}:{line}: {reason}"
        if self.strict:
            raise UserError(f"{problem}; correct the row, or leave --strict out")
        self.count += rows
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
        with _opened(self.path) as file:
            while raw := file.readline(_MOST_ROW_BYTES + 1):
                if len(raw) > _MOST_ROW_BYTES:
                    raise UserError(
                        f"{self.path}:{self.number + 1}: a line of more than "
                        f"{_MOST_ROW_BYTES:,} bytes is no row; give a table of text"
                    )
                yield raw


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
    rows = ((lines.number, line.split("\t")) for line in lines)
    yield from _complete_rows(lines, rows, columns)


def read_comma_separated(
    path: Path, bad: BadRows, label_column: str, *, values: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line, column -> value) of a CSV file with a header; quoted values may span lines.

    Two quotes that nobody meant join all rows between them to a text of several lines. Such a text
    is told by its lines: nearly each is a row by itself, with a label.

    Args:
        path: the file.
        bad: gets what is no row, by its lines.
        label_column: of the labels.
        values: labels are any numbers; else they are those of the file's other rows.

    Raises:
        UserError: a quote is open at the end.
    """
    lines = Lines(path, bad)
    spans: dict[int, list[str]] = {}
    rows = _rows_of_csv(lines, spans)
    _, columns = next(rows, (1, []))
    records = list(_complete_rows(lines, rows, columns))
    if not spans:
        yield from records
        return
    labels = {row[label_column].strip() for line, row in records if line not in spans}
    place = columns.index(label_column)

    def is_row(text: str) -> bool:
        parts = text.split(",")
        if len(parts) != len(columns):
            return False
        label = parts[place].strip('" ')
        return label in labels or (values and number_of(label) is not None)

    for line, row in records:
        span = [text for text in spans[line] if text.strip()] if line in spans else []
        if span and sum(map(is_row, span)) >= _MOST * len(span):
            problem = f"has {len(span)} rows in one pair of quotes; are two quotes meant as text?"
            bad.add(path, line, problem, len(span))
        else:
            yield line, row


def number_of(written: Any) -> float | None:
    """Reads a number as it is written in text or in JSON; None where it is none."""
    # Python would also read 1_000, and JSON's true as 1.
    if isinstance(written, bool) or (isinstance(written, str) and "_" in written):
        return None
    try:
        value = float(written)
    except (TypeError, ValueError, OverflowError):
        return None
    # Also false of not-a-number.
    return value if abs(value) < 1e30 else None


def _complete_rows(
    lines: Lines, rows: Iterable[tuple[int, list[str]]], columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line, column -> value) of the rows that are text and have a value for each column."""
    for first_line, values in rows:
        if not any(value.strip() for value in values):
            continue
        problem, count = damage_of(values), 1
        if len(values) != len(columns):
            problem = problem or f"has {columns_in_words(len(values))}, not {len(columns)}"
            count = lines.number - first_line + 1
        if problem is not None:
            lines.bad.add(lines.path, first_line, problem, count)
        else:
            yield first_line, dict(zip(columns, values, strict=True))


def _rows_of_csv(
    lines: Lines, spans: dict[int, list[str]] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yields (first line, values) of each row, and notes what is none.

    Args:
        lines: of the file.
        spans: gets the lines of each row that has several, by the first one's number.

    Raises:
        UserError: a quote is open at the end.
    """
    row_lines: list[str] = []
    is_at_end = False

    def ended() -> Iterator[str]:
        nonlocal is_at_end
        for line in lines:
            row_lines.append(line)
            yield line + "\n"
        is_at_end = True

    reader = csv.reader(ended(), strict=True)
    while True:
        row_lines.clear()
        first_line = lines.number + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if is_at_end:
                raise UserError(
                    f"{lines.path}:{first_line}: opens a quote that is never closed, in front of "
                    f"{len(row_lines):,} line{'s' * (len(row_lines) != 1)}; close it, or write "
                    'the value in quotes with "" for each quote in it'
                ) from None
            until = f" up to line {lines.number}" if lines.number > first_line else ""
            problem = f"is no row of a CSV file{until} ({error}); is a quote open?"
            lines.bad.add(lines.path, first_line, problem, len(row_lines))
            continue
        if spans is not None and len(row_lines) > 1:
            spans[first_line] = [*row_lines]
        yield first_line, values


def read_values(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line, column -> value) of a TSV, CSV or JSON file, by its name.

    Args:
        path: the file; its first line, or each of its records, names the columns.
        bad: gets what is no row.
    """
    if path.suffix == ".csv":
        lines = Lines(path, bad)
        rows = _rows_of_csv(lines)
        columns = next(rows, (1, []))[1]
        return _complete_rows(lines, rows, columns)
    return read_json_records(path, bad) if "json" in path.suffix else read_tab_separated(path, bad)


def read_json_records(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line, record) of JSON lines, or of one array, whose records are counted as lines.

    Raises:
        UserError: an array that is no JSON.
    """
    with _opened(path) as file:
        is_array = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    records: Iterator[tuple[int, Any]]
    records = enumerate(_array(path), start=1) if is_array else _json_lines(path, bad)
    for number, record in records:
        if isinstance(record, dict):
            yield number, record
        else:
            bad.add(path, number, "is no JSON object")


def _opened(path: Path) -> IO[bytes]:
    try:
        return open_file(path)
    except UnreadableError as error:
        raise UserError(f"{path}: {error}; give a file of rows") from None


def _array(path: Path) -> Iterator[Any]:
    """Yields the elements of a JSON array, of which one alone is in memory.

    Raises:
        UserError: it is no JSON, or an element is far too long.
    """
    parse = json.JSONDecoder().raw_decode
    number = position = 0
    window = ""
    with _opened(path) as raw, io.TextIOWrapper(raw, "utf-8-sig") as file:
        try:
            while True:
                try:
                    start = _behind_spaces(window, position)
                    if number and window[start] == "]":
                        break
                    if window[start] != (mark := "," if number else "["):
                        raise UnreadableError(f"{window[start]!r} in the place of {mark!r}")
                    start = _behind_spaces(window, start + 1)
                    if not number and window[start] == "]":
                        break
                    value, end = parse(window, start)
                    window[end]  # a number that ends with the window may go on behind it
                except (IndexError, json.JSONDecodeError) as error:
                    window, position = window[position:], 0
                    more = file.read(max(_READ, len(window)))
                    if not more or len(window) > _MOST_ROW_BYTES:
                        raise UnreadableError(str(error)) from None
                    window += more
                    continue
                number, position = number + 1, end
                yield value
            rest = window[start + 1 :]
            while rest:
                if rest.strip():
                    raise UnreadableError("text behind the array")
                rest = file.read(_READ)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: is no JSON ({error}, in record {number + 1}); give an array or JSON lines"
            ) from None


def _behind_spaces(text: str, position: int) -> int:
    space = _SPACES.match(text, position)
    assert space is not None, "it may be empty"
    return space.end()


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
        except (ValueError, RecursionError) as error:
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


def check_line_ends(path: Path, line: str) -> None:
    """Refuses a file whose lines end as on old Macs, so that its first one has all others in it.

    Raises:
        UserError: they do.
    """
    if "\r" in line:
        raise UserError(
            f"{path}:1: has carriage returns inside, as where lines end in these alone; end them "
            f"in line feeds, as with tr '\\r' '\\n' < {path.name} > new{path.suffix}"
        )


def header_of(path: Path) -> list[str]:
    """Reads the columns of a TSV or CSV file, by its name; of JSON, the first record's keys.

    Raises:
        UserError: there is no first record, the first line is no line of text, or its quote is
            never closed.
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
    check_line_ends(path, line)
    if path.suffix == ".csv":
        return next(_rows_of_csv(Lines(path, bad)), (1, []))[1]
    return line.split("\t")
