"""Truncation against the rule that takes one token at a time."""

import random

import numpy as np
import pytest
from numba import njit

from minimoe_dist.data.compiled.drawing import truncate_pair
from minimoe_dist.data.compiled.mersenne import new_generator, seed_generator


@njit
def truncate(first: int, second: int, room: int, seed: int) -> tuple[int, int, int, int]:
    generator = new_generator()
    seed_generator(generator, 0, 0, seed)
    return truncate_pair(first, second, room, generator)


def lose_tokens_one_by_one(
    first: list[int], second: list[int], room: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    while len(first) + len(second) > room:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if rng.random() < 0.5 else -1)
    return first, second


def test_truncated_lengths_are_those_of_the_token_by_token_rule() -> None:
    rng = random.Random(1)
    for first in range(1, 16):
        for second in range(1, 16):
            for room in range(2, 14):
                expected = lose_tokens_one_by_one([0] * first, [0] * second, room, rng)
                _, kept_first, _, kept_second = truncate(first, second, room, 1)
                assert [kept_first, kept_second] == [*map(len, expected)]


@pytest.mark.parametrize(("first", "second", "room"), [(14, 4, 10), (4, 14, 10), (9, 9, 3)])
def test_what_is_kept_lies_inside_its_segment(first: int, second: int, room: int) -> None:
    for seed in range(200):
        lost_first, kept_first, lost_second, kept_second = truncate(first, second, room, seed)
        assert 0 <= lost_first <= first - kept_first
        assert 0 <= lost_second <= second - kept_second


def test_truncation_cuts_the_front_as_often_as_the_token_by_token_rule() -> None:
    rng = random.Random(1)
    cut = [truncate(14, 4, 10, seed)[0] for seed in range(8000)]
    walked = [lose_tokens_one_by_one([*range(14)], [*range(4)], 10, rng)[0][0] for _ in range(8000)]
    shares = [np.bincount(x, minlength=9) / 8000 for x in (cut, walked)]
    assert shares[0] == pytest.approx(shares[1], abs=0.03)
