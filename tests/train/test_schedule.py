"""Learning rates by step."""

import math

import pytest

from minimoe_dist.train.schedule import make_schedule

KINDS = ["linear", "cosine", "constant", "constant_with_warmup"]


def rates(kind, steps=100, warmup=0.1, peak=2.0):
    schedule = make_schedule(kind, peak, steps, warmup)
    return [schedule(step) for step in range(steps)]


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
def test_the_rate_rises_evenly_to_its_peak(kind) -> None:
    given = rates(kind)
    assert given[:10] == pytest.approx([2.0 * (step + 1) / 11 for step in range(10)])
    assert given[10] == 2.0 == max(given)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_update_moves(kind) -> None:
    assert rates(kind)[0] > 0
    assert rates(kind, steps=1, warmup=1.0)[0] > 0


def test_a_linear_rate_falls_evenly_to_zero_after_the_last_step() -> None:
    schedule = make_schedule("linear", 2.0, 100, 0.1)
    assert [schedule(step) for step in range(10, 101)] == pytest.approx(
        [2.0 * (100 - step) / 90 for step in range(10, 101)]
    )


def test_a_cosine_rate_falls_by_half_a_cosine() -> None:
    schedule = make_schedule("cosine", 2.0, 100, 0.1)
    assert schedule(55) == pytest.approx(1.0)
    assert schedule(40) == pytest.approx(1.0 + math.cos(math.pi / 3))
    assert schedule(100) == pytest.approx(0.0)


def test_a_constant_rate_has_no_warm_up() -> None:
    assert set(rates("constant")) == {2.0}


def test_a_constant_rate_after_a_warm_up_stays() -> None:
    assert set(rates("constant_with_warmup")[10:]) == {2.0}


def test_no_warm_up_starts_at_the_peak() -> None:
    assert rates("linear", warmup=0.0)[0] == 2.0


def test_a_share_of_a_step_warms_up_for_a_step() -> None:
    assert rates("linear", steps=100, warmup=0.001)[:2] == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize("kind", KINDS)
def test_rates_beyond_the_end_are_never_negative(kind) -> None:
    schedule = make_schedule(kind, 2.0, 10, 0.1)
    assert min(schedule(step) for step in range(30)) >= 0.0


def test_an_unknown_kind_is_refused() -> None:
    words = r"lr_scheduler_type: 'liner' is unknown: use one of \['constant', .*'linear'\]"
    with pytest.raises(ValueError, match=words):
        make_schedule("liner", 1.0, 10, 0.1)
