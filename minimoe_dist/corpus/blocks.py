"""Pieces of input files that can be read independently, and the problems found in them.

A file is cut into blocks at document boundaries by a quick look at its bytes; processes then
read, decode and parse the blocks. A document larger than a block is cut between two lines, a
line larger than a block between two sentences, so that memory stays bounded and the result is
that of the file read in one go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from minimoe_dist.corpus.sentences import SentenceRules, last_safe_cut

BLOCK_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MESSAGES = 20


@dataclass(frozen=True)
class Document:
    """One document: its title, if it has one, and its lines without line ends.

    `continues` marks the rest of the document that the block before has begun.
    """

    title: str | None
    lines: list[str]
    continues: bool = False


@dataclass(frozen=True)
class Block:
    """A range of bytes of a file.

    Attributes:
        path: the file.
        offset, length: the range, in bytes.
        first_line: number of the line that the range begins in, from 1.
        continues_document, continues_line: whether its beginning belongs to the document, to
            the line, of the block before.
        data: the bytes themselves, where they cannot be read by offset.
    """

    path: str
    offset: int
    length: int
    first_line: int = 1
    continues_document: bool = False
    continues_line: bool = False
    data: bytes | None = None

    def read(self) -> bytes:
        """The bytes of the range."""
        if self.data is not None:
            return self.data
        with open(self.path, "rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.length)


@dataclass
class Problems:
    """What was wrong in the input: all of it counted, the first messages kept.

    With `strict`, the first problem raises `ValueError` instead.
    """

    strict: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

    def found(self, kind: str, path: str, line: int, what: str) -> None:
        """Notes one problem at a line of a file."""
        message = f"{path}:{line}: {what}"
        if self.strict:
            raise ValueError(f"{message}; repair the file or leave strict mode")
        self.counts[kind] += 1
        if len(self.messages) < _MESSAGES:
            self.messages.append(message)


def decode_lines(block: Block, problems: Problems) -> list[str]:
    """The lines of a block; invalid UTF-8 becomes U+FFFD, NUL bytes vanish, both are noted."""
    data = block.read()
    if block.offset == 0:
        data = data.removeprefix(_BYTE_ORDER_MARK)
    data = data.removesuffix(b"\n")
    if b"\0" not in data:
        try:
            return data.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            pass
    lines = []
    for number, raw in enumerate(data.split(b"\n"), block.first_line):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            problems.found("invalid_utf8_lines", block.path, number, "invalid UTF-8")
            line = raw.decode("utf-8", "replace")
        if "\0" in line:
            problems.found("nul_byte_lines", block.path, number, "NUL byte")
            line = line.replace("\0", "")
        lines.append(line)
    return lines


def cut_blocks(
    path: str,
    document_cut: Callable[[bytes], int],
    starts_document: Callable[[bytes, bytes], bool],
    *,
    block_bytes: int = BLOCK_BYTES,
    longest_sentence: int = SentenceRules.longest,
) -> Iterator[Block]:
    """Cuts a file into blocks of at most `block_bytes`.

    Args:
        path: the file.
        document_cut: where the last document of a window starts, in bytes; 0 if only at its
            beginning.
        starts_document: whether a new document starts between the end of the block before
            (first argument) and the next window (second argument).
        block_bytes: size of a window.
        longest_sentence: where over-long sentences are cut, in characters.
    """
    assert block_bytes >= 16 * longest_sentence or block_bytes >= BLOCK_BYTES
    offset, line = 0, 1
    window, before = b"", b""
    with open(path, "rb") as stream:
        while True:
            window += stream.read(block_bytes - len(window))
            if not window:
                return
            at_end = len(window) < block_bytes
            end = len(window) if at_end else _cut(window, document_cut, longest_sentence)
            inside_line = bool(before) and not before.endswith(b"\n")
            continues = bool(before) and (inside_line or not starts_document(before, window))
            yield Block(path, offset, end, line, continues, inside_line)
            before, window = window[:end], window[end:]
            offset += end
            line += before.count(b"\n")


def _cut(window: bytes, document_cut: Callable[[bytes], int], longest_sentence: int) -> int:
    end = document_cut(window) or window.rfind(b"\n") + 1
    if end:
        return end
    text = window.decode("utf-8", "surrogateescape")
    cut = last_safe_cut(text, longest_sentence)
    return len(text[:cut].encode("utf-8", "surrogateescape")) or len(window)
