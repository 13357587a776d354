"""The study's additional text: Debian packages, their pages, a dictionary and WordNet."""

import gzip
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.scores import debian
from benchmarks.scores.debian import paragraphs_of
from minimoe_dist.errors import UserError

PROSE = "The {0} of a book is read by whoever has time enough for all of its chapters."
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg-deb")


def make_package(name: str, files: Mapping[str, bytes], folder: Path) -> None:
    root = folder / f"{name}_root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: N <n@example.org>\n"
        "Description: text\n"
    )
    for place, content in files.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(content)
    subprocess.run(
        ["dpkg-deb", "--build", "-Znone", str(root), str(folder / f"{name}_1.0_all.deb")],
        check=True,
        capture_output=True,
    )
    shutil.rmtree(root)


def page(*words: str, head: str = "<html lang='en'>") -> bytes:
    paragraphs = "".join(f"<p>{PROSE.format(word)}</p>" for word in words)
    return f"{head}<body>{paragraphs}</body></html>".encode()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pages = {
        "usr/share/doc/book/index.html": page("first", "second", "last"),
        "usr/share/doc/book/end.html": page("second", "third", "fourth"),
        "usr/share/doc/book/index.html.fr": page("cinquième", "sixième"),
        "usr/share/doc/book/pt-br/index.html": page("sétimo", "oitavo"),
        "usr/share/doc/book/other.html": page("neunte", "zehnte", head="<html lang='de-DE'>"),
    }
    entries = (
        "Book \\Book\\, n. [OE. book.]\n\n   A collection of sheets of paper, or a like material,\n"
        "   blank, written, or {printed}.\n   [1913 Webster]\n\n   short.\n\n"
        "   Whoever has read all of these books will know what to say of them. --Milton.\n"
    )
    gloss = (
        "001 03 n 01 book 0 001 @ 002 n 0000 | a written work of volume {0};"
        ' "whoever printed it bound several pages"  \n'
    )
    make_package("book", pages, tmp_path)
    make_package("words", {"usr/share/w.dict.dz": gzip.compress(entries.encode())}, tmp_path)
    nouns = "  1 This is a licence of words\n" + "".join(map(gloss.format, range(10)))
    make_package("net", {"usr/share/data.noun": nouns.encode()}, tmp_path)
    monkeypatch.setattr(debian, "PAGES", ("book",))
    monkeypatch.setattr(debian, "DICTIONARY", "words")
    monkeypatch.setattr(debian, "WORDNET", "net")
    monkeypatch.setattr(debian, "_READERS", {"words": debian._dictionary, "net": debian._wordnet})
    return tmp_path


@needs_dpkg
def test_prose_of_packages_is_english_and_comes_once(packages: Path) -> None:
    end, index, words, nouns = debian.documents(packages)
    assert end.lines == [PROSE.format(word) for word in ("second", "third", "fourth")]
    assert index.lines == [PROSE.format(word) for word in ("first", "last")]
    assert words.lines == [
        "A collection of sheets of paper, or a like material, blank, written, or printed.",
        "Whoever has read all of these books will know what to say of them. --Milton.",
    ]
    assert nouns.lines[0].startswith(
        "a written work of volume 0. whoever printed it bound several pages. a written"
    )
    assert len(nouns.lines) == 3 and "licence" not in " ".join(nouns.lines)
    # What was unpacked is not unpacked again.
    (packages / "book_1.0_all.deb").unlink()
    (packages / "book_1.0_all.deb").touch()
    assert next(iter(debian.documents(packages))).lines == end.lines


def test_a_package_that_is_not_to_be_had_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=rf"^book: .*put its .deb into {tmp_path}$"):
        debian.unpacked("book", tmp_path)


def test_pages_give_their_paragraphs_alone() -> None:
    content = (
        b"<html><body><p>One <b>bold</b>\n word.</p><pre><p>code</p></pre><ul><li>item</li></ul>"
        b"<table><tr><td><p>cell</p></td></tr></table><dl><dt>term</dt><dd>what it is</dd>"
        b"<dd><p>in a paragraph</p></dd></dl><p>not closed<p>last"
    )
    assert paragraphs_of(content) == [
        *("One bold word.", "what it is", "in a paragraph", "not closed", "last"),
    ]
    assert paragraphs_of(b"") == paragraphs_of(b"<!-- nothing -->") == []
    declared = '<?xml version="1.0" encoding="utf-8"?><html lang="en"><p>\u00e9t\u00e9</p></html>'
    assert paragraphs_of(declared.encode()) == ["\u00e9t\u00e9"]


@pytest.mark.parametrize(
    ("place", "is_foreign"),
    [
        ("usr/share/doc/apache2-doc/manual/en/logs.html", False),
        ("usr/share/doc/apache2-doc/manual/pt-br/logs.html", True),
        ("usr/share/doc/postfix/html/DB_README.html", False),
        ("usr/share/doc/git/html/git-am.html", False),
        ("usr/share/doc/book/intro.fr.html", True),
        ("usr/share/doc/book/html.de", True),
    ],
)
def test_places_say_which_language_a_page_is_in(place: str, is_foreign: bool) -> None:
    assert debian._is_foreign(place) is is_foreign
