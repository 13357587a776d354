"""English prose of Debian packages beside the kernel's pages: books, manuals and two dictionaries.

72 MB, 14.5 M tokens, between five and six times what the kernel's documentation and Python's own
are: a schedule of a GPU, or of a small student on CPUs, reads the same pages less often.
"""

import gzip
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from minimoe_dist.corpus.blocks import Document
from minimoe_dist.corpus.sources import is_prose
from minimoe_dist.errors import UserError

# Pages; all of Debian 12. Those of the dictionaries say how words are used, in whole sentences.
PAGES = (
    *("anarchism", "apache2-doc", "bind9-doc", "exim4-doc-html", "git-doc"),
    *("libreoffice-help-en-us", "octave-doc", "postfix-doc", "postgresql-doc-15"),
    *("python-django-doc", "python3.11-doc", "r-doc-html", "sqlite3-doc", "zsh-doc"),
)
DICTIONARY, WORDNET = "dict-gcide", "wordnet-base"
# "html.de", "intro.fr.html", "pt-br/": of which only English is read.
_LANGUAGE = re.compile(r"(?:^|[./])([a-z]{2})(?:[-_][A-Za-z]{2,4})?(?=[./]|$)")
_NO_PROSE = ("pre", "table", "script", "style")
_NOTES = re.compile(r"\[[^\]]*\]|\\[^\\]*\\|[{}]")
_ENTRIES = 100  # of a dictionary, to a document


def unpacked(package: str, folder: Path) -> Path:
    """The files of a Debian package below a folder, which is where it is kept too.

    Raises:
        UserError: there is no such package, no way to it, or no Debian.
    """
    files = folder / package
    if files.is_dir():
        return files
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not (found := sorted(folder.glob(f"{package}_*.deb"))):
            subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
            found = sorted(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", str(found[0]), f"{files}.part"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"{package}: Debian's package is not to be had ({error}); put its .deb into {folder}"
        ) from error
    Path(f"{files}.part").rename(files)
    return files


def documents(folder: Path) -> Iterator[Document]:
    """The prose of all packages, fetched where they are not there yet; no paragraph comes twice."""
    seen: set[str] = set()
    packages = tqdm((*PAGES, DICTIONARY, WORDNET), desc="text of packages", unit="package")
    for package in packages:
        files = unpacked(package, folder)
        for name, paragraphs in _READERS.get(package, _pages)(files):
            found = [text for text in paragraphs if is_prose(text) and text not in seen]
            seen.update(found)
            if len(found) > 1:
                yield Document(name, found)


def _pages(files: Path) -> Iterator[tuple[str, list[str]]]:
    """Pages in English, each with its paragraphs, in the order of their paths."""
    for path in sorted(files.rglob("*.html*")):
        place = path.relative_to(files).as_posix()
        if not path.is_file() or path.is_symlink() or _is_foreign(place):
            continue
        yield place, paragraphs_of(path.read_bytes())


def _is_foreign(place: str) -> bool:
    return any(language != "en" for language in _LANGUAGE.findall(place))


def paragraphs_of(page: bytes) -> list[str]:
    """The paragraphs of an HTML page, each on one line; none where it says it is not in English."""
    from lxml import etree, html

    try:
        tree = html.fromstring(page)
    except (etree.ParserError, ValueError):  # an empty page; one without markup
        return []
    if not (tree.get("lang") or "en").lower().startswith("en"):
        return []
    etree.strip_elements(tree, *_NO_PROSE, with_tail=False)
    blocks = (part for part in tree.iter("p", "dd") if next(part.iterchildren("p"), None) is None)
    return [" ".join(block.text_content().split()) for block in blocks]


def _dictionary(files: Path) -> Iterator[tuple[str, list[str]]]:
    """GCIDE's definitions and quotations, without what stands in brackets."""
    (path,) = files.rglob("*.dict.dz")
    text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    lines = (" ".join(_NOTES.sub("", one).split()) for one in re.split(r"\n\s*\n", text))
    yield from _in_parts(path.stem, lines)


def _wordnet(files: Path) -> Iterator[tuple[str, list[str]]]:
    """WordNet's glosses with their examples, four neighbours to a paragraph."""
    for path in sorted(files.rglob("data.*")):
        lines = path.read_text("utf-8", "replace").splitlines()
        glosses = [line.partition(" | ")[2].strip() for line in lines if " | " in line]
        sentences = [gloss.replace('"', "").replace(";", ".") for gloss in glosses]
        groups = (sentences[at : at + 4] for at in range(0, len(sentences), 4))
        yield from _in_parts(path.name, (". ".join(group) for group in groups))


def _in_parts(name: str, lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    paragraphs = list(lines)
    for number, at in enumerate(range(0, len(paragraphs), _ENTRIES)):
        yield f"{name} {number}", paragraphs[at : at + _ENTRIES]


_READERS = {DICTIONARY: _dictionary, WORDNET: _wordnet}
