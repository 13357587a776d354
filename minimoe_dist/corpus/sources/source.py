"""What all readers of raw corpora have in common: files to blocks, blocks to documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Protocol

from ..blocks import Block, Document, Problems

FORMAT_SUFFIX = ".format"


class Source(Protocol):
    """A kind of raw corpus.

    `lines_are_sentences` tells whether a document's lines are sentences already or paragraphs
    that want splitting.
    """

    lines_are_sentences: ClassVar[bool]

    def blocks(self, path: str) -> Iterator[Block]:
        """Cuts a file into pieces that can be read independently, in the order of the file."""
        ...

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """The documents of one piece."""
        ...
