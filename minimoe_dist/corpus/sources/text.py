"""Reads plain text: sentences or paragraphs, with empty lines between documents or without."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from ..blocks import (
    BLOCK_BYTES,
    Block,
    BlockCutter,
    Document,
    Problems,
    cut_between_sentences,
    decode_lines,
)
from ..sentences import SentenceRules
from ..streams import InputStream
from ..wrapping import Wrapping


@dataclass(frozen=True)
class LineSource(ABC):
    """Reads files line by line; kinds differ in where documents begin.

    Attributes:
        block_bytes: size of a block.
        longest_sentence: where over-long sentences are cut, in characters.
    """

    block_bytes: int = BLOCK_BYTES
    longest_sentence: int = SentenceRules.longest
    lines_are_sentences: ClassVar[bool] = False

    def blocks(self, stream: InputStream) -> Iterator[Block]:
        """Cuts between documents, or inside one that is longer than a block."""
        assert self.block_bytes >= min(BLOCK_BYTES, 16 * self.longest_sentence)
        stream.end_lines()
        window, previous = b"", b""
        with BlockCutter(stream) as cutter:
            while True:
                window += cutter.read(self.block_bytes - len(window))
                inside_line = bool(previous) and not previous.endswith(b"\n")
                continues = bool(previous) and (
                    inside_line or not self._starts_document(previous, window)
                )
                if previous and not continues and (fault := self._fault_at_end(previous)):
                    yield cutter.problem(*fault)
                if not window:
                    yield from cutter.damage()
                    return
                at_end = len(window) < self.block_bytes
                end = len(window) if at_end else self._cut(window)
                previous, window = window[:end], window[end:]
                yield cutter.block(
                    previous, continues_document=continues, continues_line=inside_line
                )

    def _cut(self, window: bytes) -> int:
        return (
            self._last_start(window)
            or window.rfind(b"\n") + 1
            or cut_between_sentences(window, self.longest_sentence)
        )

    @abstractmethod
    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """Yields the documents of one piece."""

    @abstractmethod
    def _last_start(self, window: bytes) -> int:
        """Finds where a window's last document starts, in bytes; 0 if only at its beginning."""

    @abstractmethod
    def _starts_document(self, previous: bytes, window: bytes) -> bool:
        """Tells whether a document starts between the end of the block before and a window.

        An empty window is the end of the file.
        """

    def _fault_at_end(self, previous: bytes) -> tuple[str, str] | None:
        """Finds a fault of the document that ends with a block: its kind and a message."""
        return None


FORMAT_SUFFIX = ".format"
_EMPTY_LINES = (b"\n\n", b"\n\r\n")


@dataclass(frozen=True)
class FormatSource(LineSource):
    """Reads text of one sentence a line, with an empty line between documents."""

    lines_are_sentences: ClassVar[bool] = True

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """Runs of lines that are not empty."""
        continues = block.continues_document
        lines: list[str] = []
        for line in decode_lines(block, problems):
            if line and not line.isspace():
                lines.append(line)
            elif lines or continues:
                yield Document(None, lines, continues)
                lines, continues = [], False
        if lines:
            yield Document(None, lines, continues)

    def _last_start(self, window: bytes) -> int:
        ends = [window.rfind(gap) + len(gap) for gap in _EMPTY_LINES if gap in window]
        return max(ends, default=0)

    def _starts_document(self, previous: bytes, window: bytes) -> bool:
        return previous.endswith(_EMPTY_LINES)


@dataclass(frozen=True)
class TextSource(FormatSource):
    """Reads paragraphs, one a line, with an empty line between documents.

    CLUECorpusSmall is read so: most of its lines are one sentence, many are several.
    """

    lines_are_sentences: ClassVar[bool] = False


@dataclass(frozen=True)
class TextFileSource(LineSource):
    """Reads paragraphs, one a line; each file is one document."""

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """Yields the file's document, or a part of it."""
        lines = [line for line in decode_lines(block, problems) if line and not line.isspace()]
        yield Document(None, lines, block.continues_document)

    def _last_start(self, window: bytes) -> int:
        return window.rfind(b"\n") + 1

    def _starts_document(self, previous: bytes, window: bytes) -> bool:
        return False


_EMPTY = rb"[ \t\r\f]*\n"
_PARAGRAPH_START = re.compile(rb"\n" + _EMPTY + rb"(?=[ \t]*[^\s])")
_INDENTED_START = re.compile(rb"[.!?\"'\x80-\xff]\r?\n(?=[ \t]+\S|\xe3\x80\x80)")
_AFTER_SENTENCE = re.compile(rb"(?:[.!?]|\xe3\x80\x82)[\"')]*\r?\n")
_FEWEST_EMPTY_LINES = 3
_DOCUMENT_END = re.compile(rb"\n(?:" + _EMPTY + rb"){3,}\Z")
_TAIL_BYTES = 1 << 14


@dataclass(frozen=True)
class WrappedSource(LineSource):
    """Reads hard-wrapped text: an empty line ends a paragraph, three and more a document.

    Attributes:
        wrapping: how its lines were broken.
        is_one_document: whether no number of empty lines ends a document.
    """

    wrapping: Wrapping = field(kw_only=True)
    is_one_document: bool = False

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """Yields the documents of a block, a paragraph a line."""
        continues, lines, num_empty = block.continues_document, list[str](), 0
        for line in decode_lines(block, problems):
            if not line or line.isspace():
                num_empty += 1
            else:
                is_end = num_empty >= _FEWEST_EMPTY_LINES and not self.is_one_document
                if is_end and (lines or continues):
                    yield Document(None, self.wrapping.paragraphs(lines), continues)
                    lines, continues = [], False
                num_empty = 0
            lines.append(line)
        if lines:
            yield Document(None, self.wrapping.paragraphs(lines), continues)

    def _last_start(self, window: bytes) -> int:
        for start in (max(0, len(window) - _TAIL_BYTES), 0):
            for pattern in (_PARAGRAPH_START, _INDENTED_START):
                ends = [match.end() for match in pattern.finditer(window, start)]
                if ends:
                    return ends[-1]
        # A paragraph longer than a block.
        return max((match.end() for match in _AFTER_SENTENCE.finditer(window)), default=0)

    def _starts_document(self, previous: bytes, window: bytes) -> bool:
        if self.is_one_document:
            return False
        return _DOCUMENT_END.search(previous, max(0, len(previous) - _TAIL_BYTES)) is not None
