"""Turns JSON records into documents, and says what is wrong with a record."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import Any

from ..blocks import Document, Problems
from ..wrapping import Wrapping

_TEXT_KEYS = ("text", "content")
_TITLE_KEYS = ("title",)
# Not strict: line ends and tabs inside strings are common in the wild, and do no harm.
_PARSE = json.JSONDecoder(strict=False).decode


@dataclass(frozen=True)
class Place:
    """Says where a record stands, for messages about it."""

    problems: Problems
    path: str
    line: int
    prefix: str = ""

    def note(self, kind: str, problem: str, lost: int = 0) -> None:
        """Notes a problem there, and the characters that it costs."""
        self.problems.note(kind, self.path, self.line, self.prefix + problem, lost)

    def note_replacement(self, kind: str, problem: str) -> None:
        """Notes characters there that U+FFFD stands for."""
        self.problems.note_replacement(kind, self.path, self.line, self.prefix + problem)


@dataclass(frozen=True)
class RecordReader:
    """Makes documents of JSON objects.

    Attributes:
        text_key: the key of the text, a string or a list of them; None for the first of
            `_TEXT_KEYS` at which a record has some.
        title_key: the key of the title; None for `_TITLE_KEYS`.
        wrapping: how the texts' lines were broken, None if they were not.
    """

    text_key: str | None = None
    title_key: str | None = None
    wrapping: Wrapping | None = None

    @property
    def text_keys(self) -> tuple[str, ...]:
        """The keys of the text, the first of which counts that has some in a record."""
        return (self.text_key,) if self.text_key else _TEXT_KEYS

    @property
    def title_keys(self) -> tuple[str, ...]:
        """The keys of the title, the first of which counts that has some in a record."""
        return (self.title_key,) if self.title_key else _TITLE_KEYS

    def parse(
        self, text: str, place: Place, *, continues: bool = False, is_part: bool = False
    ) -> Document | None:
        """Parses a record to its document; None, and noted, if it cannot be read."""
        try:
            record = _PARSE(text)
        except (ValueError, RecursionError) as error:
            place.note("bad_json_records", f"bad JSON: {error}", len(text))
            return None
        document = self.document(record, continues=continues, is_part=is_part)
        if document is None:
            place.note("records_without_text", self.no_text(record), len(text))
        elif "\\u" in text:
            return repaired(document, place)
        return document

    def parse_all(
        self, data: bytes, *, continues: bool = False, is_part: bool = False
    ) -> list[Document] | None:
        """Parses records with commas between them to documents; None if any has a fault.

        Args:
            data: of the records.
            continues: whether the first is the rest of a record.
            is_part: whether the first is a part of a record.
        """
        try:
            records = _PARSE(f"[{data.decode().strip(_BETWEEN)}]")
        except (ValueError, RecursionError):
            return None
        has_escapes = b"\\u" in data
        documents = []
        for number, record in enumerate(records):
            is_first = number == 0
            document = self.document(
                record, continues=continues and is_first, is_part=is_part and is_first
            )
            if document is None or (has_escapes and not _is_sound(document)):
                return None
            documents.append(document)
        return documents

    def document(
        self, record: Any, *, continues: bool = False, is_part: bool = False
    ) -> Document | None:
        """Makes the document of a parsed record; None if it has no text and is no part of one."""
        if not isinstance(record, dict):
            return None
        text, title = _first(record, self.text_keys), _first(record, self.title_keys)
        if isinstance(text, list) and all(isinstance(line, str) for line in text):
            text = "\n".join(text)
        if text is None and is_part:
            text = ""
        if not isinstance(text, str):
            return None
        title = title.strip() if isinstance(title, str) else ""
        url = record.get("url")
        if "&" in text and isinstance(url, str) and "curid=" in url:
            # wikiextractor escapes the text with --json as it does without.
            text, title = html.unescape(text), html.unescape(title)
        if self.wrapping is not None:
            lines = self.wrapping.paragraphs(text.splitlines())
        else:
            lines = [line for line in text.split("\n") if line and not line.isspace()]
        if lines and title and not continues and lines[0].strip() == title:
            del lines[0]
        return Document(title or None, lines, continues)

    def text_of(self, record: dict[str, Any]) -> str:
        """Returns the text of a parsed record that has one, as it stands there."""
        text = _first(record, self.text_keys)
        return "\n".join(text) if isinstance(text, list) else str(text)

    def no_text(self, record: Any) -> str:
        """Says what a record without text has instead."""
        keys = " or ".join(map(repr, self.text_keys))
        if not isinstance(record, dict):
            return f"a {type(record).__name__}, not an object"
        return f"no text at key {keys}; its keys: {', '.join(list(record)[:8])}"[:200]


_BETWEEN = ", \t\r\n"


def _first(record: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return first_text([record[key] for key in keys if key in record])


def first_text(values: list[Any]) -> Any:
    """Returns the first value that holds text; where none does the first, or None."""
    if len(values) > 1:
        return next(filter(_holds_text, values), values[0])
    return values[0] if values else None


def _holds_text(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_text, value))
    return isinstance(value, str) and bool(value) and not value.isspace()


def _is_sound(document: Document) -> bool:
    text = "\n".join([document.title or "", *document.lines])
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def repaired(document: Document, place: Place) -> Document:
    """Returns the document without NUL characters and with U+FFFD for halves of surrogate pairs."""
    if _is_sound(document):
        return document
    text = "\n".join([document.title or "", *document.lines])
    if "\0" in text:
        place.note("nul_byte_lines", "NUL character")
        text = text.replace("\0", "")
    try:
        text.encode()
    except UnicodeEncodeError:
        place.note_replacement("lone_surrogates", "half of a surrogate pair")
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    title, *lines = text.split("\n")
    return Document(title or None, lines, document.continues)
