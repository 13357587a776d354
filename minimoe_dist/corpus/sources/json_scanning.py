"""Finds where JSON records begin and end without parsing them, and cuts long ones inside a text.

A window of bytes is looked at from a place between two records. Strings are skipped whole, so
that most of a text corpus is passed at the speed of a search for one byte.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from ..sentences import last_safe_cut

_SCALAR = rb"(?:true|false|null|NaN|-?Infinity|-?[0-9][0-9.eE+\-]*+)"
_BETWEEN = rb"(?:[\s:,]++|" + _SCALAR + rb"(?![\w\x80-\xff]))"
# Group 1: strings and what stands between them; 2: a string without its end; 3: brackets;
# 4: separators and scalars. What matches none of them is no JSON.
_TOKEN = re.compile(
    rb'((?:"[^"]*+"' + _BETWEEN + rb"*+)++)|(\")|([{}\[\]])|(" + _BETWEEN + rb"++)|(?s:.)"
)
_STRING = re.compile(rb'"[^"]*+"?')
_KEY_BEFORE = re.compile(rb'("[^"]*+")\s*:\s*\Z')
_KEY_REACH = 1024
_UNFINISHED_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_UNFINISHED_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_ESCAPED = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|[^\\]+"
)
_EMPTY_LINES = (b"\\n\\n", b"\\n\\r\\n")
_MOST_BYTES_A_CHARACTER = 4
# What the beginning of a character whose other bytes are missing is decoded to.
_BROKEN_CHARACTERS = "".join(map(chr, range(0xDC80, 0xDD00)))


@dataclass
class Scan:
    """Says what a window of bytes holds.

    Attributes:
        ends: positions after its records, in order.
        closed: position of the bracket that closes the array around the records.
        broken: position of what can be no JSON.
        open_string: position of the quote that opens the string that the window ends in.
        depth: how many brackets are open where the look ended.
    """

    ends: list[int] = field(default_factory=list)
    closed: int | None = None
    broken: int | None = None
    open_string: int | None = None
    depth: int = 0


def mask_escapes(data: bytes) -> bytes:
    """Replaces escaped quotes and backslashes by as many other bytes."""
    if b"\\" not in data:
        return data
    return data.replace(b"\\\\", b"__").replace(b'\\"', b"__")


def scan_records(window: bytes) -> Scan:
    """Looks for records (objects) from a place between two of them."""
    scan = Scan()
    for token in _TOKEN.finditer(mask_escapes(window)):
        kind = token.lastindex
        if kind == 3:
            bracket = token[0]
            if bracket in (b"{", b"["):
                if scan.depth == 0 and bracket == b"[":
                    scan.broken = token.start()
                    break
                scan.depth += 1
            elif scan.depth:
                scan.depth -= 1
                if scan.depth == 0:
                    scan.ends.append(token.end())
            elif bracket == b"]":
                scan.closed = token.start()
                break
            else:
                scan.broken = token.start()
                break
        elif kind is None or (scan.depth == 0 and not _separates(token)):
            if not _goes_on(window, token.start()):
                scan.broken = token.start()
            break
        elif kind == 2:
            scan.open_string = token.start()
            break
    return scan


def is_mostly_text(window: bytes) -> bool:
    """Tells whether strings, and long ones, take most of some JSON."""
    return 4 * len(_STRING.sub(b'""', mask_escapes(window))) <= len(window)


def is_json_so_far(beginning: bytes) -> bool:
    """Tells whether a file's beginning may be JSON of whatever shape, with a string in it."""
    num_strings = 0
    for token in _TOKEN.finditer(mask_escapes(beginning)):
        if token.lastindex is None:
            return False
        if token.lastindex == 2:
            break
        num_strings += token.lastindex == 1
    return num_strings > 0


def _separates(token: re.Match[bytes]) -> bool:
    return token.lastindex == 4 and not token[0].strip(b" \t\r\n,")


def _goes_on(window: bytes, position: int) -> bool:
    """Tells whether what stands at the window's end may be the beginning of a scalar."""
    return len(window) - position < 9 and window[position:].replace(b"-", b"a").isalpha()


@dataclass(frozen=True)
class InnerCut:
    """A place to cut a record in two, so that both parts are read as records.

    Attributes:
        position: where the first part ends, in the window.
        suffix: what ends the first part.
        prefix: what begins the second part.
    """

    position: int
    suffix: bytes
    prefix: bytes


def cut_inside_string(
    window: bytes, scan: Scan, longest: int, *, is_wrapped: bool = False
) -> InnerCut | None:
    """Finds a cut inside the string that the window ends in, between two sentences of it.

    Wrapped text is cut between two paragraphs, if there is a place.

    None if the string is not the value of a record's own key.
    """
    if scan.open_string is None or scan.depth != 1:
        return None
    quote = scan.open_string
    reach = max(0, quote - _KEY_REACH)
    key = _KEY_BEFORE.search(mask_escapes(window[reach:quote]))
    if key is None:
        return None
    content = window[quote + 1 :]
    length = (is_wrapped and _last_paragraph(content)) or _safe_length(content, longest)
    if not length:
        return None
    name = window[reach + key.start(1) : reach + key.end(1)]
    return InnerCut(quote + 1 + length, b'"}', b"{" + name + b':"')


def _last_paragraph(raw: bytes) -> int:
    """Returns where the last paragraph of a string's content, as it stands in the file, begins."""
    masked = raw.replace(b"\\\\", b"__")
    # What the window ends in may be the beginning of another empty line.
    starts = ((masked.rfind(gap, 0, len(masked) - 4), len(gap)) for gap in _EMPTY_LINES)
    return max((start + size for start, size in starts if start >= 0), default=0)


def _safe_length(raw: bytes, longest: int) -> int:
    """Returns the raw bytes of a string's content that may be cut off; 0 if none."""
    masked = raw.replace(b"\\\\", b"__")
    raw = raw[: len(raw) - _unfinished(masked)]
    line_end = masked.rfind(b"\\n", 0, len(raw)) + 2
    if line_end > 1 and len(raw) - line_end < _MOST_BYTES_A_CHARACTER * longest:
        return line_end
    content = raw.decode("utf-8", "surrogateescape").rstrip(_BROKEN_CHARACTERS)
    try:
        text = json.loads(f'"{content}"', strict=False)
    except ValueError:
        return 0
    # Sentences never cross lines, so that the last line alone is looked at.
    line_start = text.rfind("\n") + 1
    cut = line_start + last_safe_cut(text[line_start:], longest)
    return len(_raw_beginning(content, cut or len(text)).encode("utf-8", "surrogateescape"))


def _unfinished(masked: bytes) -> int:
    """Returns the size of an unfinished escape, or pair of them, at a string content's end."""
    tail = masked[-16:]
    sound = tail
    for pattern in (_UNFINISHED_ESCAPE, _UNFINISHED_PAIR):
        if match := pattern.search(sound):
            sound = sound[: match.start()]
    return len(tail) - len(sound)


def _raw_beginning(content: str, characters: int) -> str:
    """Returns the beginning of a string as written that stands for ``characters`` characters."""
    position = 0
    for piece in _ESCAPED.finditer(content):
        size = 1 if piece[0].startswith("\\") else len(piece[0])
        if size >= characters:
            return content[: piece.end() if size == 1 else position + characters]
        characters -= size
        position = piece.end()
    return content
