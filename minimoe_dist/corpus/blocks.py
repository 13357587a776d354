"""Cuts input files into blocks that can be read independently, and counts problems in them.

A file is cut into blocks at document boundaries by a quick look at its bytes; processes then
read, decode and parse the blocks. The blocks of a compressed file, or of a member of an archive,
carry their bytes, as they cannot be read from the file once more. A document larger than a block
is cut between two lines, a line larger than a block between two sentences, so that memory stays
bounded and the result is that of the file read in one go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from ..errors import UserError
from .sentences import last_safe_cut
from .streams import InputStream

BLOCK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
REPLACEMENT = "\ufffd"
_MESSAGES = 20
_SAMPLE_BYTES = 1 << 16


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
    """Something wrong that was seen while a file was cut.

    Attributes:
        kind: under which it is counted.
        message: for people.
        lost: how many characters of text it costs, as far as that is known.
    """

    kind: str
    message: str
    lost: int = 0


@dataclass(frozen=True)
class Block:
    """A range of bytes of a file.

    Attributes:
        path: the file, or what messages call a member of it.
        offset, length: the range, in bytes.
        first_line: number of the line that the range begins in, from 1.
        continues_document, continues_line: whether its beginning belongs to the document, to
            the line, of the block before.
        data: the bytes themselves, where they cannot be read by offset.
        prefix, suffix: what has to stand around the bytes for them to be read by themselves.
        damage: what was wrong at the block's first line; such a block has no bytes.
        file_bytes: how much of the file it took, compressed if the file is; None for `length`.
        encoding: what the bytes were in before they became UTF-8.
        members: for an archive, blocks of its members, each with its reader, and no own bytes.
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
    encoding: str = "UTF-8"
    members: tuple[tuple[Source, Block], ...] = ()

    @property
    def progress(self) -> int:
        """How much of the file is done with the block, in bytes of the file as it stands there."""
        return self.length if self.file_bytes is None else self.file_bytes

    def read(self) -> bytes:
        """Returns the bytes of the range, with what has to stand around them."""
        return self.prefix + self._bytes() + self.suffix

    def without_data(self) -> Block:
        """Returns the block without its bytes, which is cheap to send."""
        return replace(self, data=None, members=())

    def with_loss(self, lost: int) -> Block:
        """Returns the block with damage that costs ``lost`` characters."""
        assert self.damage is not None
        return replace(self, damage=replace(self.damage, lost=lost))

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
    """Counts what was wrong in the input, and keeps the first messages.

    With `strict`, the first problem raises `UserError` instead.

    Attributes:
        counts: how often, by kind.
        kept: characters of text that stay.
        lost: characters of text that are left out, by kind.
        messages: the first ones.
        replaced_as: the kind of damage that last put U+FFFD into the text of the present block;
            None as long as none did.
    """

    strict: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    replaced_as: str | None = None

    def note_damage(self, block: Block) -> bool:
        """Notes what was wrong where the block was cut; returns whether anything was."""
        if block.damage is None:
            return False
        damage = block.damage
        self.note(damage.kind, block.path, block.first_line, damage.message, damage.lost)
        return True

    def note(self, kind: str, path: str, line: int, problem: str, lost: int = 0) -> None:
        """Notes one problem at a line of a file, and the characters that it costs."""
        message = f"{path}:{line}: {problem}"
        if self.strict:
            raise UserError(f"{message}; repair the file or leave strict mode")
        self.counts[kind] += 1
        if lost:
            self.lost[kind] += lost
        if len(self.messages) < _MESSAGES:
            self.messages.append(message)

    def note_replacement(self, kind: str, path: str, line: int, problem: str) -> None:
        """Notes characters that U+FFFD stands for; who counts what is kept counts them as lost."""
        self.note(kind, path, line, problem)
        self.replaced_as = kind


class Source(Protocol):
    """Reads one kind of raw corpus.

    `lines_are_sentences` tells whether a document's lines are sentences already or paragraphs
    that want splitting.
    """

    lines_are_sentences: ClassVar[bool]

    def blocks(self, stream: InputStream) -> Iterator[Block]:
        """Cuts a file into pieces that can be read independently, in order, and closes it."""
        ...

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """Yields the documents of one piece."""
        ...


def decode_lines(block: Block, problems: Problems) -> list[str]:
    """Returns a block's lines; invalid UTF-8 becomes U+FFFD, NUL bytes vanish, both are noted."""
    data = block.read()
    if not block.continues_line:
        data = data.removeprefix(BYTE_ORDER_MARK)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    data = data.removesuffix(b"\n")
    if b"\0" not in data:
        try:
            text = data.decode("utf-8")
            # Files that were put together have a byte order mark at the beginning of each.
            return (text.replace("\n\ufeff", "\n") if "\ufeff" in text else text).split("\n")
        except UnicodeDecodeError:
            pass
    lines = list[str]()
    for number, raw in enumerate(data.split(b"\n"), block.first_line):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            line = raw.decode("utf-8", "replace")
            note_invalid(block, problems, number)
        if "\0" in line:
            problems.note("nul_byte_lines", block.path, number, "NUL byte")
            line = line.replace("\0", "")
        lines.append(line.removeprefix("\ufeff") if lines else line)
    return lines


def note_invalid(block: Block, problems: Problems, line: int, prefix: str = "") -> None:
    """Notes a line of a block that has bytes which its encoding does not have."""
    kind = f"invalid_{block.encoding.lower().replace('-', '')}_lines"
    problems.note_replacement(kind, block.path, line, f"{prefix}invalid {block.encoding}")


def count_characters(data: bytes) -> int:
    """Returns how many characters some bytes of UTF-8 stand for, roughly where it is damaged."""
    return len(data.decode("utf-8", "replace"))


def scale_to_characters(num_bytes: int, sample: bytes) -> int:
    """Estimates how many characters bytes like those of a sample stand for."""
    sample = sample[:_SAMPLE_BYTES]
    return num_bytes * count_characters(sample) // len(sample) if sample else num_bytes


class BlockCutter:
    """Hands out the blocks of one stream, which it closes, and keeps count of where they are.

    Args:
        stream: a file or a member of one.
        count: how many lines end in some bytes, or whatever else `Block.first_line` counts.
        is_archive: whether the bytes of blocks are not those of the stream, but of its members.
    """

    def __init__(
        self,
        stream: InputStream,
        count: Callable[[bytes], int] = lambda data: data.count(b"\n"),
        is_archive: bool = False,
    ) -> None:
        self._stream, self._count = stream, count
        self._can_reread = stream.is_plain and not is_archive
        self._offset, self._line, self._position = 0, 1, 0
        self._sample = b""

    def __enter__(self) -> BlockCutter:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def read(self, size: int) -> bytes:
        """Returns the file's next bytes; fewer than `size` only at its end."""
        return self._stream.read(size)

    def unread_bytes(self) -> int | None:
        """Returns how many bytes of the stream are still to be read; None where nobody knows."""
        return self._stream.unread_bytes()

    def block(
        self,
        data: bytes,
        *,
        continues_document: bool = False,
        continues_line: bool = False,
        prefix: bytes = b"",
        suffix: bytes = b"",
    ) -> Block:
        """Returns the block of the bytes that follow those handed out or skipped before."""
        block = Block(
            self._stream.name,
            self._offset,
            len(data),
            self._line,
            continues_document,
            continues_line,
            None if self._can_reread else data,
            prefix,
            suffix,
            file_bytes=self._file_bytes(len(data)),
            encoding=self._stream.encoding,
        )
        self.skip(data)
        self._sample = data[:_SAMPLE_BYTES]
        return block

    def skip(self, data: bytes) -> None:
        """Leaves out bytes that follow."""
        self._offset += len(data)
        self._line += self._count(data)

    def problem(self, kind: str, message: str, lost: int = 0) -> Block:
        """Returns a block that says what is wrong at the present place, and how much it costs."""
        return Block(
            self._stream.name,
            self._offset,
            0,
            self._line,
            data=None if self._can_reread else b"",
            damage=Damage(kind, f"byte {self._offset}: {message}", lost),
            file_bytes=self._file_bytes(0),
        )

    def damage(self, sample: bytes = b"") -> Iterator[Block]:
        """Yields a block that says what was wrong with the compressed data, if anything was.

        Args:
            sample: of its text, where blocks have none of their own.
        """
        if self._stream.damage:
            lost = scale_to_characters(self._stream.lost_bytes(), self._sample or sample)
            yield self.problem("damaged_files", self._stream.damage, lost)

    def _file_bytes(self, length: int) -> int:
        earlier = self._position
        position = self._offset + length if self._can_reread else self._stream.tell()
        self._position = max(earlier, position)
        return self._position - earlier


def cut_between_sentences(window: bytes, longest_sentence: int) -> int:
    """Returns where a window of one line alone may be cut, in bytes."""
    text = window.decode("utf-8", "surrogateescape")
    cut = last_safe_cut(text, longest_sentence)
    return len(text[:cut].encode("utf-8", "surrogateescape")) or len(window)
