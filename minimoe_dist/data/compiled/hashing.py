"""Offers the keyed hash and permutation of ``minimoe_dist.data.keyed`` to compiled code."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from .. import keyed
from .compiling import inner

for _function in (keyed.mix, keyed.begin, keyed.absorb, keyed.feistel):
    register_jitable(_function)


@inner
def key_of(seed: int, counter: int) -> np.uint64:
    """Returns ``keyed_bits(seed, counter)``, of which ``absorb`` makes those of more counters."""
    return keyed.absorb(keyed.begin(np.uint64(seed)), np.uint64(counter))


@inner
def absorb(key: np.uint64, counter: int) -> np.uint64:
    """Hashes one more counter into the bits of a key."""
    return keyed.absorb(key, np.uint64(counter))
