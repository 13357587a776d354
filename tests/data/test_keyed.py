"""Keyed random numbers and orders."""

import numpy as np
import pytest

from minimoe_dist.data.keyed import as_int64, keyed_bits, permute, spread, spread_stride


@pytest.mark.parametrize("size", [1, 2, 3, 10, 63, 64, 65, 1000, 4097])
def test_permutation_is_a_bijection(size: int) -> None:
    assert sorted(permute(range(size), size, 5, 1).tolist()) == list(range(size))


def test_permutations_of_two_epochs_agree_no_more_than_chance() -> None:
    one, other = (permute(range(5000), 5000, 7, epoch) for epoch in (0, 1))
    assert int((one == other).sum()) < 10


def test_permutations_of_two_seeds_agree_no_more_than_chance() -> None:
    one, other = (permute(range(5000), 5000, seed, 0) for seed in (1, 2))
    assert int((one == other).sum()) < 10


@pytest.mark.parametrize("size", [1000, 100_003])
def test_permutation_has_no_serial_correlation(size: int) -> None:
    order = permute(range(size), size, 3, 2)
    correlation = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(size)


def test_permutation_spreads_every_block_over_all_places() -> None:
    order = permute(range(64_000), 64_000, 3, 0)
    first_block_homes = np.bincount(order[:6400] // 6400, minlength=10)
    assert first_block_homes.min() > 550 and first_block_homes.max() < 730


def test_small_permutations_put_each_element_everywhere_equally_often() -> None:
    homes = [int(permute([0], 5, 11, epoch)[0]) for epoch in range(2000)]
    assert np.bincount(homes, minlength=5) == pytest.approx(400, abs=75)


def test_permutation_of_a_huge_range_needs_only_the_indices_asked_for() -> None:
    size = 10**12
    images = permute([0, size - 1], size, 1, 0)
    assert images.max() < size and images[0] != images[1]


@pytest.mark.parametrize("size", [1, 2, 3, 6, 8, 100, 1024, 99_991])
def test_stride_visits_every_place_once(size: int) -> None:
    stride = spread_stride(size)
    assert len({k * stride % size for k in range(size)}) == size


def test_stride_leaves_no_large_gap_after_any_prefix() -> None:
    size = 10_000
    stride = spread_stride(size)
    for visited in (10, 100, 1000):
        places = np.sort([k * stride % size for k in range(visited)])
        assert np.diff(places).max() < 3 * size / visited


def test_keyed_bits_depend_on_every_counter() -> None:
    values = {
        int(keyed_bits(*key)[0]) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0)]
    }
    assert len(values) == 5


def test_keyed_bits_are_uniform_in_every_bit() -> None:
    bits = keyed_bits(9, 4, np.arange(20_000))
    shares = [float(((bits >> np.uint64(i)) & np.uint64(1)).mean()) for i in range(64)]
    assert shares == pytest.approx([0.5] * 64, abs=0.018)


@pytest.mark.parametrize("size", [10, 4 * 10**9])
def test_spread_numbers_are_exact_where_products_exceed_64_bits(size: int) -> None:
    stride = spread_stride(size)
    numbers = np.array([0, 1, size // 2, size - 1])
    expected = [int(k) * stride % size for k in numbers]
    assert spread(numbers, size, stride).tolist() == expected


@pytest.mark.parametrize("word", [0, 5, -3, 2**63 - 1, 2**63, 2**64 - 1, 2**70 + 1])
def test_words_keep_their_low_64_bits(word: int) -> None:
    assert -(2**63) <= as_int64(word) < 2**63
    assert (as_int64(word) - word) % 2**64 == 0
