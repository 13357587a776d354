"""Repeats Python's ``random.Random`` in compiled code: the same numbers from the same integer.

The generator is MT19937 (Matsumoto and Nishimura, "Mersenne Twister", 1998), seeded by its authors'
``init_by_array`` with the integer's 32-bit words, the lowest first, as CPython does. Its state is
an int64 array of 625 entries: 624 words of 32 bits and the place of the next one. Words are renewed
one at a time, when they are taken, because a sample takes few of them.
"""

from __future__ import annotations

import numpy as np

from .compiling import inner

_WORDS = 624
_MIDDLE = 397
_LOW_32 = 0xFFFFFFFF
_UPPER, _LOWER = 0x80000000, 0x7FFFFFFF
_MATRIX = 0x9908B0DF


def _first_state() -> np.ndarray:
    words = [19650218]
    for i in range(1, _WORDS):
        words.append((1812433253 * (words[-1] ^ (words[-1] >> 30)) + i) & _LOW_32)
    return np.array(words, dtype=np.int64)


_FIRST_STATE = _first_state()


@inner
def new_generator() -> np.ndarray:
    """Allocates a generator's state, int64 [625]; to be seeded before it is used."""
    return np.empty(_WORDS + 1, dtype=np.int64)


@inner
def seed_generator(generator: np.ndarray, high: int, middle: int, low: int) -> None:
    """Starts a generator as ``Random((high << 128) + (middle << 64) + low)`` would.

    Args:
        generator: int64 [625], written.
        high: 64 bits, as an int64.
        middle: 64 bits.
        low: 64 bits.
    """
    key = np.empty(6, dtype=np.int64)
    for i, part in enumerate((low, middle, high)):
        key[2 * i] = part & _LOW_32
        key[2 * i + 1] = (part >> 32) & _LOW_32
    key_words = 6
    while key_words > 1 and key[key_words - 1] == 0:
        key_words -= 1
    for i in range(_WORDS):
        generator[i] = _FIRST_STATE[i]
    previous, i, j = generator[0], 1, 0
    for _ in range(_WORDS):
        mixed = generator[i] ^ ((previous ^ (previous >> 30)) * 1664525)
        previous = generator[i] = (mixed + key[j] + j) & _LOW_32
        i, j = i + 1, j + 1
        if i == _WORDS:
            generator[0], i = previous, 1
        if j == key_words:
            j = 0
    for _ in range(_WORDS - 1):
        mixed = generator[i] ^ ((previous ^ (previous >> 30)) * 1566083941)
        previous = generator[i] = (mixed - i) & _LOW_32
        i += 1
        if i == _WORDS:
            generator[0], i = previous, 1
    generator[0] = _UPPER
    generator[_WORDS] = 0


@inner
def next_word(generator: np.ndarray) -> int:
    """Returns the next 32 random bits."""
    index = generator[_WORDS]
    following = index + 1 if index + 1 < _WORDS else 0
    across = index + _MIDDLE if index + _MIDDLE < _WORDS else index + _MIDDLE - _WORDS
    joined = (generator[index] & _UPPER) | (generator[following] & _LOWER)
    word = generator[across] ^ (joined >> 1) ^ (_MATRIX * (joined & 1))
    generator[index] = word
    generator[_WORDS] = following
    word ^= word >> 11
    word ^= (word << 7) & 0x9D2C5680
    word ^= (word << 15) & 0xEFC60000
    return word ^ (word >> 18)


@inner
def uniform(generator: np.ndarray) -> float:
    """Draws a number uniform in [0, 1) with 53 bits, as ``random()`` does."""
    upper, lower = next_word(generator) >> 5, next_word(generator) >> 6
    return (upper * 67108864.0 + lower) * (1.0 / 9007199254740992.0)


@inner
def below(generator: np.ndarray, count: int) -> int:
    """Draws an integer in [0, count), as ``int(random() * count)`` does."""
    return int(uniform(generator) * count)


@inner
def count_heads(generator: np.ndarray, tosses: int) -> int:
    """Counts heads among tosses of a coin, as ``getrandbits(tosses).bit_count()`` does."""
    heads = 0
    while tosses > 0:
        word = next_word(generator)
        if tosses < 32:
            word >>= 32 - tosses
        tosses -= 32
        while word:
            word &= word - 1
            heads += 1
    return heads
