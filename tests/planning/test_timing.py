"""How long a machine takes for what is counted of a part."""

import pytest

from minimoe_dist.planning.rates import FORWARD, TEACHER, ProductRate
from minimoe_dist.planning.timing import part_seconds
from minimoe_dist.planning.work import Work, product
from tests.planning.recipes import machine

MEASURED = {"float32": ProductRate(tflops=0.1, half_size=100.0)}


def test_small_products_take_longer_than_their_share():
    on = machine(products=MEASURED)
    one = part_seconds(on, TEACHER, Work("float32", (product(4096, 512, 512),)))
    many = part_seconds(on, TEACHER, Work("float32", (product(64, 512, 512, 64),)))
    assert many > 1.3 * one


def test_a_part_takes_as_many_times_longer_as_was_measured():
    work = Work("float32", (product(64, 64, 64),), moved_bytes=1e6, launches=7)
    counted, longer = (
        part_seconds(machine(products=MEASURED, parts=parts), FORWARD, work)
        for parts in ({}, {FORWARD: 1.5})
    )
    assert longer == pytest.approx(1.5 * counted)


def test_recorded_passes_launch_as_graphs_do():
    on = machine(
        products=MEASURED,
        launch_microseconds=5.0,
        recorded_launch_microseconds=1.0,
    )
    eager, played = (
        part_seconds(on, FORWARD, Work("float32", launches=100, recorded=recorded))
        for recorded in (False, True)
    )
    assert (eager, played) == (pytest.approx(500e-6), pytest.approx(100e-6))
