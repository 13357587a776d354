"""The compiled order of samples against the permutation that it is made of."""

import numpy as np
import pytest

from minimoe_dist.data.compiled.order import find_samples
from minimoe_dist.data.keyed import as_int64, feistel_bits, permute


@pytest.mark.parametrize("seed", [0, 5, -1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 1000, 10**12])
@pytest.mark.parametrize("start", [0, 61, 10**13])
def test_positions_are_those_of_the_permuted_epochs(seed: int, size: int, start: int) -> None:
    epochs, numbers = np.empty(200, dtype=np.int64), np.empty(200, dtype=np.int64)
    find_samples(start, size, feistel_bits(size), as_int64(seed), epochs, numbers)
    expected, places = np.divmod(np.arange(start, start + 200), size)
    assert np.array_equal(epochs, expected)
    for epoch in np.unique(expected).tolist():
        inside = expected == epoch
        assert np.array_equal(numbers[inside], permute(places[inside], size, seed, epoch))
