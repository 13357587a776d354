"""Reads the English prose that comes with every Python, and that of documentation packages."""

from __future__ import annotations

import ast
import gzip
import inspect
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...errors import UserError
from ..blocks import Document

_LITERAL_START = (">>>", "...", "|", "+-", "==", "--", "::", "#", "$", "@", "Usage")
_MARKUP = re.compile(r"``|`|(?<!\w)\*{1,2}(?=\w)|(?<=\w)\*{1,2}(?!\w)|:[a-z]+:(?=`)")
_SUFFIXES = (".rst", ".rst.gz")
_NO_PROSE_FOLDERS = frozenset(
    {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idle_test"}
)


def python_documentation() -> Iterator[Document]:
    """Yields English prose that every Python carries: its language topics and library docstrings.

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


def documentation_folder(folder: str | os.PathLike[str]) -> Iterator[Document]:
    """Yields the prose of a folder's reStructuredText, plain or gzipped, as in Debian packages.

    One document a file, in the order of their paths; lines are paragraphs. Folders named
    ``translations`` are left out.

    Raises:
        UserError: there is no such folder, or no such file below it.
    """
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.name.endswith(_SUFFIXES)]
    if not paths:
        raise UserError(f"{folder}: no {_SUFFIXES[0]} file below it; give another folder")
    for path in paths:
        if "translations" not in path.relative_to(folder).parts:
            content = path.read_bytes()
            text = gzip.decompress(content) if path.suffix == ".gz" else content
            yield from _documentation_of(path.name, [text.decode("utf-8", "replace")])


def _documentation_of(name: str, texts: Iterable[str]) -> Iterator[Document]:
    lines = [paragraph for text in texts for paragraph in _prose(text)]
    if len(lines) > 1:
        yield Document(name, lines)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    nodes: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [tree]
    while nodes:
        node = nodes.pop()
        if text := ast.get_docstring(node):
            yield text
        nodes.extend(
            child
            for child in reversed(node.body)
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        )


def _prose(text: str) -> Iterator[str]:
    """Yields the paragraphs of a documentation text that are prose, each on one line."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = [line.strip() for line in paragraph.split("\n")]
        if paragraph.startswith("    ") or lines[0].startswith(_LITERAL_START):
            continue
        joined = " ".join(_MARKUP.sub("", " ".join(lines)).split())
        if is_prose(joined) and "::=" not in joined:
            yield joined


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph on one line is text: mostly letters, and eight words at least."""
    return sum(map(str.isalpha, paragraph)) > 0.7 * len(paragraph) and paragraph.count(" ") > 6
