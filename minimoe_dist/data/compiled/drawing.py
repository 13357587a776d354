"""Draws pairs of chunks: A, and B behind it or from elsewhere, cut to the room they have."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from .compiling import entry, filled, inner, read_only
from .corpus import (
    CORPUS,
    DAMAGED,
    FOUND,
    STATUS,
    CorpusArrays,
    copy_ids,
    copy_marks,
    is_sound,
    token_start,
)
from .mersenne import (
    below,
    count_heads,
    new_generator,
    seed_generator,
    uniform,
)
from .windows import TARGET_GROUPS, Chunk, draw_chunk

_OTHER_DOCUMENT_TRIES = 10
_NON_EMPTY_TRIES = 1000


class PairRows(NamedTuple):
    """Holds the arrays that drawn pairs are written to, a row each.

    Attributes:
        tokens: int64 [b, room], A's ids and behind them B's.
        continues: bool [b, room], which of them go on with a word; [0, 0] without word marks.
        first_lengths: int64 [b], tokens of A.
        second_lengths: int64 [b], tokens of B.
        is_random_next: bool [b], whether B does not follow A in the corpus.
    """

    tokens: np.ndarray
    continues: np.ndarray
    first_lengths: np.ndarray
    second_lengths: np.ndarray
    is_random_next: np.ndarray


_ROWS = types.Tuple(
    [
        filled(types.int64, 2),
        filled(types.bool_, 2),
        filled(types.int64),
        filled(types.int64),
        filled(types.bool_),
    ]
)


@inner
def _second_segment(corpus: CorpusArrays, chunk: Chunk, generator: np.ndarray) -> tuple[int, int]:
    """Picks the sentences of B: the chunk's rest, or enough from a random sentence on."""
    if not chunk.is_random_next:
        return chunk.middle, chunk.end
    starts = corpus.document_starts
    first_length = token_start(corpus, chunk.middle) - token_start(corpus, chunk.start)
    second_target = max(chunk.target - first_length, 1)
    for attempt in range(_NON_EMPTY_TRIES):
        document = below(generator, len(starts) - 1)
        begin, end = starts[document], starts[document + 1]
        is_own = begin <= chunk.start < end
        if begin == end or (is_own and attempt < _OTHER_DOCUMENT_TRIES):
            continue
        start = begin + below(generator, end - begin)
        reached = token_start(corpus, start) + second_target
        stop, beyond = start + 1, end
        while stop < beyond:
            middle = (stop + beyond) // 2
            if token_start(corpus, middle) < reached:
                stop = middle + 1
            else:
                beyond = middle
        if token_start(corpus, stop) > token_start(corpus, start):
            return start, stop
    # Hardly any document has tokens: A's own sentences are the only ones surely there.
    return chunk.start, chunk.middle


@inner
def truncate_pair(
    first: int, second: int, room: int, generator: np.ndarray
) -> tuple[int, int, int, int]:
    """Cuts a pair down to ``room`` tokens, the way the token-by-token rule would.

    That rule takes a token off the longer segment (off the second at a tie) until both fit, each
    time off its front or its back with equal chance. The lengths it ends at follow from the
    lengths alone; how many of a segment's lost tokens came off its front is binomial.

    Args:
        first: tokens of A, at least 1.
        second: tokens of B, at least 1.
        room: tokens that may stay, at least 2.
        generator: source of randomness.

    Returns:
        Tokens lost from A's front, kept of A, lost from B's front, kept of B.
    """
    kept_first = min(first, max((room + 1) // 2, room - second))
    kept_second = min(second, max(room // 2, room - first))
    lost_first = count_heads(generator, first - kept_first)
    lost_second = count_heads(generator, second - kept_second)
    return lost_first, kept_first, lost_second, kept_second


@inner
def _draw_pair(
    corpus: CorpusArrays,
    groups: np.ndarray,
    position: float,
    generator: np.ndarray,
    rows: PairRows,
    row: int,
) -> tuple[int, int, int]:
    """Draws one pair into a row; returns what ``draw_pairs`` does."""
    status, chunk = draw_chunk(corpus, groups, position, generator)
    if status != FOUND:
        return status, chunk.start, chunk.end
    start, stop = _second_segment(corpus, chunk, generator)
    if chunk.is_random_next and not is_sound(corpus, start, stop):
        return DAMAGED, start, stop
    first_start, second_start = token_start(corpus, chunk.start), token_start(corpus, start)
    lost_first, first, lost_second, second = truncate_pair(
        token_start(corpus, chunk.middle) - first_start,
        token_start(corpus, stop) - second_start,
        rows.tokens.shape[1],
        generator,
    )
    total = first + second
    copy_ids(corpus, first_start + lost_first, rows.tokens[row, :first])
    copy_ids(corpus, second_start + lost_second, rows.tokens[row, first:total])
    if len(rows.continues):
        copy_marks(corpus, first_start + lost_first, rows.continues[row, :first])
        copy_marks(corpus, second_start + lost_second, rows.continues[row, first:total])
    rows.first_lengths[row], rows.second_lengths[row] = first, second
    rows.is_random_next[row] = chunk.is_random_next
    return FOUND, 0, 0


@entry(
    STATUS,
    CORPUS,
    TARGET_GROUPS,
    types.int64,
    types.int64,
    read_only(types.int64),
    read_only(types.int64),
    read_only(types.int64),
    _ROWS,
)
def draw_pairs(
    corpus: tuple[Any, ...],
    groups: np.ndarray,
    seed: int,
    num_samples: int,
    epochs: np.ndarray,
    numbers: np.ndarray,
    strata: np.ndarray,
    rows: tuple[np.ndarray, ...],
) -> tuple[int, int, int]:
    """Draws pairs, each from a generator of its own that (seed, epoch, number) starts.

    Args:
        corpus: the fields of CorpusArrays.
        groups: of type TARGET_GROUP [n].
        seed: 64 bits.
        num_samples: pairs of an epoch.
        epochs: int64 [b].
        numbers: int64 [b], the pairs' numbers in their epochs.
        strata: int64 [b], in [0, num_samples): the parts of the corpus to look into first.
        rows: the fields of PairRows, filled.

    Returns:
        FOUND and two zeros; DAMAGED and the sentences, from and to, whose pointers are wrong; or
        NOT_FOUND where windows hardly have chunks.
    """
    arrays, pair_rows = CorpusArrays(*corpus), PairRows(*rows)
    generator = new_generator()
    for row in range(len(numbers)):
        seed_generator(generator, seed, epochs[row], numbers[row])
        position = (strata[row] + uniform(generator)) / num_samples
        status = _draw_pair(arrays, groups, position, generator, pair_rows, row)
        if status[0] != FOUND:
            return status
    return FOUND, 0, 0
