"""Plain text: of sentences or of paragraphs, with empty lines between documents or without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from minimoe_dist.corpus.blocks import (
    BLOCK_BYTES,
    Block,
    Document,
    Problems,
    cut_blocks,
    decode_lines,
)
from minimoe_dist.corpus.sentences import SentenceRules


@dataclass(frozen=True)
class FormatSource:
    """Text of one sentence a line, with an empty line between documents."""

    block_bytes: int = BLOCK_BYTES
    longest_sentence: int = SentenceRules.longest
    lines_are_sentences: ClassVar[bool] = True

    def blocks(self, path: str) -> Iterator[Block]:
        """Cuts after empty lines."""
        return cut_blocks(
            path,
            _after_empty_line,
            _begins_after_empty_line,
            block_bytes=self.block_bytes,
            longest_sentence=self.longest_sentence,
        )

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


_EMPTY_LINES = (b"\n\n", b"\n\r\n")


def _after_empty_line(window: bytes) -> int:
    ends = [window.rfind(gap) + len(gap) for gap in _EMPTY_LINES if gap in window]
    return max(ends, default=0)


def _begins_after_empty_line(before: bytes, _window: bytes) -> bool:
    return before.endswith(_EMPTY_LINES)


@dataclass(frozen=True)
class TextSource(FormatSource):
    """Paragraphs, one a line, with an empty line between documents.

    CLUECorpusSmall is read so: most of its lines are one sentence, many are several.
    """

    lines_are_sentences: ClassVar[bool] = False


@dataclass(frozen=True)
class TextFileSource:
    """Paragraphs, one a line; each file is one document."""

    block_bytes: int = BLOCK_BYTES
    longest_sentence: int = SentenceRules.longest
    lines_are_sentences: ClassVar[bool] = False

    def blocks(self, path: str) -> Iterator[Block]:
        """Cuts after lines."""
        return cut_blocks(
            path,
            lambda window: window.rfind(b"\n") + 1,
            lambda _before, _window: False,
            block_bytes=self.block_bytes,
            longest_sentence=self.longest_sentence,
        )

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """The file's document, or a part of it."""
        lines = [line for line in decode_lines(block, problems) if line and not line.isspace()]
        yield Document(None, lines, block.continues_document)
