"""Recognises files that are no text, and names the tool that makes text of them."""

from __future__ import annotations

import ast
import codecs
import csv
import json
import re
from collections import Counter
from dataclasses import dataclass

from ..blocks import BYTE_ORDER_MARK

_WORDS = "a word processor's file; convert it with: pandoc -t plain --wrap=none"
_PICTURE = "a picture; it holds no text"
_MAGIC = {
    b"%PDF-": "a PDF file; convert it with: pdftotext",
    b"%!PS": "a PostScript file; convert it with: ps2ascii",
    b"{\\rtf": "an RTF file; convert it with: pandoc -t plain --wrap=none",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office file; convert it with: "
    "soffice --convert-to txt",
    b"AT&TFORM": "a DjVu file; convert it with: djvutxt",
    b"ITSF\x03": "a compiled help file; unpack it with: 7z x",
    b"7z\xbc\xaf": "a 7z archive; unpack it with: 7z x",
    b"Rar!": "a rar archive; unpack it with: unrar x",
    b"!<arch>\n": "an ar archive or Debian package; unpack it with: ar x",
    b"\xed\xab\xee\xdb": "an RPM package; unpack it with: rpm2cpio",
    b"LZIP\x01": "lzip's compressed data; unpack it with: lzip -d",
    b"\x04\x22\x4d\x18": "lz4's compressed data; unpack it with: lz4 -d",
    b"\x1f\x9d": "compress's data; unpack it with: uncompress",
    b"x\x9c": "zlib's compressed data; unpack it with: pigz -d",
    b"x\xda": "zlib's compressed data; unpack it with: pigz -d",
    b"\xff\x06\x00\x00sNaPpY": "snappy's compressed data; unpack it with: snzip -d",
    b"WARC/1.": "a WARC file of web pages; extract their text with: trafilatura or resiliparse",
    b"ARROW1\0\0": "an Arrow file; write it as Parquet with: pyarrow.parquet.write_table",
    b"\xff\xff\xff\xff": "an Arrow stream; write it as Parquet with: datasets' to_parquet",
    b"Obj\x01": "an Avro file; write it as JSON lines with: avro-tools tojson",
    b"SQLite format 3\0": "an SQLite database; write its texts as JSON lines with: sqlite3 -json",
    b"\x89HDF\r\n": "an HDF5 file; write its texts as JSON lines",
    b"\x93NUMPY": "a NumPy array; write its texts as JSON lines",
    **{bytes([0x80, n]): "a Python pickle; write its texts as JSON lines" for n in range(2, 6)},
    b"\x89PNG": _PICTURE,
    b"\xff\xd8\xff": _PICTURE,
    b"GIF89a": _PICTURE,
    b"\x7fELF": "a program; it holds no text",
    b"\xca\xfe\xba\xbe": "a program; it holds no text",
    b"MMIDIDX\0": "an indexed corpus already; give it to training, or to merge_indexed.py",
}
# What its first bytes alone do not tell.
_KINDS = {
    re.compile(rb"[\s\S]{0,1019}?%PDF-\d\.\d\s(?=[\s\S]*?\d \d obj\b)"): _MAGIC[b"%PDF-"],
    re.compile(rb"[\s\S]{3}\0{5}\{\s*\""): "a safetensors checkpoint; it holds no text",
    re.compile(rb"RIFF[\s\S]{4}[A-Z]{3}"): "a picture, sound or film; it holds no text",
}
_TEXT_THAT_A_TOOL_MAKES = ("pandoc", "pdftotext", "ps2ascii", "soffice", "trafilatura", "djvutxt")
_FEWEST_TAGS, _TAG_EVERY = 5, 400
_HTML = (
    b"html|head|body|title|p|div|span|br|hr|a|b|i|em|strong|ul|ol|li|table|tr|td|th|"
    b"h[1-6]|img|font|script|style|link|meta|pre|center"
)
_TAG = re.compile(rb"(?i)</?(?:" + _HTML + rb")(?:\s[^<>]*)?/?>")
_HTML_NAME = re.compile(rb"(?i)(?:" + _HTML + rb")\Z")
_OPENING_TAG = re.compile(rb"<([A-Za-z][\w:.-]*)(?:\s[^<>]*)?>")
_CLOSING_TAG = re.compile(rb"</([A-Za-z][\w:.-]*)\s*>")
_FEWEST_ELEMENTS = 2
_COMMENTS = re.compile(rb"(?:<!--(?:(?!-->)[\s\S])*-->\s*)+")
_LATEX = re.compile(rb"(?:\s*%[^\n]*\n)*\s*\\(?:documentclass|documentstyle|begin|input)\b")
_MAILBOX = re.compile(rb"From \S+ [^\n]*\d\d:\d\d[^\n]*\d{4}[^\n]*\n>?[A-Z][\w-]*:? ")
_OVERSTRIKE = re.compile(rb"_\x08[^\x08]|([^\x08_])\x08\1")
_ESCAPE = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
_FEWEST_ESCAPES = 5
_UTF7 = re.compile(rb"\+[A-Za-z0-9+/]{2,}-?")
_DICTIONARY = re.compile(r"\{\s*u?['\"][^'\"]*['\"]\s*:")
_ROFF = re.compile(rb"(?:[.']\\\"[^\n]*\n|[.']\n|\n)*\.(?:TH|Dd|SH) ")
_CONTROL = re.compile(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f]")
_MOST_CONTROL_CHARACTERS, _MOST_CONTROL_BYTES = 0.1, 0.02
_LETTERS_OF_TEXT, _PAUSES_OF_TEXT = 0.6, 0.01
_PAUSE = re.compile("[ \n\u3000-\u3002\uff01\uff0c\uff1f]")
_COLUMN_NAME = re.compile(r"(?:[^\W\d]|#)[\w #.()/\-]{0,40}")
_DELIMITERS = {"\t": "TSV", ",": "CSV", ";": "CSV", "|": "CSV"}
_TABLE_SUFFIXES = (".csv", ".tsv", ".tab")
_MANY_ROWS, _MOST_ROWS, _WHOLE_ROWS = 4, 200, 0.9
_CUT_OFF = 1 << 15
_CODE = re.compile(r"[+-]?\d[\d.,:/-]*")


@dataclass(frozen=True)
class Unreadable:
    """A kind of file that is not read.

    Attributes:
        description: what it is, and what to do with it.
        holds_text: whether text would come out of it.
    """

    description: str
    holds_text: bool


_BINARY = Unreadable("binary data; it holds no text", False)


def unreadable_bytes(beginning: bytes) -> Unreadable | None:
    """Names what a file is, if its beginning tells that it is no text in any encoding."""
    beginning = beginning.removeprefix(BYTE_ORDER_MARK)
    found = [text for magic, text in _MAGIC.items() if beginning.startswith(magic)]
    found += [text for pattern, text in _KINDS.items() if pattern.match(beginning)]
    if not found:
        return None
    return Unreadable(found[0], any(tool in found[0] for tool in _TEXT_THAT_A_TOOL_MAKES))


def binary_data(beginning: bytes) -> Unreadable | None:
    """Tells whether bytes that are no UTF-8 can be no text in any other encoding either.

    Only UTF-16 has bytes of control characters inside text.
    """
    controls = max(len(_CONTROL.findall(beginning)), 16 * beginning.count(b"\0"))
    if controls <= _MOST_CONTROL_BYTES * len(beginning):
        return None
    is_wide = any(_is_text_in(beginning, encoding) for encoding in ("utf-16-le", "utf-16-be"))
    return None if is_wide else _BINARY


def _is_text_in(beginning: bytes, encoding: str) -> bool:
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(beginning)
    except UnicodeDecodeError:
        return False
    pauses = len(_PAUSE.findall(text))
    return sum(map(str.isalpha, text)) >= _LETTERS_OF_TEXT * len(
        text
    ) and pauses >= _PAUSES_OF_TEXT * len(text)


def unreadable_text(beginning: bytes, name: str = "") -> Unreadable | None:
    """Names what a text is, if its beginning is markup, a table or a program's output.

    Args:
        beginning: in UTF-8.
        name: of the file; what is named as a table needs less evidence to be one.
    """
    if len(_CONTROL.findall(beginning)) > _MOST_CONTROL_CHARACTERS * len(beginning):
        return _BINARY
    start = beginning.removeprefix(BYTE_ORDER_MARK).lstrip()
    description = _markup(start) or _program_output(start, name)
    return Unreadable(description, True) if description else None


def _markup(start: bytes) -> str | None:
    if comments := _COMMENTS.match(start):
        start = start[comments.end() :]
    lowered = start[:2048].lower()
    if lowered.startswith(b"<mediawiki"):
        return (
            "a MediaWiki XML dump; extract its articles with wikiextractor: "
            "python -m wikiextractor.WikiExtractor"
        )
    root = _root_of_elements(start)
    if root is not None and not _HTML_NAME.match(root):
        lowered = b"<?xml" + lowered
    elif lowered.startswith((b"<!doctype html", b"<html")) or root or _is_full_of_tags(start):
        return "HTML; extract its text with: trafilatura, or pandoc -t plain --wrap=none"
    if lowered.startswith((b"<?xml", b"<!doctype")):
        if b"<mediawiki" in lowered:
            return _markup(b"<mediawiki")
        if b"<html" in lowered:
            return _markup(b"<html")
        return "XML; extract its text with: xmllint --xpath, or pandoc where it knows the kind"
    if _ROFF.match(start):
        return "a manual page's source; format it with: man -Tutf8 PAGE | col -bx"
    if _LATEX.match(start):
        return "LaTeX; convert it with: pandoc -t plain --wrap=none"
    if _MAILBOX.match(start):
        return "a mailbox; write its messages' texts as JSON lines with: Python's mailbox"
    return None


def _root_of_elements(start: bytes) -> bytes | None:
    """Returns the name of the tag that a text begins with, if it is one of matching tags.

    What wikiextractor writes is text for all that.
    """
    opening = _OPENING_TAG.match(start)
    if opening is None or start.startswith(b"<doc "):
        return None
    opened = set(_OPENING_TAG.findall(start))
    closed = [name for name in _CLOSING_TAG.findall(start) if name in opened]
    is_whole = start.rstrip().endswith(b"</" + opening[1] + b">")
    return opening[1] if len(closed) >= _FEWEST_ELEMENTS or is_whole else None


def _is_full_of_tags(start: bytes) -> bool:
    tags = len(_TAG.findall(start))
    return tags >= _FEWEST_TAGS and tags * _TAG_EVERY >= len(start)


def _program_output(start: bytes, name: str) -> str | None:
    if b"\b" in start and len(_OVERSTRIKE.findall(start)) >= _FEWEST_ESCAPES:
        return "a formatted manual page with overstrikes; take them away with: col -bx"
    if b"\x1b[" in start and len(_ESCAPE.findall(start)) >= _FEWEST_ESCAPES:
        return "a terminal's output with escape sequences; take them away with: ansi2txt"
    if _is_utf7(start):
        return "text in UTF-7; give --encoding utf-7"
    text = start.decode("utf-8", "replace")
    first, _, _ = text.partition("\n")
    if _DICTIONARY.match(text) and _is_dictionary(first):
        return (
            "lines of Python dictionaries; write them as JSON lines with: "
            "json.dumps(ast.literal_eval(line))"
        )
    if text.startswith(("-- MySQL dump", "-- MariaDB dump", "-- PostgreSQL database dump")):
        return "an SQL dump; load it into the database and write its texts as JSON lines"
    return None if text.startswith(("{", "[")) else _table(text, name)


def _is_utf7(start: bytes) -> bool:
    shifted = b"".join(_UTF7.findall(start))
    if not start.isascii() or 4 * len(shifted) < len(start):
        return False
    try:
        text = codecs.getincrementaldecoder("utf-7")().decode(start)
    except UnicodeDecodeError:
        return False
    wide = [character for character in text if not character.isascii()]
    return sum(map(str.isalpha, wide)) > _LETTERS_OF_TEXT * len(wide)


def _is_dictionary(line: str) -> bool:
    if line.startswith(("{'", "{u'")):
        return True
    try:
        json.loads(line, strict=False)
        return False
    except (ValueError, RecursionError):
        pass
    try:
        return isinstance(ast.literal_eval(line), dict)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def _table(text: str, name: str) -> str | None:
    """Says that a text is a table: as many delimiters in nearly all of its lines."""
    lines = text.splitlines()
    if len(text) > _CUT_OFF:
        lines = lines[:-1]
    # CoNLL-U has comments.
    lines = [line for line in lines if line.strip() and not line.startswith("# ")][:_MOST_ROWS]
    is_named = name.endswith(_TABLE_SUFFIXES)
    for delimiter, kind in _DELIMITERS.items():
        if _is_table_of(lines, delimiter, is_named):
            option = "" if delimiter == "," else f", sep={delimiter!r}"
            return (
                f"a {kind} table; write its texts as JSON lines with: pandas.read_csv(...{option})"
                f".to_json(..., orient='records', lines=True)"
            )
    return None


def _is_table_of(lines: list[str], delimiter: str, is_named: bool) -> bool:
    """Tells whether lines are records with a delimiter, and no prose with as many commas."""
    if sum(delimiter in line.strip() for line in lines) < _WHOLE_ROWS * len(lines) / 2:
        return False
    is_tab = delimiter == "\t"
    if is_tab:
        rows = [line.lstrip("\t").split("\t") for line in lines]
    else:
        try:
            rows = list(csv.reader(lines, delimiter=delimiter))
        except csv.Error:
            return False
    ((size, count),) = Counter(map(len, rows)).most_common(1) or ((0, 0),)
    if size < 2 or count < _WHOLE_ROWS * len(rows):
        return False
    rows = [row for row in rows if len(row) == size]
    if is_named or (is_tab and len(rows) > 1):
        return True
    are_names = [all(map(_COLUMN_NAME.fullmatch, row)) for row in rows]
    if are_names[0] and 2 * sum(are_names) <= len(rows) and len(rows) > _MANY_ROWS:
        return True
    quoted = sum(line.startswith('"') and f'"{delimiter}"' in line for line in lines)
    if quoted >= _WHOLE_ROWS * len(lines) and len(rows) > 1:
        return True
    # After a comma in prose comes a space, and no column of it holds numbers alone.
    cells = [cell for row in rows for cell in row[1:]]
    is_tight = sum(cell.startswith(" ") for cell in cells) <= (1 - _WHOLE_ROWS) * len(cells)
    columns = list(zip(*rows, strict=True))
    has_codes = any(
        sum(_CODE.fullmatch(cell) is not None for cell in column) >= _WHOLE_ROWS * (len(column) - 1)
        for column in columns
    )
    return is_tight and len(rows) > 1 and (has_codes or (size > 2 and len(rows) > _MANY_ROWS))


_ZIPPED = {
    "[Content_Types].xml": _WORDS,
    "mimetype": "an e-book or a word processor's file; convert it with: "
    "pandoc -t plain --wrap=none",
    "META-INF/MANIFEST.MF": "a Java archive; it holds no text",
    "AndroidManifest.xml": "an Android package; it holds no text",
}


def unreadable_zip(names: list[str]) -> Unreadable | None:
    """Names what a zip file is, if its members' names tell that it is no archive of texts."""
    for name, description in _ZIPPED.items():
        if name in names:
            return Unreadable(description, "pandoc" in description)
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return Unreadable("a PyTorch checkpoint; it holds no text", False)
    if names and all(name.endswith(".npy") for name in names):
        return Unreadable("NumPy arrays; write their texts as JSON lines", False)
    return None
