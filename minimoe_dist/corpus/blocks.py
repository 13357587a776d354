"""Pieces of input files that can be read independently, and the problems found in them.

A file is cut into blocks at document boundaries by a quick look at its bytes; processes then
read, decode and parse the blocks. The blocks of a compressed file carry their bytes, as they
cannot be read from the file once more. A document larger than a block is cut between two lines, a
line larger than a block between two sentences, so that memory stays bounded and the result is
that of the file read in one go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from ..errors import UserError
from .sentences import SentenceRules, last_safe_cut
from .streams import InputStream

BLOCK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
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
class Damage:
    """Something wrong that was seen while a file was cut: its kind and a message."""

    kind: str
    what: str


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
        prefix, suffix: what has to stand around the bytes for them to be read by themselves.
        damage: what was wrong at the block's first line; such a block has no bytes.
        file_bytes: how much of the file it took, compressed if the file is; None for `length`.
    """

    path: str
    offset: int
    length: int
    first_line: int = 1
    continues_document: bool = False
    continues_line: bool = False
    data: bytes | None = None
    prefix: bytes = b""
    suffix: bytes = b""
    damage: Damage | None = None
    file_bytes: int | None = None

    @property
    def progress(self) -> int:
        """How much of the file is done with the block, in bytes of the file as it stands there."""
        return self.length if self.file_bytes is None else self.file_bytes

    def read(self) -> bytes:
        """The bytes of the range, with what has to stand around them."""
        return self.prefix + self._bytes() + self.suffix

    def without_data(self) -> Block:
        """The block's place alone, which is cheap to send."""
        return replace(self, data=None)

    def _bytes(self) -> bytes:
        if self.damage is not None:
            return b""
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

    def note_damage(self, block: Block) -> bool:
        """Notes what was wrong where the block was cut; returns whether anything was."""
        if block.damage is None:
            return False
        self.found(block.damage.kind, block.path, block.first_line, block.damage.what)
        return True

    def found(self, kind: str, path: str, line: int, what: str) -> None:
        """Notes one problem at a line of a file."""
        message = f"{path}:{line}: {what}"
        if self.strict:
            raise UserError(f"{message}; repair the file or leave strict mode")
        self.counts[kind] += 1
        if len(self.messages) < _MESSAGES:
            self.messages.append(message)


def decode_lines(block: Block, problems: Problems) -> list[str]:
    """The lines of a block; invalid UTF-8 becomes U+FFFD, NUL bytes vanish, both are noted."""
    data = block.read()
    if block.offset == 0:
        data = data.removeprefix(BYTE_ORDER_MARK)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
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
    window, before = b"", b""
    with BlockCutter(path) as cutter:
        while True:
            window += cutter.read(block_bytes - len(window))
            if not window:
                yield from cutter.damage()
                return
            at_end = len(window) < block_bytes
            end = len(window) if at_end else _cut(window, document_cut, longest_sentence)
            inside_line = bool(before) and not before.endswith(b"\n")
            continues = bool(before) and (inside_line or not starts_document(before, window))
            before, window = window[:end], window[end:]
            yield cutter.block(before, continues_document=continues, continues_line=inside_line)


class BlockCutter:
    """Hands out the blocks of one file, and keeps count of where they are.

    Args:
        path: the file.
        count: how many lines end in some bytes, or whatever else `Block.first_line` counts.
    """

    def __init__(
        self, path: str, count: Callable[[bytes], int] = lambda data: data.count(b"\n")
    ) -> None:
        self._path, self._count = path, count
        self._stream = InputStream(path)
        self._offset, self._line, self._taken = 0, 1, 0

    def __enter__(self) -> BlockCutter:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def read(self, size: int) -> bytes:
        """The file's next bytes; fewer than `size` only at its end."""
        return self._stream.read(size)

    def block(
        self,
        data: bytes,
        *,
        continues_document: bool = False,
        continues_line: bool = False,
        prefix: bytes = b"",
        suffix: bytes = b"",
    ) -> Block:
        """The block of the bytes that follow those handed out or skipped before."""
        block = Block(
            self._path,
            self._offset,
            len(data),
            self._line,
            continues_document,
            continues_line,
            data if self._stream.compression else None,
            prefix,
            suffix,
            file_bytes=self._file_bytes(len(data)),
        )
        self.skip(data)
        return block

    def skip(self, data: bytes) -> None:
        """Leaves out bytes that follow."""
        self._offset += len(data)
        self._line += self._count(data)

    def problem(self, kind: str, what: str) -> Block:
        """A block that says what is wrong at the present place."""
        damage = Damage(kind, f"byte {self._offset}: {what}")
        return Block(
            self._path,
            self._offset,
            0,
            self._line,
            damage=damage,
            file_bytes=self._file_bytes(0),
        )

    def damage(self) -> Iterator[Block]:
        """A block that says what was wrong with the compressed data, if anything was."""
        if self._stream.damage:
            yield self.problem("damaged_files", self._stream.damage)

    def _file_bytes(self, length: int) -> int:
        before = self._taken
        self._taken = self._stream.tell() if self._stream.compression else self._offset + length
        return self._taken - before


def _cut(window: bytes, document_cut: Callable[[bytes], int], longest_sentence: int) -> int:
    end = document_cut(window) or window.rfind(b"\n") + 1
    if end:
        return end
    text = window.decode("utf-8", "surrogateescape")
    cut = last_safe_cut(text, longest_sentence)
    return len(text[:cut].encode("utf-8", "surrogateescape")) or len(window)
