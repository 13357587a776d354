"""Reads JSON: one object a line, or one array of objects a file, as WuDao is published.

Files are never parsed as a whole. Blocks end between two records; a record that is longer than
a block is cut inside its text, so that memory stays bounded by the size of a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from ..blocks import (
    BLOCK_BYTES,
    BYTE_ORDER_MARK,
    Block,
    BlockCutter,
    Document,
    Problems,
    count_characters,
    decode_lines,
    note_invalid,
)
from ..sentences import SentenceRules
from ..streams import InputStream
from .json_documents import Place, RecordReader
from .json_scanning import Scan, cut_inside_string, is_mostly_text, scan_records

_MEMBER = rb'\s*"[^"\\]*"\s*:\s*(?:"[^"\\]*"|[\w.+\-]+)\s*,'
_ARRAY = rb"(?:\[|\{(?:" + _MEMBER + rb')*?\s*"(?i:RECORDS)"\s*:\s*\[)'
_ARRAY_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*" + _ARRAY)
_NEXT_ARRAY = re.compile(rb"(?:[\s,]|\xef\xbb\xbf)*" + _ARRAY + rb"(?=\s*[{\]])")
_MORE_RECORDS = re.compile(rb"\[\s*\{")
_FIRST_KEY = re.compile(rb'[\s,]*\{\s*("[^"\\]{0,100}")')
_BETWEEN = b" \t\r\n,"
_RECORD_REACH = 256
# Parsed, numbers and brackets take 20 times their bytes, long strings hardly more than they have.
_MOST_RECORD_BYTES, _MOST_RECORD_BYTES_OF_TEXT = 1 << 24, 1 << 27
_TOO_LONG = "a record too long to be one of text"
_AFTER_ARRAY = "text after the end of the array"


def array_header(beginning: bytes) -> bytes | None:
    """Returns the bytes before an array's first record; None if the file begins with no array."""
    start = _ARRAY_START.match(beginning)
    return start[0] if start else None


@dataclass(frozen=True)
class _JsonSource:
    """Holds the settings and the cutting of long records that both kinds share.

    Attributes:
        reader: makes documents of records.
        block_bytes: size of a block.
        longest_sentence: where over-long sentences are cut, in characters.
    """

    reader: RecordReader = field(default_factory=RecordReader)
    block_bytes: int = BLOCK_BYTES
    longest_sentence: int = SentenceRules.longest
    lines_are_sentences: ClassVar[bool] = False

    def _begin_long_record(
        self, cutter: BlockCutter, window: bytes, carried: bytes, scan: Scan
    ) -> tuple[Block, bytes, bytes] | None:
        """Cuts a record that fills the window: its beginning, the rest, and that one's prefix.

        None if the record cannot be cut where the window ends.
        """
        cut = cut_inside_string(
            window, scan, self.longest_sentence, is_wrapped=self.reader.wrapping is not None
        )
        if cut is None or cut.position <= len(carried):
            return None
        block = cutter.block(
            window[len(carried) : cut.position],
            continues_document=bool(carried),
            prefix=carried,
            suffix=cut.suffix,
        )
        return block, window[cut.position :], cut.prefix


@dataclass(frozen=True)
class JsonLinesSource(_JsonSource):
    """Reads one JSON object a line, as wikiextractor's --json writes them."""

    def blocks(self, stream: InputStream) -> Iterator[Block]:
        """Cuts after lines, and inside the text of a record that is longer than a block."""
        rest, carried = b"", b""
        size = self.block_bytes
        with BlockCutter(stream) as cutter:
            while True:
                rest += cutter.read(max(0, size - len(rest)))
                if not rest:
                    break
                at_end = len(rest) < size
                window = carried + rest
                end = len(rest) if at_end else rest.rfind(b"\n") + 1
                if end:
                    yield cutter.block(rest[:end], continues_document=bool(carried), prefix=carried)
                    rest, carried, size = rest[end:], b"", self.block_bytes
                    continue
                scan = scan_records(window)
                if scan.broken is not None or _is_too_long(window, scan):
                    problem = "bad JSON in a long line" if scan.broken is not None else _TOO_LONG
                    damaged = cutter.problem("bad_json_records", problem)
                    rest, skipped = self._next_line(cutter, rest)
                    yield damaged.with_loss(skipped)
                    carried = b""
                elif cut := self._begin_long_record(cutter, window, carried, scan):
                    block, rest, carried = cut
                    yield block
                else:
                    size *= 2
            yield from cutter.damage()

    def _next_line(self, cutter: BlockCutter, rest: bytes) -> tuple[bytes, int]:
        """Skips to the next line; returns what was read of it, and the characters skipped."""
        skipped = 0
        while rest:
            end = rest.find(b"\n") + 1 or len(rest)
            cutter.skip(rest[:end])
            skipped += count_characters(rest[:end])
            if rest.endswith(b"\n", 0, end):
                return rest[end:], skipped
            rest = cutter.read(self.block_bytes)
        return rest, skipped

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """Yields the records of the lines; what cannot be read is noted and left out."""
        lines = decode_lines(block, problems)
        for number, line in enumerate(lines, block.first_line):
            if line and not line.isspace():
                is_first = number == block.first_line
                document = self.reader.parse(
                    line,
                    Place(problems, block.path, number),
                    continues=is_first and block.continues_document,
                    is_part=is_first and _holds_part(block),
                )
                if document is not None:
                    yield document


@dataclass(frozen=True)
class JsonSource(_JsonSource):
    """Reads one array of objects a file, bare or as `{"RECORDS": [...]}`, or objects in a row."""

    def blocks(self, stream: InputStream) -> Iterator[Block]:
        """Cuts after records, and inside the text of a record that is longer than a block."""
        with BlockCutter(stream) as cutter:
            yield from self._cut_file(cutter)
            yield from cutter.damage()

    def _cut_file(self, cutter: BlockCutter) -> Iterator[Block]:
        rest, carried, size = cutter.read(self.block_bytes), b"", self.block_bytes
        array = array_header(rest)
        header = rest[: 3 * rest.startswith(BYTE_ORDER_MARK)] if array is None else array
        cutter.skip(header)
        rest = rest[len(header) :]
        next_record = _next_record_pattern(rest)
        is_inside, num_arrays = array is not None, 0
        while True:
            rest += cutter.read(max(0, size - len(rest)))
            at_end = len(rest) < size
            is_after = num_arrays > 0 and not is_inside
            if is_after and not carried and (following := _NEXT_ARRAY.match(rest)):
                header, is_inside = following[0], True
                cutter.skip(header)
                rest = rest[len(header) :]
                continue
            window = carried + rest
            scan = scan_records(window)
            if scan.ends:
                end = scan.ends[-1] - len(carried)
                yield cutter.block(rest[:end], continues_document=bool(carried), prefix=carried)
                rest, carried, size = rest[end:], b"", self.block_bytes
            elif not rest.strip(_BETWEEN):
                cutter.skip(rest)
                rest = b""
                if at_end:
                    if is_inside:
                        yield cutter.problem("bad_json_records", "the file ends inside the array")
                    return
            elif scan.closed is not None and is_inside:
                cutter.skip(rest[: scan.closed + 1])
                rest = rest[scan.closed + 1 :]
                is_inside, num_arrays = False, num_arrays + 1
                if b"{" in header:
                    rest += cutter.read(self.block_bytes)
                    end = _length_of_wrapper(rest)
                    cutter.skip(rest[:end])
                    rest = rest[end:]
            elif (
                scan.broken is not None
                or scan.closed is not None
                or at_end
                or _is_too_long(window, scan)
            ):
                record = rest if carried else rest.lstrip(_BETWEEN)
                cutter.skip(rest[: len(rest) - len(record)])
                problem = _AFTER_ARRAY if is_after else _what_is_broken(window, scan)
                damaged = cutter.problem("bad_json_records", problem)
                rest, skipped = self._next_record(cutter, record, next_record)
                yield damaged.with_loss(skipped)
                carried, size = b"", self.block_bytes
                if not rest:
                    return
            elif cut := self._begin_long_record(cutter, window, carried, scan):
                block, rest, carried = cut
                yield block
            else:
                size *= 2

    def _next_record(
        self, cutter: BlockCutter, rest: bytes, pattern: re.Pattern[bytes]
    ) -> tuple[bytes, int]:
        """Skips what is broken, to the next place that looks like the beginning of a record.

        Returns:
            What was read from there on, and how many characters were skipped.
        """
        first, skipped = 1, 0
        while True:
            if match := pattern.search(rest, first):
                cutter.skip(rest[: match.start()])
                return rest[match.start() :], skipped + count_characters(rest[: match.start()])
            step = max(0, len(rest) - _RECORD_REACH)
            more = cutter.read(self.block_bytes)
            if not more:
                cutter.skip(rest)
                return b"", skipped + count_characters(rest)
            cutter.skip(rest[:step])
            skipped += count_characters(rest[:step])
            rest, first = rest[step:] + more, 0

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """Yields the records of the block; what cannot be read is noted and left out."""
        data = block.read()
        documents = self.reader.parse_all(
            data, continues=block.continues_document, is_part=_holds_part(block)
        )
        if documents is None:
            yield from self._one_by_one(data, block, problems)
        else:
            yield from documents

    def _one_by_one(self, data: bytes, block: Block, problems: Problems) -> Iterator[Document]:
        end, line = 0, block.first_line
        for number, next_end in enumerate(scan_records(data).ends):
            record = data[end:next_end].lstrip(_BETWEEN)
            start = next_end - len(record)
            line += data.count(b"\n", end, start)
            offset = block.offset + max(0, start - len(block.prefix))
            place = Place(problems, block.path, line, f"byte {offset}: ")
            try:
                text = record.decode()
            except UnicodeDecodeError:
                note_invalid(block, problems, line, place.prefix)
                text = record.decode("utf-8", "replace")
            if "\0" in text:
                place.note("nul_byte_lines", "NUL byte")
                text = text.replace("\0", "")
            line += data.count(b"\n", start, next_end)
            end = next_end
            document = self.reader.parse(
                text,
                place,
                continues=number == 0 and block.continues_document,
                is_part=number == 0 and _holds_part(block),
            )
            if document is not None:
                yield document


def _holds_part(block: Block) -> bool:
    return bool(block.prefix or block.suffix)


def _length_of_wrapper(rest: bytes) -> int:
    """Returns where the object around an array ends; 0 if more records, or nothing, come first."""
    ends = scan_records(b"{" + rest).ends
    return ends[0] - 1 if ends and not _MORE_RECORDS.search(rest, 0, ends[0] - 1) else 0


def _next_record_pattern(beginning: bytes) -> re.Pattern[bytes]:
    """Finds records in broken data: a brace and the key that the file's first record begins with.

    Inside a sound string a quote would close it, and no key could follow.
    """
    first = _FIRST_KEY.match(beginning)
    key = re.escape(first[1]) if first else rb'"[^"\\]{0,100}"'
    return re.compile(rb"\{\s*" + key + rb"\s*:")


def _is_too_long(window: bytes, scan: Scan) -> bool:
    """Tells whether a record without an end in sight would take far too much memory as a whole."""
    if len(window) <= _MOST_RECORD_BYTES or (scan.open_string is not None and scan.depth == 1):
        return False
    return len(window) > _MOST_RECORD_BYTES_OF_TEXT or not is_mostly_text(window)


def _what_is_broken(window: bytes, scan: Scan) -> str:
    if scan.broken is not None:
        excerpt = window[scan.broken : scan.broken + 24].decode("utf-8", "replace")
        return f"bad JSON in the record that begins here: {excerpt!r} where no text may stand"
    if scan.closed is not None:
        return "bad JSON: a bracket that nothing has opened"
    if _is_too_long(window, scan):
        return _TOO_LONG
    return "the file ends inside the record that begins here"
