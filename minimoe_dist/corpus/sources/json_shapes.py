"""Reads JSON strings, and recognises what resembles JSON and holds no records."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..blocks import Block
from ..streams import InputStream
from .json_records import JsonLinesSource
from .json_scanning import is_json_so_far, mask_escapes

_STRING = rb'"(?:[^"\\]|\\.)*+"'
_STRINGS = re.compile(rb"(?s)" + _STRING)
_MASKED_STRING = re.compile(rb'"[^"]*+"')
# What is left of an array where each string is one quote, its last string being cut off maybe.
_ARRAY_OUTLINE = re.compile(rb'\[(?:\s*"\s*,)*+\s*(?:"\s*\]?\s*|"[^"]*|\]\s*)?')
_ELEMENT = re.compile(rb'(?s)[\s,\[\]]*+(?:(")(?:[^"\\]|\\.)*+"|[^\s,\[\]"]++(?=[\s,\[\]"]))')
_BETWEEN = b" \t\r\n,[]"
_COMMENTS = re.compile(rb"(?s)(?:(?://|#)[^\n]*\n\s*|/\*.*?\*/\s*)+(?=[\[{])")
_CALL = re.compile(rb"[A-Za-z_$][\w$.]*\(\s*(?=[\[{])")
_PYTHON = re.compile(
    r"[\[(]\s*(?:[+-]?\d[\d.]*\s*,\s*)*[bu]?'(?:[^'\\\n]|\\.)*'\s*,\s*[bu]?[\d'\"]"
)
_PICKLE = re.compile(
    rb"(?s)\((?:[ld]|i\w+\n\w+\n)?p\d+\n|[\]})]q\x00|c[\w.]+\n\w+\n(?:p\d+\n|q\x00|\()|"
    rb"[VS][^\n]*\np0\n|\(?[XT].{0,3}\x00"
)
_AS_LINES = 'write its texts as JSON lines, {"text": "..."}'
_CHUNK_BYTES = 1 << 16
_MOST_LINES = 50


def is_of_strings(beginning: bytes) -> bool:
    """Tells whether a file begins as an array of strings, or as JSON strings one a line."""
    if beginning.startswith(b"["):
        outline, num_strings = _MASKED_STRING.subn(b'"', mask_escapes(beginning))
        is_long = len(beginning) >= _CHUNK_BYTES // 2
        return (num_strings > 0 or is_long) and _ARRAY_OUTLINE.fullmatch(outline) is not None
    lines = _lines(beginning)
    return len(lines) > 1 and all(isinstance(_parsed(line), str) for line in lines)


def first_strings(beginning: bytes) -> list[str]:
    """Returns the strings that a file begins with."""
    found = map(_parsed, (raw.decode("utf-8", "replace") for raw in _STRINGS.findall(beginning)))
    return [text for text in found if isinstance(text, str)]


def other_shape(beginning: bytes) -> str | None:
    """Says what resembles JSON or Python's data and what to do with it; None for text."""
    if beginning.startswith(b"\x1e"):
        return "a JSON text sequence; make JSON lines of it with: tr -d '\\036'"
    if _PICKLE.match(beginning):
        return f"a Python pickle; {_AS_LINES}"
    if (comments := _COMMENTS.match(beginning)) and is_json_so_far(beginning[comments.end() :]):
        return "JSON with comments, which JSON does not have; remove them"
    if call := _CALL.match(beginning):
        argument = beginning[call.end() :].rstrip(b" \t\r\n;").removesuffix(b")")
        if is_json_so_far(argument):
            return "a call around JSON (JSONP); remove the function's name and its parentheses"
    if beginning.startswith(b"[") and is_json_so_far(beginning):
        return f"JSON arrays that hold no records, or records inside arrays; {_AS_LINES}"
    if beginning.startswith((b"[", b"(")) and _is_python(beginning):
        return f"Python's lists or tuples; {_AS_LINES} (ast.literal_eval reads them)"
    return None


def _is_python(beginning: bytes) -> bool:
    lines = _lines(beginning)
    values = [_literal(line) for line in lines[:2]]
    if lines and all(isinstance(value, list | tuple) for value in values):
        return any(isinstance(part, str | list | tuple) for value in values for part in value)
    return _PYTHON.match(beginning.decode("utf-8", "replace")) is not None


def _lines(beginning: bytes) -> list[str]:
    """Returns whole lines of a file's beginning."""
    lines = beginning.decode("utf-8", "replace").rstrip().split("\n")
    return (lines[:-1] if len(beginning) >= _CHUNK_BYTES // 2 else lines)[:_MOST_LINES]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


@dataclass(frozen=True)
class JsonStringsSource(JsonLinesSource):
    """Reads an array of strings, or JSON strings one a line, each as a document."""

    def blocks(self, stream: InputStream) -> Iterator[Block]:
        """Cuts as records with these texts, one a line, are cut."""
        with stream:
            records = _Records(stream, self.reader.text_keys[0])
            lines = InputStream(stream.path, name=stream.name, source=records)
            lines.encoding = stream.encoding
            yield from super().blocks(lines)


class _Records:
    """Gives JSON strings as records, one a line; what is no string stands there as it is."""

    def __init__(self, stream: InputStream, key: str) -> None:
        self._stream, self.tell = stream, stream.tell
        self._prefix = b"{" + json.dumps(key).encode() + b": "
        self._is_array = stream.peek(_CHUNK_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        self._rest, self._lines, self._last = b"", b"", b""
        self._is_cut = False

    @property
    def damage(self) -> str | None:
        """What was wrong with the file; None as long as nothing was."""
        return self._stream.damage or ("the file ends inside the array" if self._is_cut else None)

    def read(self, size: int) -> bytes:
        while not self._lines and (data := self._stream.read(max(_CHUNK_BYTES, len(self._rest)))):
            self._rest += data
            self._last = data.rstrip()[-1:] or self._last
            self._take()
        if not self._lines:
            self._finish()
        piece, self._lines = self._lines[:size], self._lines[size:]
        return piece

    def _take(self) -> None:
        lines, end = [], 0
        while element := _ELEMENT.match(self._rest, end):
            raw = element[0].lstrip(_BETWEEN).replace(b"\n", b"\\n")
            lines.append(self._prefix + raw + b"}\n" if element[1] else raw + b"\n")
            end = element.end()
        self._rest = self._rest[end:]
        self._lines = b"".join(lines)

    def _finish(self) -> None:
        self._is_cut = self._is_array and self._last != b"]"
        left = self._rest.strip(_BETWEEN)
        self._lines, self._rest = (left.replace(b"\n", b"\\n") + b"\n" if left else b""), b""
