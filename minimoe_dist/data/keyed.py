"""Draws numbers and orders that are pure functions of a key: randomness without state.

Everything that is random in this room is drawn from here, so a sample is the same on any number
of ranks, after any resume, and whatever was drawn before it. The hash is the finaliser of
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

``begin``, ``absorb`` and ``feistel`` take arrays of words here; the compiled code of this room
takes the same functions, for one word at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_Words = TypeVar("_Words", np.ndarray, np.uint64)

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_MULTIPLIER = np.uint64(0x94D049BB133111EB)
_LOW_64_BITS = (1 << 64) - 1
_COUNTER_MULTIPLIER = np.uint64(0xD1342543DE82EF95)
FEISTEL_ROUNDS = 6
_FEISTEL_MINIMUM_BITS = 6


def keyed_bits(seed: int, *counters: int | np.ndarray) -> np.ndarray:
    """Hashes a seed and counters into 64 random bits each.

    Args:
        seed: any integer; its low 64 bits count.
        *counters: integers, or integer arrays that broadcast against each other.

    Returns:
        uint64 array of the counters' broadcast shape (at least one dimension).
    """
    bits = begin(np.array([seed & _LOW_64_BITS], dtype=np.uint64))
    for counter in counters:
        if isinstance(counter, np.ndarray):
            word = counter.astype(np.uint64)
        else:
            word = np.array([counter & _LOW_64_BITS], dtype=np.uint64)
        bits = absorb(bits, word)
    return bits


def begin(seed: _Words) -> _Words:
    """Returns a key's bits before any counter; seed and bits are uint64."""
    return mix(seed + _INCREMENT)


def absorb(bits: _Words, word: _Words) -> _Words:
    """Hashes one more counter into the bits of a key, both uint64."""
    # The odd factor keeps equal seeds and counters from cancelling each other.
    return mix(bits + word * _COUNTER_MULTIPLIER + _INCREMENT)


def mix(words: _Words) -> _Words:
    """Applies SplitMix64's finaliser, uint64 to uint64."""
    words = (words ^ (words >> np.uint64(30))) * _FIRST_MULTIPLIER
    words = (words ^ (words >> np.uint64(27))) * _SECOND_MULTIPLIER
    return words ^ (words >> np.uint64(31))


def as_int64(word: int) -> int:
    """Reads the low 64 bits of an integer as a signed number, as compiled code takes them."""
    return ((word & _LOW_64_BITS) ^ (1 << 63)) - (1 << 63)


def permute(indices: Sequence[int] | np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Sends indices through a bijection of [0, size) that the key picks, in O(1) memory.

    A Feistel network over the smallest power of two that holds ``size``, walked along its cycle
    until it is back inside: the restriction of a permutation to [0, size) is one too.

    Args:
        indices: integers in [0, size).
        size: number of elements that are permuted.
        seed: the run's seed.
        epoch: which permutation of the run.

    Returns:
        int64 array of the indices' images, in the same order.
    """
    words = np.array(indices, dtype=np.uint64)
    assert size > 0 and (words.size == 0 or int(words.max()) < size)
    bits = feistel_bits(size)
    round_keys = keyed_bits(seed, epoch, np.arange(FEISTEL_ROUNDS))
    result = feistel(words, bits, round_keys)
    outside = np.flatnonzero(result >= np.uint64(size))
    while outside.size:
        result[outside] = feistel(result[outside], bits, round_keys)
        outside = outside[result[outside] >= np.uint64(size)]
    return result.astype(np.int64)


def feistel_bits(size: int) -> int:
    """Returns the number of bits of the network that permutes [0, size)."""
    return max((size - 1).bit_length(), _FEISTEL_MINIMUM_BITS)


def feistel(words: _Words, bits: int, round_keys: np.ndarray) -> _Words:
    """Applies the network once to words of ``bits`` bits (uint64, not changed in place).

    ``round_keys`` are uint64 [FEISTEL_ROUNDS].
    """
    right_bits = np.uint64(bits // 2)
    right_mask = np.uint64((1 << (bits // 2)) - 1)
    left_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    left, right = words >> right_bits, words & right_mask
    for round_number, key in enumerate(round_keys):
        if round_number % 2:
            right = right ^ (absorb(key, left) & right_mask)
        else:
            left = left ^ (absorb(key, right) & left_mask)
    return (left << right_bits) | right


def spread_stride(size: int) -> int:
    """Returns a step s so that k ↦ k·s mod size is a bijection whose every prefix lies evenly.

    The step is the integer prime to ``size`` that is nearest to size/φ (the golden section): the
    first m images leave gaps of at most a few times size/m.
    """
    nearest = max(1, round(size * (math.sqrt(5) - 1) / 2))
    for distance in range(size):
        for stride in (nearest + distance, nearest - distance):
            if stride > 0 and math.gcd(stride, size) == 1:
                return stride
    return 1


def spread(numbers: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Returns ``numbers`` · ``stride`` mod ``size``, all in [0, size); int64 [n]."""
    assert numbers.min(initial=0) >= 0 and numbers.max(initial=0) < size
    if size * stride < 1 << 63:
        return numbers * stride % size
    # Python's integers do not overflow.
    return np.array([k * stride % size for k in numbers.tolist()], dtype=np.int64)
