"""The order of steps, saves and evaluations, also over a stop. Students are left out."""

import math
from types import SimpleNamespace

import pytest

from minimoe_dist.train.loop import LoopOptions, TrainingDivergedError, train
from minimoe_dist.train.step_metrics import StepMetrics, StudentMetrics

GOOD = StudentMetrics(1.0, {}, 1.0, 0.5, True, [])
BAD = StudentMetrics(math.nan, {}, 1.0, math.nan, False, [])


class NoStudents:
    """Trains nothing; a stop is requested, or steps are bad, at given numbers of steps done."""

    def __init__(self, stop_at=None, bad=(), searches=()):
        self.stop_at, self.bad, self.searches = stop_at, bad, searches
        self.started = 0

    def train_step(self, batch, step, stop_requested):
        self.started = step + 1
        student = BAD if self.started in self.bad else GOOD
        if self.started in self.searches:
            student = StudentMetrics(1.0, {}, 1.0, math.inf, False, [], searches=True)
        metrics = StepMetrics(0.1, 1, 1, step + 1 == self.stop_at, {"student": student})
        return SimpleNamespace(metrics=metrics)


def events(first_step=0, reads_behind=False, total_steps=6, max_bad_steps=10, **distiller):
    """What was done in order: records, saves and evaluations, each with the steps started then."""
    found = []
    students = NoStudents(**distiller)
    done = train(
        students,
        iter(range(100)),
        SimpleNamespace(step=lambda step, metrics: found.append((step, students.started))),
        LoopOptions(total_steps, 3, 2, max_bad_steps, reads_behind),
        SimpleNamespace(requested=False),
        save=lambda step: found.append(f"save {step}"),
        evaluate=lambda step: found.append(f"evaluate {step}"),
        first_step=first_step,
    )
    return done, found


def at_once(*rows):
    return [(row, row) if isinstance(row, int) else row for row in rows]


def test_saves_and_evaluations_come_at_their_intervals_and_the_last_step_is_saved():
    whole = at_once(1, 2, "evaluate 2", 3, "save 3", 4, "evaluate 4", 5, 6, "save 6")
    assert events() == (6, whole)


def test_a_stop_saves_and_leaves_the_evaluation_to_the_next_start():
    assert events(stop_at=4) == (4, at_once(1, 2, "evaluate 2", 3, "save 3", 4, "save 4"))
    assert events(first_step=4) == (6, at_once("evaluate 4", 5, 6, "save 6"))


def test_a_run_that_is_done_does_nothing_more():
    assert events(first_step=6) == (6, [])


def test_numbers_are_read_when_the_next_step_has_started_but_before_saves_and_evaluations():
    done, found = events(reads_behind=True)
    assert done == 6
    rows = [(1, 2), (2, 2), "evaluate 2", (3, 3), "save 3", (4, 4), "evaluate 4", (5, 6), (6, 6)]
    assert found == [*rows, "save 6"]


def test_a_stop_that_is_seen_a_step_late_saves_that_step():
    done, found = events(reads_behind=True, stop_at=1, first_step=0, total_steps=60)
    assert (done, found) == (2, [(1, 2), (2, 2), "save 2"])
    done, found = events(reads_behind=True, stop_at=7, first_step=6, total_steps=60)
    assert (done, found) == (8, ["evaluate 6", (7, 8), (8, 8), "save 8"])


@pytest.mark.parametrize("reads_behind", [False, True])
def test_nothing_is_saved_behind_a_bad_step(reads_behind):
    _, found = events(reads_behind=reads_behind, bad=(3,))
    assert [row for row in found if str(row).startswith("save")] == ["save 6"]


@pytest.mark.parametrize("reads_behind", [False, True])
def test_bad_steps_in_a_row_end_the_run(reads_behind):
    with pytest.raises(TrainingDivergedError, match="step 5: 3 steps in a row"):
        events(reads_behind=reads_behind, bad=(1, 3, 4, 5, 6), max_bad_steps=3)


def test_a_search_for_float16s_scale_is_no_bad_step():
    done, found = events(searches=(1, 2, 3), max_bad_steps=2)
    assert done == 6 and "save 3" in found
