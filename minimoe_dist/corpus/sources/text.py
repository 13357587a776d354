"""Plain text: of sentences or of paragraphs, with empty lines between documents or without."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ..blocks import (
    BLOCK_BYTES,
    Block,
    Document,
    Problems,
    cut_blocks,
    decode_lines,
)
from ..sentences import SentenceRules


@dataclass(frozen=True)
class LineSource(ABC):
    """What is read line by line; kinds differ in where documents begin.

    Attributes:
        block_bytes: size of a block.
        longest_sentence: where over-long sentences are cut, in characters.
    """

    block_bytes: int = BLOCK_BYTES
    longest_sentence: int = SentenceRules.longest
    lines_are_sentences: ClassVar[bool] = False

    def blocks(self, path: str) -> Iterator[Block]:
        """Cuts between documents, or inside one that is longer than a block."""
        return cut_blocks(
            path,
            self._last_start,
            self._starts_document,
            block_bytes=self.block_bytes,
            longest_sentence=self.longest_sentence,
        )

    @abstractmethod
    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """The documents of one piece."""

    @staticmethod
    @abstractmethod
    def _last_start(window: bytes) -> int:
        """Where the last document of a window starts, in bytes; 0 if only at its beginning."""

    @staticmethod
    @abstractmethod
    def _starts_document(before: bytes, window: bytes) -> bool:
        """Whether a document starts between the end of the block before and a window."""


_EMPTY_LINES = (b"\n\n", b"\n\r\n")


@dataclass(frozen=True)
class FormatSource(LineSource):
    """Text of one sentence a line, with an empty line between documents."""

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

    @staticmethod
    def _last_start(window: bytes) -> int:
        ends = [window.rfind(gap) + len(gap) for gap in _EMPTY_LINES if gap in window]
        return max(ends, default=0)

    @staticmethod
    def _starts_document(before: bytes, window: bytes) -> bool:
        return before.endswith(_EMPTY_LINES)


@dataclass(frozen=True)
class TextSource(FormatSource):
    """Paragraphs, one a line, with an empty line between documents.

    CLUECorpusSmall is read so: most of its lines are one sentence, many are several.
    """

    lines_are_sentences: ClassVar[bool] = False


@dataclass(frozen=True)
class TextFileSource(LineSource):
    """Paragraphs, one a line; each file is one document."""

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """The file's document, or a part of it."""
        lines = [line for line in decode_lines(block, problems) if line and not line.isspace()]
        yield Document(None, lines, block.continues_document)

    @staticmethod
    def _last_start(window: bytes) -> int:
        return window.rfind(b"\n") + 1

    @staticmethod
    def _starts_document(before: bytes, window: bytes) -> bool:
        return False
