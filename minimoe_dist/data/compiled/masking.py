"""Masks tokens for prediction: whole words in a random order of the sample, while they fit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types

from ..row_counts import MASKED_SHARE, MOST_MASKED
from .compiling import entry, filled, inner, read_only
from .hashing import absorb, key_of

_REPLACED_BY_MASK = 0.8
_REPLACED_BY_ANY = 0.1
_ORDER_STREAM, _FATE_STREAM, _REPLACEMENT_STREAM = range(3)


class Words(NamedTuple):
    """Holds the words of one row: runs of columns, in the order of the text.

    Attributes:
        columns: int64 [S], the columns that may be masked.
        ends: int64 [S], how many of them lie up to the end of each word.
        ranks: uint64 [S], the lower, the sooner a word is masked.
    """

    columns: np.ndarray
    ends: np.ndarray
    ranks: np.ndarray


@inner
def _goes_on(
    row: int,
    column: int,
    piece: int,
    first_length: int,
    continues: np.ndarray,
    continuation: np.ndarray,
) -> bool:
    """Tells whether the piece at a column goes on with the word of the piece before it."""
    if len(continuation) == 0:
        return False
    if continuation[piece]:
        return True
    token = column - 1 if column <= first_length else column - 2
    return len(continues) > 0 and continues[row, token]


@inner
def _word_start(words: Words, word: int) -> int:
    return words.ends[word - 1] if word > 0 else 0


@inner
def _next_word(words: Words, count: int, last: int, room: int) -> int:
    """Finds the word of the lowest rank above that of ``last`` (-1: of any) that fits, or -1."""
    best = -1
    for word in range(count):
        if last >= 0 and words.ranks[word] <= words.ranks[last]:
            continue
        if best >= 0 and words.ranks[word] >= words.ranks[best]:
            continue
        if words.ends[word] - _word_start(words, word) <= room:
            best = word
    return best


@inner
def _stand_in(
    seed: int, sample: int, column: int, piece: int, mask: int, vocab_size: int
) -> int | np.int64:
    """Draws the token that stands in for ``piece`` where that is to be predicted."""
    fate = absorb(absorb(key_of(seed, _FATE_STREAM), sample), column) / 2.0**64
    if fate >= 1.0 - _REPLACED_BY_MASK:
        return mask
    if fate < _REPLACED_BY_ANY:
        bits = absorb(absorb(key_of(seed, _REPLACEMENT_STREAM), sample), column)
        return np.int64(bits % np.uint64(vocab_size))
    return piece


@inner
def _mask_words(
    words: Words,
    count: int,
    budget: int,
    seed: int,
    sample: int,
    mask: int,
    vocab_size: int,
    ids: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Masks words of one row by their ranks, each if it still fits into the budget."""
    word = _next_word(words, count, -1, budget)
    if word < 0 and count > 0:
        # No word fits: one position of the first.
        word, budget = _next_word(words, count, -1, len(ids)), 1
    while word >= 0:
        begin, end = _word_start(words, word), words.ends[word]
        for i in range(begin, min(end, begin + budget)):
            column = words.columns[i]
            labels[column] = ids[column]
            ids[column] = _stand_in(seed, sample, column, ids[column], mask, vocab_size)
        budget -= end - begin
        word = _next_word(words, count, word, budget)


@entry(
    types.void,
    read_only(types.int64),
    read_only(types.int64),
    read_only(types.int64),
    read_only(types.bool_, 2),
    read_only(types.bool_),
    *[types.int64] * 6,
    filled(types.int64, 2),
    filled(types.int64, 2),
)
def mask_tokens(
    first_lengths: np.ndarray,
    second_lengths: np.ndarray,
    sample_ids: np.ndarray,
    continues: np.ndarray,
    continuation: np.ndarray,
    seed: int,
    cls: int,
    sep: int,
    mask: int,
    vocab_size: int,
    ignored_label: int,
    input_ids: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Hides tokens of rows that are laid out, keyed by (seed, sample, column).

    Args:
        first_lengths: int64 [b], tokens of A.
        second_lengths: int64 [b], tokens of B.
        sample_ids: int64 [b].
        continues: bool [b, T], which tokens of A, and B behind it, go on with a word; [0, 0] if
            pairs do not say.
        continuation: bool [vocab_size], which pieces go on with a word; [0] masks single tokens.
        seed: 64 bits.
        cls: never masked.
        sep: never masked.
        mask: id that hides a token.
        vocab_size: ids that replace a token are below it.
        ignored_label: label where nothing is to be predicted.
        input_ids: int64 [b, S], changed.
        labels: int64 [b, S], filled: what stood there where something is to be predicted.
    """
    room = input_ids.shape[1]
    words = Words(np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.uint64))
    for row in range(len(sample_ids)):
        ids, sample, first = input_ids[row], sample_ids[row], first_lengths[row]
        length = first + second_lengths[row] + 3
        order = absorb(key_of(seed, _ORDER_STREAM), sample)
        count = num_columns = 0
        for column in range(length):
            if ids[column] == cls or ids[column] == sep:
                continue
            # A piece continues a word only where the word's start is in the same segment.
            follows = num_columns > 0 and words.columns[num_columns - 1] == column - 1
            if not follows or not _goes_on(
                row, column, ids[column], first, continues, continuation
            ):
                words.ranks[count] = absorb(order, column)
                count += 1
            words.columns[num_columns] = column
            num_columns += 1
            words.ends[count - 1] = num_columns
        labels[row] = ignored_label
        budget = min(max(int(np.rint(length * MASKED_SHARE)), 1), MOST_MASKED)
        _mask_words(words, count, budget, seed, sample, mask, vocab_size, ids, labels[row])
