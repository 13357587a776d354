"""Reads indexed corpora: one Megatron `.bin/.idx` sequence a sentence, documents in the index.

The files are mapped, after checks that megatron-core's own reader does not make, and never read
whole: opening costs the same for a thousand and for a hundred million sentences.
"""

from __future__ import annotations

import glob
import os
import re
from bisect import bisect_right
from typing import Any

import numpy as np

from ..errors import UserError
from .id_ranges import id_range
from .indexed_format import (
    IndexArrays,
    Manifest,
    WordMarks,
    check_arrays,
    map_ids,
    read_layout,
    read_manifest,
    sha256_of_file,
    words_path,
)

HELDOUT_SUFFIX = "_heldout"
_PART = re.compile(r"_\d{5}_of_\d{5}")


class IndexedCorpus:
    """Reads a corpus of documents of sentences of token ids from disk when asked.

    Attributes:
        prefix: path without `.bin` and `.idx`.
        manifest: what was written beside the corpus; None for files of other programs.
        has_word_marks: whether `word_continuations` can be asked.
        num_sentences: sequences in the index.
        num_documents: documents; those of other programs' files may be empty.
        num_tokens: ids in `.bin`.
        dtype: type of the ids on disk.
        sentence_lengths: int32 [num_sentences], tokens of each sentence, a read-only view.
        sentence_pointers: int64 [num_sentences], bytes of ids before each sentence, a read-only
            view.
        document_starts: int64 [num_documents + 1], the first sentence of each document and the
            end of the last one, a read-only view.
        ids: dtype [num_tokens], all ids, a read-only view.

    The views of the index are not aligned: search them with `bisect`, as `sentence_of_token`
    does (`np.searchsorted` would copy them whole at each call).
    """

    def __init__(self, prefix: str) -> None:
        layout = read_layout(prefix)
        arrays = IndexArrays.map(prefix + ".idx", layout)
        check_arrays(prefix, layout, arrays)
        self.prefix = prefix
        self.manifest: Manifest | None = read_manifest(prefix, layout)
        self.dtype = layout.dtype
        self.num_sentences = layout.num_sentences
        self.num_documents = layout.num_document_ends - 1
        self.sentence_lengths = arrays.lengths
        self.sentence_pointers = arrays.pointers
        self.document_starts = arrays.document_ends
        self.ids = map_ids(prefix + ".bin", layout.dtype)
        self.num_tokens = len(self.ids)
        self._marks = _open_word_marks(prefix, self.manifest, self.num_tokens)
        self.has_word_marks = self._marks is not None

    @classmethod
    def open(cls, prefix: str) -> IndexedCorpus:
        """Opens the corpus at `prefix` after checking its files.

        Raises:
            UserError: a file is missing, truncated, over-long or inconsistent.
        """
        return cls(prefix)

    def __reduce__(self) -> tuple[Any, ...]:
        return (IndexedCorpus, (self.prefix,))

    def __len__(self) -> int:
        return self.num_sentences

    def __repr__(self) -> str:
        return (
            f"IndexedCorpus({self.prefix!r}, {self.num_documents} documents, "
            f"{self.num_sentences} sentences, {self.num_tokens} tokens)"
        )

    def token_start(self, sentence: int) -> int:
        """Returns the number of tokens before a sentence; for `num_sentences`, of all tokens."""
        if sentence == self.num_sentences:
            return self.num_tokens
        return int(self.sentence_pointers[sentence]) // self.dtype.itemsize

    def tokens(self, first: int, last: int) -> np.ndarray:
        """Returns a copy of the ids of the sentences [first, last), int64 [tokens], read at once.

        Raises:
            IndexError: the range does not lie in the corpus.
            UserError: the index points outside the data (a damaged `.idx`).
        """
        if not 0 <= first <= last <= self.num_sentences:
            raise IndexError(f"sentences [{first}, {last}) of {self.num_sentences}")
        start, stop = self.token_start(first), self.token_start(last)
        if not 0 <= start <= stop <= self.num_tokens:
            raise UserError(f"{self.prefix}.idx: wrong pointers at [{first}, {last}); build again")
        return self.ids[start:stop].astype(np.int64)

    def word_continuations(self, first: int, last: int) -> np.ndarray:
        """Marks tokens of the sentences [first, last) that go on with the word of the one before.

        Returns:
            A copy, bool [tokens].

        Raises:
            UserError: the corpus was built without word marks.
        """
        if self._marks is None:
            raise UserError(f"{self.prefix}: no word marks; build it with --whole_words")
        return self._marks.read(self.token_start(first), self.token_start(last))

    @property
    def word_marks(self) -> np.ndarray | None:
        """The stored marks: a bit a token, uint8 [num_tokens / 8, rounded up]; None without."""
        return None if self._marks is None else self._marks.bits

    def sentence(self, index: int) -> np.ndarray:
        """Returns a copy of the ids of one sentence, int64 [tokens]."""
        return self.tokens(index, index + 1)

    def sentence_of_token(self, token: int) -> int:
        """Returns the sentence that the token at a position in the corpus belongs to."""
        return bisect_right(self.sentence_pointers, token * self.dtype.itemsize) - 1

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuses ids that a model of `vocab_size` has no embedding for.

        The manifest knows the largest id; without one, all ids are read, once for a large file.

        Raises:
            UserError: an id is negative or not below `vocab_size`.
        """
        if self.manifest is not None:
            smallest, largest = 0, self.manifest.largest_id
        else:
            smallest, largest = id_range(self.prefix + ".bin", self.ids)
        if smallest < 0 or largest >= vocab_size:
            wrong = smallest if smallest < 0 else largest
            raise UserError(
                f"{self.prefix}.bin: token id {wrong} is outside the vocabulary of {vocab_size}; "
                f"build the corpus with the teacher's tokenizer"
            )

    def tokenizer_name(self) -> str:
        """Returns what the manifest calls the tokenizer.

        Raises:
            UserError: it does not say.
        """
        if self.manifest is None or self.manifest.tokenizer is None:
            raise UserError(
                f"{self.prefix}: nobody wrote down its tokenizer; give --tokenizer_name_or_path"
            )
        return self.manifest.tokenizer.name

    def verify_hashes(self) -> None:
        """Reads its files whole and holds them against the manifest's SHA-256.

        Raises:
            UserError: a hash differs, or there is no manifest.
        """
        if self.manifest is None:
            raise UserError(f"{self.prefix}.manifest.json: no such file; nothing to verify with")
        for suffix, expected in (
            (".bin", self.manifest.bin_sha256),
            (".idx", self.manifest.idx_sha256),
            (".words", self.manifest.words_sha256),
        ):
            if expected is not None and sha256_of_file(self.prefix + suffix) != expected:
                raise UserError(
                    f"{self.prefix}{suffix}: contents differ from the manifest's hash; "
                    f"build or copy the corpus again"
                )


def _open_word_marks(prefix: str, manifest: Manifest | None, num_tokens: int) -> WordMarks | None:
    path = words_path(prefix)
    if os.path.isfile(path):
        return WordMarks(prefix, num_tokens)
    if manifest is not None and manifest.segmenter is not None:
        raise UserError(f"{path}: no such file, but the manifest knows it; build or copy it again")
    return None


def part_prefix(prefix: str, part: tuple[int, int]) -> str:
    """Returns the prefix of the i-th of n parts of a corpus; `part` is (i, n)."""
    return f"{prefix}_{part[0]:05d}_of_{part[1]:05d}"


def is_part_with_heldout(prefix: str) -> bool:
    """Tells whether a prefix is that of a part of a job which kept documents apart too."""
    return _PART.search(prefix) is not None and os.path.isfile(prefix + HELDOUT_SUFFIX + ".idx")


def find_corpora(pattern_or_prefix: str) -> list[str]:
    """Finds the sorted prefixes that a prefix, a `.bin`/`.idx` path, a folder or a glob names.

    A folder or glob leaves held-out splits (`*_heldout`) out unless it names them, so that
    nobody trains on them by accident, and parts (`*_00002_of_00008`) where the corpus that was
    merged from them is found too.

    Raises:
        UserError: nothing is found.
    """
    base = pattern_or_prefix
    for suffix in (".idx", ".bin"):
        base = base.removesuffix(suffix)
    if os.path.isfile(base + ".idx"):
        return [base]
    pattern = os.path.join(base, "*") if os.path.isdir(base) else base
    prefixes = sorted(path.removesuffix(".idx") for path in glob.glob(pattern + ".idx"))
    if HELDOUT_SUFFIX not in pattern:
        prefixes = [prefix for prefix in prefixes if not prefix.endswith(HELDOUT_SUFFIX)]
    prefixes = [p for p in prefixes if _PART.sub("", p) == p or _PART.sub("", p) not in prefixes]
    if not prefixes:
        raise UserError(
            f"{pattern_or_prefix!r}: no indexed corpus there (no {pattern}.idx); "
            f"give a prefix or a glob, or build one with tools/preprocess/build_indexed.py"
        )
    return prefixes
