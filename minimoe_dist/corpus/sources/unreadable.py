"""Recognises files that are no text, and names the tool that makes text of them."""

from __future__ import annotations

import ast
import csv
import json
import re
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
    b"\xff\x06\x00\x00sNaPpY": "snappy's compressed data; unpack it with: snzip -d",
    b"WARC/1.": "a WARC file of web pages; extract their text with: trafilatura or resiliparse",
    b"ARROW1\0\0": "an Arrow file; write it as Parquet with: pyarrow.parquet.write_table",
    b"\xff\xff\xff\xff": "an Arrow stream; write it as Parquet with: datasets' to_parquet",
    b"Obj\x01": "an Avro file; write it as JSON lines with: avro-tools tojson",
    b"SQLite format 3\0": "an SQLite database; write its texts as JSON lines with: sqlite3 -json",
    b"\x89HDF\r\n": "an HDF5 file; write its texts as JSON lines",
    b"\x93NUMPY": "a NumPy array; write its texts as JSON lines",
    b"\x80\x02": "a Python pickle; write its texts as JSON lines",
    b"\x80\x03": "a Python pickle; write its texts as JSON lines",
    b"\x80\x04": "a Python pickle; write its texts as JSON lines",
    b"\x80\x05": "a Python pickle; write its texts as JSON lines",
    b"\x89PNG": _PICTURE,
    b"\xff\xd8\xff": _PICTURE,
    b"GIF89a": _PICTURE,
    b"\x7fELF": "a program; it holds no text",
    b"MMIDIDX\0": "an indexed corpus already; give it to training, or to merge_indexed.py",
}
_TEXT_THAT_A_TOOL_MAKES = ("pandoc", "pdftotext", "ps2ascii", "soffice", "trafilatura", "djvutxt")
_FEWEST_TAGS, _TAG_EVERY = 5, 400
_TAG = re.compile(
    rb"(?i)</?(?:html|head|body|title|p|div|span|br|hr|a|b|i|em|strong|ul|ol|li|table|tr|td|th|"
    rb"h[1-6]|img|font|script|style|link|meta|pre|center)(?:\s[^<>]*)?/?>"
)
_DICTIONARY = re.compile(r"\{\s*u?['\"][^'\"]*['\"]\s*:")
_ROFF = re.compile(rb"(?:[.']\\\"[^\n]*\n|[.']\n|\n)*\.(?:TH|Dd|SH) ")
_CONTROL = re.compile(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f]")
_MOST_CONTROL_CHARACTERS = 0.1
_COLUMN_NAME = re.compile(r"[^\W\d][\w .\-]{0,40}")
_FEWEST_ROWS = 4


@dataclass(frozen=True)
class Unreadable:
    """A kind of file that is not read.

    Attributes:
        description: what it is, and what to do with it.
        holds_text: whether text would come out of it.
    """

    description: str
    holds_text: bool


def unreadable_bytes(beginning: bytes) -> Unreadable | None:
    """Names what a file is, if its beginning tells that it is no text in any encoding."""
    for magic, description in _MAGIC.items():
        if beginning.startswith(magic):
            return Unreadable(
                description, any(tool in description for tool in _TEXT_THAT_A_TOOL_MAKES)
            )
    return None


def unreadable_text(beginning: bytes) -> Unreadable | None:
    """Names what a text is, if its beginning (UTF-8) is markup, a table or a program's output."""
    if beginning and len(_CONTROL.findall(beginning)) > _MOST_CONTROL_CHARACTERS * len(beginning):
        return Unreadable("binary data; it holds no text", False)
    start = beginning.removeprefix(BYTE_ORDER_MARK).lstrip()
    description = _markup(start) or _program_output(start)
    return Unreadable(description, True) if description else None


def _markup(start: bytes) -> str | None:
    lowered = start[:2048].lower()
    if lowered.startswith(b"<mediawiki"):
        return (
            "a MediaWiki XML dump; extract its articles with wikiextractor: "
            "python -m wikiextractor.WikiExtractor"
        )
    if lowered.startswith((b"<!doctype html", b"<html")) or _is_full_of_tags(start):
        return "HTML; extract its text with: trafilatura, or pandoc -t plain --wrap=none"
    if lowered.startswith((b"<?xml", b"<!doctype")):
        if b"<mediawiki" in lowered:
            return _markup(b"<mediawiki")
        if b"<html" in lowered:
            return _markup(b"<html")
        return "XML; extract its text with: xmllint --xpath, or pandoc where it knows the kind"
    if _ROFF.match(start):
        return "a manual page's source; format it with: man -Tutf8 PAGE | col -bx"
    return None


def _is_full_of_tags(start: bytes) -> bool:
    tags = len(_TAG.findall(start))
    return tags >= _FEWEST_TAGS and tags * _TAG_EVERY >= len(start)


def _program_output(start: bytes) -> str | None:
    text = start.decode("utf-8", "replace")
    first, _, _ = text.partition("\n")
    if _DICTIONARY.match(text) and _is_dictionary(first):
        return (
            "lines of Python dictionaries; write them as JSON lines with: "
            "json.dumps(ast.literal_eval(line))"
        )
    if text.startswith(("-- MySQL dump", "-- MariaDB dump", "-- PostgreSQL database dump")):
        return "an SQL dump; load it into the database and write its texts as JSON lines"
    return _table(text)


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


def _table(text: str) -> str | None:
    """Says that a text is a table with a head of names, and at least some whole rows."""
    lines = text.split("\n")[:-1][: 10 * _FEWEST_ROWS]
    for delimiter, name in ((",", "CSV"), ("\t", "TSV")):
        if len(lines) <= _FEWEST_ROWS or delimiter not in lines[0]:
            continue
        try:
            head, *rows = csv.reader(lines, delimiter=delimiter)
        except csv.Error:
            continue
        is_head = len(head) > 1 and all(_COLUMN_NAME.fullmatch(cell) for cell in head)
        if is_head and sum(len(row) == len(head) for row in rows) >= 0.9 * len(rows):
            return (
                f"a {name} table; write its texts as JSON lines with: pandas.read_csv(...)"
                f".to_json(..., orient='records', lines=True)"
            )
    return None


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
