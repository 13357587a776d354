"""Packs samples behind one another, without padding."""

from __future__ import annotations

import numpy as np
from numba import types

from .compiling import entry, filled, read_only


@entry(
    types.int64,
    read_only(types.int64, 2),
    read_only(types.bool_, 2),
    read_only(types.int64, 2),
    read_only(types.int64),
    *[filled(types.int32)] * 5,
)
def fill_rows(
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    token_type_ids: np.ndarray,
    lengths: np.ndarray,
    starts: np.ndarray,
    packed_ids: np.ndarray,
    packed_types: np.ndarray,
    samples: np.ndarray,
    positions: np.ndarray,
) -> int:
    """Writes the samples of a batch behind one another.

    Args:
        input_ids: int64 [b, S].
        attention_mask: bool [b, S].
        token_type_ids: int64 [b, S].
        lengths: int64 [b], trues of each row of ``attention_mask``.
        starts: int32 [b], filled: each sample's first row.
        packed_ids: int32 [T], T at least the sum of ``lengths``; its first rows are filled.
        packed_types: int32 [T], as ``packed_ids``.
        samples: int32 [T], filled so: the row's sample.
        positions: int32 [T], filled so: the row's position in its sample.

    Returns:
        The first sample with padding before its end, at which it stopped, or b.
    """
    row = 0
    for sample in range(len(lengths)):
        starts[sample] = row
        for column in range(lengths[sample]):
            if not attention_mask[sample, column]:
                return sample
            packed_ids[row] = input_ids[sample, column]
            packed_types[row] = token_type_ids[sample, column]
            samples[row] = sample
            positions[row] = column
            row += 1
    return len(lengths)


@entry(
    types.int64,
    read_only(types.int64, 2),
    read_only(types.int64),
    types.int64,
    *[filled(types.int32)] * 2,
)
def fill_predictions(
    labels: np.ndarray,
    lengths: np.ndarray,
    ignored_label: int,
    predicted_rows: np.ndarray,
    predicted_labels: np.ndarray,
) -> int:
    """Collects what is to be predicted of samples that lie behind one another.

    Args:
        labels: int64 [b, S].
        lengths: int64 [b], of the samples.
        ignored_label: label where nothing is to be predicted.
        predicted_rows: int32 [N], filled; 0 behind the last one.
        predicted_labels: int32 [N], filled; ``ignored_label`` behind the last one.

    Returns:
        How many there are, or -1 if they are more than N.
    """
    row = count = 0
    for sample in range(len(lengths)):
        for column in range(lengths[sample]):
            if labels[sample, column] != ignored_label:
                if count == len(predicted_rows):
                    return -1
                predicted_rows[count] = row
                predicted_labels[count] = labels[sample, column]
                count += 1
            row += 1
    predicted_rows[count:] = 0
    predicted_labels[count:] = ignored_label
    return count
