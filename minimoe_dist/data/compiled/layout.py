"""Lays drawn pairs out in rows that a model reads: ``[CLS] A [SEP] B [SEP]`` and padding."""

from __future__ import annotations

import numpy as np
from numba import types

from .compiling import entry, filled, inner, read_only


@inner
def _copy(tokens: np.ndarray, vocab_size: int, ids: np.ndarray) -> bool:
    """Copies ids and says whether the vocabulary has them all."""
    all_known = True
    for i in range(len(tokens)):
        ids[i] = tokens[i]
        all_known &= 0 <= tokens[i] < vocab_size
    return all_known


@entry(
    types.int64,
    read_only(types.int64, 2),
    read_only(types.int64),
    read_only(types.int64),
    *[types.int64] * 5,
    filled(types.int64, 2),
    filled(types.bool_, 2),
    filled(types.int64, 2),
    keeps_lock=True,
)
def lay_out(
    tokens: np.ndarray,
    first_lengths: np.ndarray,
    second_lengths: np.ndarray,
    cls: int,
    sep: int,
    pad: int,
    vocab_size: int,
    second_segment: int,
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    token_type_ids: np.ndarray,
) -> int:
    """Lays pairs out in rows.

    Args:
        tokens: int64 [b, T], A's ids and behind them B's.
        first_lengths: int64 [b], tokens of A.
        second_lengths: int64 [b], tokens of B.
        cls: id of the special token in front.
        sep: id of the special token behind each segment.
        pad: id of padding.
        vocab_size: ids are below it.
        second_segment: token type of B.
        input_ids: int64 [b, S], filled; S is at least the longest pair's length and three.
        attention_mask: bool [b, S], filled, False on padding.
        token_type_ids: int64 [b, S], filled.

    Returns:
        The first row with an id outside the vocabulary, at which it stopped, or b.
    """
    columns = input_ids.shape[1]
    for row in range(len(first_lengths)):
        first, total = first_lengths[row], first_lengths[row] + second_lengths[row]
        ids = input_ids[row]
        ids[0] = cls
        ids[first + 1] = sep
        if not (
            _copy(tokens[row, :first], vocab_size, ids[1:])
            and _copy(tokens[row, first:total], vocab_size, ids[first + 2 :])
        ):
            return row
        ids[total + 2] = sep
        ids[total + 3 :] = pad
        token_type_ids[row, : first + 2] = 0
        token_type_ids[row, first + 2 : total + 3] = second_segment
        token_type_ids[row, total + 3 :] = 0
        attention_mask[row, : total + 3] = True
        attention_mask[row, total + 3 : columns] = False
    return len(first_lengths)
