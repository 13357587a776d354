"""wikiextractor's text output, read and written."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...durable import written
from ..blocks import Block, Document, Problems, decode_lines
from .text import LineSource


@dataclass(frozen=True)
class WikiSource(LineSource):
    """wikiextractor's output: `<doc ... title="T">`, the title, paragraphs, `</doc>`.

    Titles are left out of the lines; `&lt;` and the like are turned back into characters.
    """

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """What stands between the tags; other text is noted as a problem."""
        continues = block.continues_document
        inside, awaits_title = continues, False
        title: str | None = None
        lines: list[str] = []
        for number, line in enumerate(decode_lines(block, problems), block.first_line):
            if line.startswith("<doc ") and not (
                block.continues_line and number == block.first_line
            ):
                if inside:
                    yield Document(title, lines, continues)
                title, lines, continues = _title_of(line), [], False
                inside = awaits_title = True
            elif line.startswith("</doc>"):
                if inside:
                    yield Document(title, lines, continues)
                inside = continues = False
                lines = []
            elif not line or line.isspace():
                continue
            elif not inside:
                problems.found("lines_outside_documents", block.path, number, "text outside <doc>")
            else:
                text = html.unescape(line) if "&" in line else line
                if not (awaits_title and text.strip() == title):
                    lines.append(text)
                awaits_title = False
        if inside:
            yield Document(title, lines, continues)

    @staticmethod
    def _last_start(window: bytes) -> int:
        return window.rfind(b"\n<doc ") + 1

    @staticmethod
    def _starts_document(before: bytes, window: bytes) -> bool:
        return window.startswith(b"<doc ") or before.rstrip().endswith(b"</doc>")


_TITLE = re.compile(r'title="(.*)"')


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
