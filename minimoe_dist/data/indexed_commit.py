"""The end of writing an indexed corpus: partial files that are whole get their names."""

from __future__ import annotations

import os

from ..errors import UserError
from .durable import PARTIAL, give_names, remove, write_whole
from .indexed_layout import Manifest, manifest_path
from .indexed_words import words_path

_SUFFIXES = (
    ".bin",
    ".lengths",
    ".documents",
    ".words",
    ".idx",
    ".manifest.json",
    ".manifest.json.new",
)


def prepare_prefix(prefix: str, overwrite: bool) -> None:
    """Makes the folder of a new corpus.

    Raises:
        UserError: a whole corpus stands at `prefix` and may not be replaced.
    """
    # A manifest still under its temporary name tells that a commit was cut short.
    is_cut_short = os.path.exists(manifest_path(prefix) + PARTIAL)
    if os.path.exists(prefix + ".idx") and not is_cut_short and not overwrite:
        raise UserError(
            f"{prefix}.idx: a corpus stands there already; choose another prefix, remove it "
            f"or ask to overwrite"
        )
    os.makedirs(os.path.dirname(os.path.abspath(prefix)), exist_ok=True)


def corpus_files(prefix: str, manifest: Manifest) -> list[str]:
    """The files of a corpus, its manifest last."""
    words = [] if manifest.segmenter is None else [words_path(prefix)]
    return [prefix + ".bin", *words, prefix + ".idx", manifest_path(prefix)]


def discard_partial(prefix: str) -> None:
    """Removes what a writer left that did not come to its end."""
    for suffix in _SUFFIXES:
        remove(prefix + suffix + PARTIAL)


def commit_corpus(prefix: str, manifest: Manifest) -> None:
    """Gives partial files that are whole and on disk the names of a corpus."""
    write_whole(manifest_path(prefix) + PARTIAL, manifest.to_json())
    _name_corpus(prefix, manifest)


def _name_corpus(prefix: str, manifest: Manifest) -> None:
    files = corpus_files(prefix, manifest)
    if manifest.segmenter is None:
        remove(words_path(prefix))
    give_names(files)


def complete_commit(prefix: str, job: str) -> Manifest | None:
    """Ends a commit that was cut short; the manifest of the corpus if it is whole now.

    Args:
        prefix: of the corpus.
        job: a corpus of another job is not looked at.
    """
    partial = manifest_path(prefix) + PARTIAL
    for path in (partial, manifest_path(prefix)):
        if os.path.exists(path):
            manifest = Manifest.read(path)
            if manifest.job != job:
                return None
            if path == partial:
                _name_corpus(prefix, manifest)
            discard_partial(prefix)
            return manifest
    return None
