"""Rates of products by size, of what was measured."""

import pytest

from minimoe_dist.planning.rates import ProductRate, fit_rate


def test_a_rate_that_grows_with_size_is_found_again():
    law = ProductRate(tflops=0.1, half_size=200.0)
    assert fit_rate([(size, law.of(size)) for size in (50.0, 400.0, 1000.0)]) == law


def test_half_of_the_rate_is_reached_at_half_size():
    assert ProductRate(tflops=2.0, half_size=100.0).of(100.0) == pytest.approx(1e12)


def test_rates_that_fall_with_size_are_taken_as_even():
    found = fit_rate([(100.0, 9e10), (1000.0, 6e10)])
    assert found.half_size == 0.0
