"""The compiled generator against Python's own."""

from random import Random

import numpy as np
import pytest
from numba import njit

from minimoe_dist.data.compiled.mersenne import (
    below,
    count_heads,
    new_generator,
    seed_generator,
    uniform,
)
from minimoe_dist.data.keyed import as_int64

WORD = (1 << 64) - 1
EDGES = [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


@njit
def uniforms(high: int, middle: int, low: int, count: int) -> np.ndarray:
    generator = new_generator()
    seed_generator(generator, high, middle, low)
    numbers = np.empty(count)
    for i in range(count):
        numbers[i] = uniform(generator)
    return numbers


@njit
def heads(seed: int, tosses: np.ndarray) -> np.ndarray:
    generator = new_generator()
    seed_generator(generator, 0, 0, seed)
    counts = np.empty_like(tosses)
    for i in range(len(tosses)):
        counts[i] = count_heads(generator, tosses[i])
    return counts


@njit
def choices(seed: int, counts: np.ndarray) -> np.ndarray:
    generator = new_generator()
    seed_generator(generator, 0, 0, seed)
    chosen = np.empty_like(counts)
    for i in range(len(counts)):
        chosen[i] = below(generator, counts[i])
    return chosen


def python_uniforms(high: int, middle: int, low: int, count: int) -> list[float]:
    rng = Random((high << 128) | (middle << 64) | low)
    return [rng.random() for _ in range(count)]


@pytest.mark.parametrize("high", EDGES)
def test_keys_of_any_length_start_pythons_generator(high: int) -> None:
    for middle in EDGES:
        for low in EDGES:
            drawn = uniforms(as_int64(high), as_int64(middle), as_int64(low), 3)
            assert drawn.tolist() == python_uniforms(high, middle, low, 3)


def test_random_keys_start_pythons_generator() -> None:
    rng = Random(1)
    for _ in range(500):
        key = [rng.getrandbits(64) >> rng.choice([0, 0, 20, 50]) for _ in range(3)]
        drawn = uniforms(*map(as_int64, key), 2)
        assert drawn.tolist() == python_uniforms(*key, 2)


def test_words_are_renewed_as_pythons_are() -> None:
    # Each number takes two of 624 words: all are renewed several times.
    assert uniforms(3, 2, 1, 5000).tolist() == python_uniforms(3, 2, 1, 5000)


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_heads_are_the_bits_that_python_draws(seed: int) -> None:
    tosses = [*range(140), 1000, 12_345]
    rng = Random(seed)
    expected = [rng.getrandbits(count).bit_count() if count else 0 for count in tosses]
    assert heads(seed, np.array(tosses)).tolist() == expected


def test_choices_are_pythons() -> None:
    counts = [1, 2, 10, 10**6, 10**12] * 100
    rng = Random(5)
    expected = [int(rng.random() * count) for count in counts]
    assert choices(5, np.array(counts)).tolist() == expected


def test_streams_of_neighbouring_counters_are_distinct() -> None:
    counters = [(s, e, k) for s in range(3) for e in range(3) for k in range(3)]
    assert len({uniforms(*each, 1)[0] for each in counters}) == 27
