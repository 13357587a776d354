"""Reads and writes wikiextractor's text output."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...durable import written
from ..blocks import BYTE_ORDER_MARK, Block, Document, Problems, decode_lines
from .text import LineSource

_OPENING, _CLOSING = "<doc ", "</doc>"
_CLOSING_AT_END = re.compile(rb"(?:\A|\n)</doc>[ \t\r]*\n\s*\Z")
_REACH = 1024
# Titles stand there as they are, with quotes in them.
_TAG = r"""<doc(?=\s)(?:\s+\w+=[^\s"'>]*[^\s"'>.])*(?:\s+\w+=["'].*?["'])?\s*>"""
_TAG_IN_TEXT, _TAG_IN_BYTES = re.compile(_TAG), re.compile(_TAG.encode())
_TITLE = re.compile(r'title="(.*?)"(?=\s+\w+=["\w]|\s*>)')
_OUTSIDE = "text_outside_documents"
_UNCLOSED = "unclosed_documents"


@dataclass(frozen=True)
class WikiSource(LineSource):
    """Reads wikiextractor's output: `<doc ... title="T">`, the title, paragraphs, `</doc>`.

    What follows the tag in its line is text, up to a `</doc>` at that line's end. Titles are left
    out of the lines; `&lt;` and the like are turned back into characters. Where tags are not
    balanced nothing is left out: text outside of a document becomes one without a title, and each
    such place is counted.
    """

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """Yields a document for each pair of tags."""
        continues = block.continues_document
        inside, awaits_title = continues, False
        title: str | None = None
        lines: list[str] = []

        def note(kind: str, message: str) -> None:
            problems.note(kind, block.path, number, message)

        for number, line in enumerate(decode_lines(block, problems), block.first_line):
            is_whole = not (block.continues_line and number == block.first_line)
            tag = _TAG_IN_TEXT.match(line) if line.startswith(_OPENING) and is_whole else None
            if tag is not None:
                if inside:
                    note(_UNCLOSED, "<doc> inside a document that is not closed")
                    yield Document(title, lines, continues)
                title, lines, continues = _title_of(tag[0]), [], False
                inside = awaits_title = True
                text = html.unescape(line[tag.end() :].rstrip().removesuffix(_CLOSING))
                if _CLOSING in text:
                    note("closing_tags_inside_lines", "</doc> inside a line, which is kept")
                if text and not text.isspace():
                    lines = [] if text.strip() == title else [text]
                    awaits_title = False
                if line.rstrip().endswith(_CLOSING):
                    yield Document(title, lines, continues)
                    inside, lines = False, []
            elif line.startswith(_CLOSING) and line.strip() == _CLOSING and is_whole:
                if inside:
                    yield Document(title, lines, continues)
                else:
                    note("closing_tags_without_documents", "</doc> outside of a document")
                inside = continues = False
                lines = []
            elif not line or line.isspace():
                continue
            else:
                if not inside:
                    note(_OUTSIDE, "text outside <doc>")
                    title, lines, inside, awaits_title = None, [], True, False
                text = html.unescape(line) if "&" in line else line
                if _CLOSING in line:
                    note("closing_tags_inside_lines", "</doc> inside a line, which is kept")
                if not (awaits_title and text.strip() == title):
                    lines.append(text)
                awaits_title = False
        if inside:
            yield Document(title, lines, continues)

    def _last_start(self, window: bytes) -> int:
        start = window.rfind(b"\n<doc ") + 1
        if start:
            return start
        # What a closing tag means depends on what follows: both stay in one block.
        whole_lines = window[: window.rfind(b"\n") + 1]
        closing = _CLOSING_AT_END.search(whole_lines, max(0, len(whole_lines) - _REACH))
        return 0 if closing is None or closing.start() == 0 else closing.start() + 1

    def _starts_document(self, previous: bytes, window: bytes) -> bool:
        rest = window.removeprefix(BYTE_ORDER_MARK).lstrip()
        return not rest or begins_with_tag(rest)

    def _fault_at_end(self, previous: bytes) -> tuple[str, str] | None:
        if previous.rstrip().endswith(b"</doc>"):
            return None
        return _UNCLOSED, "the document before is not closed"


def begins_with_tag(beginning: bytes) -> bool:
    """Tells whether some bytes begin with a tag that opens a document."""
    return _TAG_IN_BYTES.match(beginning) is not None


def _title_of(tag: str) -> str | None:
    match = _TITLE.search(tag)
    return html.unescape(match.group(1)).strip() if match else None


def write_wiki(documents: Iterable[Document], path: str) -> int:
    """Writes documents as wikiextractor would; returns how many.

    Args:
        documents: titled or not, their lines being paragraphs.
        path: the file; its folder is made.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    count = 0
    with written(path) as aside, aside.open("w", encoding="utf-8") as stream:
        for count, document in enumerate(documents, 1):
            title = html.escape(document.title or "")
            paragraphs = "\n".join(html.escape(line, quote=False) for line in document.lines)
            stream.write(f'<doc id="{count}" url="" title="{title}">\n')
            stream.write(f"{title}\n\n{paragraphs}\n</doc>\n")
    return count
