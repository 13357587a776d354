"""Finds which sample stands where in a run: every epoch is a permutation of the samples."""

from __future__ import annotations

import numpy as np
from numba import types

from .. import keyed
from .compiling import entry, filled
from .hashing import absorb, key_of


@entry(
    types.void,
    types.int64,
    types.int64,
    types.int64,
    types.int64,
    filled(types.int64),
    filled(types.int64),
    keeps_lock=True,
)
def find_samples(
    start: int, num_samples: int, bits: int, seed: int, epochs: np.ndarray, numbers: np.ndarray
) -> None:
    """Finds the samples at positions of a run.

    Args:
        start: the first position.
        num_samples: samples of an epoch.
        bits: ``keyed.feistel_bits(num_samples)``.
        seed: 64 bits.
        epochs: int64 [b], gets the epochs of positions [start, start + b).
        numbers: int64 [b], gets ``keyed.permute`` of their places in their epochs.
    """
    round_keys = np.empty(keyed.FEISTEL_ROUNDS, dtype=np.uint64)
    keyed_epoch = -1
    for i in range(len(epochs)):
        epoch = (start + i) // num_samples
        if epoch != keyed_epoch:
            key = key_of(seed, epoch)
            for r in range(keyed.FEISTEL_ROUNDS):
                round_keys[r] = absorb(key, r)
            keyed_epoch = epoch
        image = keyed.feistel(np.uint64(start + i - epoch * num_samples), bits, round_keys)
        while image >= np.uint64(num_samples):
            image = keyed.feistel(image, bits, round_keys)
        epochs[i], numbers[i] = epoch, np.int64(image)
