"""Readers of raw corpora, all with one interface: files to blocks, blocks to documents."""

from __future__ import annotations

import ast
import html
import inspect
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from minimoe_dist.corpus.blocks import (
    BLOCK_BYTES,
    Block,
    Document,
    Problems,
    cut_blocks,
    decode_lines,
)
from minimoe_dist.corpus.sentences import SentenceRules

FORMAT_SUFFIX = ".format"
INPUT_FORMATS = ("auto", "wiki", "format")
_PARTIAL_SUFFIX = ".partial"


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
class WikiSource:
    """wikiextractor's output: `<doc ... title="T">`, the title, paragraphs, `</doc>`.

    Titles are left out of the lines; `&lt;` and the like are turned back into characters.
    """

    block_bytes: int = BLOCK_BYTES
    longest_sentence: int = SentenceRules.longest
    lines_are_sentences: ClassVar[bool] = False

    def blocks(self, path: str) -> Iterator[Block]:
        """Cuts before `<doc ` at the beginning of a line."""
        return cut_blocks(
            path,
            _before_doc_tag,
            _begins_with_doc_tag,
            block_bytes=self.block_bytes,
            longest_sentence=self.longest_sentence,
        )

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


_TITLE = re.compile(r'title="(.*)"')


def _title_of(tag: str) -> str | None:
    match = _TITLE.search(tag)
    return html.unescape(match.group(1)).strip() if match else None


def _before_doc_tag(window: bytes) -> int:
    return window.rfind(b"\n<doc ") + 1


def _begins_with_doc_tag(before: bytes, window: bytes) -> bool:
    return window.startswith(b"<doc ") or before.rstrip().endswith(b"</doc>")


def choose_source(
    path: str, input_format: str = "auto", longest_sentence: int = SentenceRules.longest
) -> Source:
    """The reader of a file: the one asked for, or by a look at the file's beginning.

    Raises:
        ValueError: the format is unknown, or the file looks like none that is read here.
    """
    if input_format not in INPUT_FORMATS:
        raise ValueError(f"--input_format {input_format!r}: give one of {', '.join(INPUT_FORMATS)}")
    if input_format == "auto":
        with open(path, "rb") as stream:
            beginning = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if beginning.startswith((b'{"', b'[{"')):
            raise ValueError(
                f"{path}: looks like JSON, which is not read here; write text with "
                f"wikiextractor without --json, or give --input_format format for plain text"
            )
        input_format = "wiki" if beginning.startswith(b"<doc ") else "format"
    kind = WikiSource if input_format == "wiki" else FormatSource
    return kind(longest_sentence=longest_sentence)


def find_inputs(input_dir: str, input_regex: str) -> list[str]:
    """The files below a folder whose name, or path from the folder, matches a glob, sorted.

    `x.format` is left out where `x` matches too: it holds the same text.

    Raises:
        ValueError: there is no such folder or no such file.
    """
    folder = Path(input_dir)
    if not folder.is_dir():
        raise ValueError(f"--input_dir {input_dir!r}: no such folder")
    try:
        found = {str(path) for path in folder.rglob(input_regex) if path.is_file()}
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"--input_regex {input_regex!r}: {error}; give a glob") from None
    kept = [
        path
        for path in sorted(found)
        if not path.endswith(_PARTIAL_SUFFIX)
        and not (path.endswith(FORMAT_SUFFIX) and path.removesuffix(FORMAT_SUFFIX) in found)
    ]
    if not kept:
        raise ValueError(f"--input_regex {input_regex!r}: matches no file in {input_dir!r}")
    return kept


def write_wiki(documents: Iterable[Document], path: str) -> int:
    """Writes documents as wikiextractor would; returns how many.

    Args:
        documents: titled or not, their lines being paragraphs.
        path: the file; its folder is made.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    count = 0
    with open(path + _PARTIAL_SUFFIX, "w", encoding="utf-8") as stream:
        for count, document in enumerate(documents, 1):
            title = html.escape(document.title or "")
            paragraphs = "\n".join(html.escape(line, quote=False) for line in document.lines)
            stream.write(f'<doc id="{count}" url="" title="{title}">\n')
            stream.write(f"{title}\n\n{paragraphs}\n</doc>\n")
    os.replace(path + _PARTIAL_SUFFIX, path)
    return count


_LITERAL_START = (">>>", "...", "|", "+-", "==", "--", "::", "#", "$", "@", "Usage")
_MARKUP = re.compile(r"``|`|(?<!\w)\*{1,2}(?=\w)|(?<=\w)\*{1,2}(?!\w)|:[a-z]+:(?=`)")
_NO_PROSE_FOLDERS = frozenset(
    {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idle_test"}
)


def python_documentation() -> Iterator[Document]:
    """English prose that every Python carries: its language topics and library docstrings.

    One document a topic and one a module, in an order that depends on the Python version only;
    lines are paragraphs. Sources are parsed, never imported.
    """
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield from _documentation_of(name, [topics[name]])
    library = Path(sysconfig.get_paths()["stdlib"])
    for folder, folders, files in os.walk(library):
        folders[:] = sorted(set(folders) - _NO_PROSE_FOLDERS)
        for file in sorted(files):
            path = Path(folder, file)
            if path.suffix == ".py" and path.name != "topics.py":
                name = ".".join(path.relative_to(library).with_suffix("").parts)
                yield from _documentation_of(name.removesuffix(".__init__"), _docstrings(path))


def _documentation_of(name: str, texts: Iterable[str]) -> Iterator[Document]:
    lines = [paragraph for text in texts for paragraph in _prose(text)]
    if len(lines) > 1:
        yield Document(name, lines)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    waiting: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [tree]
    while waiting:
        node = waiting.pop()
        if text := ast.get_docstring(node):
            yield text
        waiting.extend(
            child
            for child in reversed(node.body)
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        )


def _prose(text: str) -> Iterator[str]:
    """The paragraphs of a documentation text that are prose, each on one line."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = [line.strip() for line in paragraph.split("\n")]
        if paragraph.startswith("    ") or lines[0].startswith(_LITERAL_START):
            continue
        joined = " ".join(_MARKUP.sub("", " ".join(lines)).split())
        letters = sum(map(str.isalpha, joined))
        if letters > 0.7 * len(joined) and joined.count(" ") > 6 and "::=" not in joined:
            yield joined
