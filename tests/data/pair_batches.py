"""Batches of given pairs, and single pairs, for tests of what draws and lays out batches."""

from collections.abc import Sequence

import numpy as np

from minimoe_dist.data.pairs import Pair, PairBatch, Pairs


def batch_of(pairs: Sequence[Pair]) -> PairBatch:
    room = max((len(pair.first) + len(pair.second) for pair in pairs), default=0)
    with_marks = any(pair.first_continues is not None for pair in pairs)
    batch = PairBatch.empty(len(pairs), room, with_marks)
    for row, pair in enumerate(pairs):
        first, total = len(pair.first), len(pair.first) + len(pair.second)
        batch.first_lengths[row], batch.second_lengths[row] = first, total - first
        batch.is_random_next[row] = pair.is_random_next
        batch.tokens[row, :first], batch.tokens[row, first:total] = pair.first, pair.second
        if batch.continues is not None:
            if pair.first_continues is not None:
                batch.continues[row, :first] = pair.first_continues
            if pair.second_continues is not None:
                batch.continues[row, first:total] = pair.second_continues
    return batch


def draw_one(pairs: Pairs, epoch: int, number: int) -> Pair:
    return pairs.draw(np.array([epoch]), np.array([number]))[0]
