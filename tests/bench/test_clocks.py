"""Clocks of steps and of actions, told by a clock that says what it is told to."""

import itertools

from minimoe_dist.bench.clocks import HOST, Stamps, StepClock, fastest


def counting() -> Stamps:
    """Every look at the clock is a second after the one before."""
    seconds = itertools.count()
    return Stamps(lambda: next(seconds), lambda first, last: float(last - first))


def test_a_part_that_comes_twice_is_summed_where_it_came_first():
    clock = StepClock(counting())
    clock.begin()
    for part in ("teacher", "student", "teacher", "update"):
        clock.mark(part)
    assert list(clock.steps()[0].items()) == [("teacher", 2.0), ("student", 1.0), ("update", 1.0)]


def test_what_passes_between_two_steps_belongs_to_none():
    clock = StepClock(counting())
    for _ in range(2):
        clock.begin()
        clock.mark("all")
    assert clock.steps() == [{"all": 1.0}, {"all": 1.0}]


def test_runs_between_two_stamps_share_their_time():
    assert fastest(lambda: None, counting(), 0.0, at_once=4) == 0.25


def test_the_fastest_run_counts_and_the_first_does_not():
    now, ran = [0.0], []

    def action():
        ran.append(None)
        now[0] += {1: 0.5, 3: 1.0}.get(len(ran), 2.0)

    stamps = Stamps(lambda: now[0], lambda first, last: last - first)
    assert fastest(action, stamps, 0.0) == 1.0


def test_the_hosts_clock_goes_on():
    assert HOST.between(HOST.take(), HOST.take()) >= 0
