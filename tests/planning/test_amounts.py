"""What a process of a CPU holds, of tensors that come and go."""

import pytest

from minimoe_dist.planning.amounts import Amount, peak


def test_large_tensors_of_one_moment_and_small_ones_of_another_add_up():
    found = peak([{"a": Amount(small=100)}, {"b": Amount(large=80)}], holes=0)
    assert found.parts == {"a": 100}
    assert found.retained == 80


def test_a_heap_has_holes():
    assert peak([{"a": Amount(small=100)}], holes=0.5).retained == pytest.approx(50)
