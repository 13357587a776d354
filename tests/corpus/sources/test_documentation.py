"""The prose that every Python carries, and that of documentation packages."""

import gzip
import itertools
from pathlib import Path

import pytest

from minimoe_dist.corpus.sources import documentation_folder, python_documentation


def test_python_documentation_is_prose_in_a_fixed_order():
    documents = list(itertools.islice(python_documentation(), 60))
    assert documents == list(itertools.islice(python_documentation(), 60))
    paragraphs = [line for document in documents for line in document.lines]
    assert len(paragraphs) > 300
    assert not any(">>>" in line or "\n" in line or "``" in line for line in paragraphs)


PAGE = """
Title
=====

The first paragraph is prose of some words, with ``markup`` and over
two lines of the file.

    int code = that + is * no_prose;

The second paragraph is prose as well, and it is the last one of this file.
"""


def test_a_folders_pages_become_documents_of_their_prose(tmp_path: Path):
    (tmp_path / "b.rst").write_text(PAGE)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.rst.gz").write_bytes(gzip.compress(PAGE.encode()))
    (tmp_path / "translations").mkdir()
    (tmp_path / "translations" / "d.rst").write_text(PAGE)
    documents = list(documentation_folder(tmp_path))
    assert [document.title for document in documents] == ["c.rst.gz", "b.rst"]
    assert documents[0].lines == [
        "The first paragraph is prose of some words, with markup and over two lines of the file.",
        "The second paragraph is prose as well, and it is the last one of this file.",
    ]


def test_a_folder_without_pages_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="give another folder"):
        list(documentation_folder(tmp_path / "nowhere"))
