"""Reads a corpus in compiled code: the arrays of its files, straight from the memory maps.

Pointers and lengths come from a file that may be damaged, and checking all of them at opening would
take time that grows with the corpus. So places of sentences and documents, which the checked
document ends bound, are trusted; a run of sentences is read only after ``is_sound`` has found its
pointers inside the data and in keeping with its lengths.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types

from .compiling import inner, read_only


class CorpusArrays(NamedTuple):
    """Holds the arrays of one corpus, read only.

    Attributes:
        lengths: int32 [sentences], tokens of each sentence.
        pointers: int64 [sentences], bytes of ids before each sentence.
        document_starts: int64 [documents + 1], first sentence of each document, and the end.
        ids: uint8 [bytes], all ids as they are stored, little endian.
        id_shift: an id takes ``1 << id_shift`` bytes.
        id_sign: the bit that says that an id is negative; 0 where none can be.
        num_tokens: number of ids.
        word_marks: uint8 [bytes], a bit for each token, the first in the lowest bit: it goes on
            with the word of the token before it. Empty if pairs are to carry no marks.
    """

    lengths: np.ndarray
    pointers: np.ndarray
    document_starts: np.ndarray
    ids: np.ndarray
    id_shift: int
    id_sign: int
    num_tokens: int
    word_marks: np.ndarray


# What a reading entry returns: how it went, and where.
FOUND, DAMAGED, NOT_FOUND = range(3)
STATUS = types.UniTuple(types.int64, 3)

# How an entry is given one: a plain tuple, since numba widens no named tuple's arrays.
CORPUS = types.Tuple(
    [
        read_only(types.int32),
        read_only(types.int64),
        read_only(types.int64),
        types.Array(types.uint8, 1, "C", readonly=True),
        types.int64,
        types.int64,
        types.int64,
        types.Array(types.uint8, 1, "C", readonly=True),
    ]
)


@inner
def token_start(corpus: CorpusArrays, sentence: int) -> int:
    """Returns the number of tokens before a sentence; of all tokens for the number of sentences."""
    if sentence == len(corpus.lengths):
        return corpus.num_tokens
    return corpus.pointers[sentence] >> corpus.id_shift


@inner
def is_sound(corpus: CorpusArrays, first: int, last: int) -> bool:
    """Tells whether pointers of sentences [first, last) lie in the data and agree with lengths."""
    position = token_start(corpus, first)
    if position < 0:
        return False
    for sentence in range(first, last):
        length = corpus.lengths[sentence]
        position += length
        if length < 0 or position != token_start(corpus, sentence + 1):
            return False
    return position <= corpus.num_tokens


@inner
def count_present(corpus: CorpusArrays, first: int, last: int) -> int:
    """Counts the sentences in [first, last) that have tokens."""
    count = 0
    for sentence in range(first, last):
        count += corpus.lengths[sentence] != 0
    return count


@inner
def copy_ids(corpus: CorpusArrays, start: int, ids: np.ndarray) -> None:
    """Fills ``ids``, int64 [n], with those of the tokens from ``start`` on, which must exist."""
    size = 1 << corpus.id_shift
    for i in range(len(ids)):
        offset, value = (start + i) * size, 0
        for byte in range(size):
            value |= corpus.ids[offset + byte] << (8 * byte)
        ids[i] = (value ^ corpus.id_sign) - corpus.id_sign


@inner
def copy_marks(corpus: CorpusArrays, start: int, marks: np.ndarray) -> None:
    """Fills ``marks``, bool [n], with those of the tokens from ``start`` on."""
    for i in range(len(marks)):
        marks[i] = (corpus.word_marks[(start + i) >> 3] >> ((start + i) & 7)) & 1
