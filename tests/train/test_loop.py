"""The order of steps, saves and evaluations, also over a stop. What is trained is left out."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from minimoe_dist.train.loop import LoopOptions, TrainingDivergedError, run_steps
from minimoe_dist.train.step_metrics import StepMetrics, StudentMetrics

GOOD = StudentMetrics(1.0, {}, 1.0, 0.5, True, [])
BAD = StudentMetrics(math.nan, {}, 1.0, math.nan, False, [])


class NoWork:
    """Trains nothing; a stop is requested, or steps are bad, at given numbers of steps done.

    ``events`` is what was done in order: records, saves and evaluations, each with the steps that
    had been started by then.
    """

    def __init__(
        self,
        first_step=0,
        stop_at=None,
        bad=(),
        searches=(),
        enough_at=None,
        full=(),
        cause=None,
        former=None,
        insists=False,
    ):
        self.first_step, self.stop_at, self.bad, self.searches = first_step, stop_at, bad, searches
        self.enough_at, self.full, self.cause = enough_at, full, cause
        self.former = former
        self.started, self.events = 0, []

        self.saved_step, self.failure, self.insists = first_step, None, insists

    def resume(self, work):
        return self.first_step

    def save(self, work, steps_done, goes_on=True):
        self.finish()
        if steps_done in self.full:
            self.failure = OSError("the disk is full")
            return
        self.events.append(f"save {steps_done}")
        self.saved_step = steps_done

    @property
    def asks_for_end(self):
        return self.failure is not None and self.insists

    def finish(self, must_be_saved=False):
        failure, self.failure = self.failure, None
        if failure is not None and (must_be_saved or self.insists):
            raise failure

    def wait(self):
        self.events.append("wait")

    def set_aside_newest(self):
        self.events.append("set aside")
        return self.former

    def under_way(self, first_step):
        assert first_step == self.first_step
        return nullcontext()

    def step(self, step, stop_requested):
        self.started = step + 1
        if stop_requested:
            self.stop_at = self.started
        student = BAD if self.started in self.bad else GOOD
        if self.started in self.searches:
            student = StudentMetrics(1.0, {}, 1.0, math.inf, False, [], searches=True)
        return StepMetrics(0.1, 1, 1, step + 1 == self.stop_at, {"student": student})

    def record(self, steps_done, outcome):
        self.events.append((steps_done, self.started))

    def evaluate(self, steps_done):
        self.events.append(f"evaluate {steps_done}")
        return steps_done == self.enough_at

    def paused(self):
        return nullcontext()

    def cause_of_divergence(self):
        return self.cause


def events(first_step=0, total_steps=6, max_bad_steps=10, reads_behind=False, loop=None, **work):
    """Whether the work came to its end, and what was done in order."""
    work = NoWork(first_step, **work)
    options = {"max_bad_steps": max_bad_steps, "reads_behind": reads_behind, **(loop or {})}
    options = LoopOptions(total_steps, 2, **{"save_interval": 3, **options})
    return run_steps(work, options, work, SimpleNamespace(requested=False)), work.events


def at_once(*rows):
    return [(row, row) if isinstance(row, int) else row for row in rows]


def test_saves_and_evaluations_come_at_their_intervals_and_behind_the_last_step():
    whole = at_once(1, 2, "evaluate 2", 3, "save 3", 4, "evaluate 4", 5, 6, "save 6", "evaluate 6")
    assert events() == (True, whole)


def test_a_stop_saves_and_leaves_the_evaluation_to_the_next_start():
    assert events(stop_at=4) == (False, at_once(1, 2, "evaluate 2", 3, "save 3", 4, "save 4"))
    assert events(first_step=4) == (True, at_once("evaluate 4", 5, 6, "save 6", "evaluate 6"))


def test_work_that_is_done_is_evaluated_once_more():
    assert events(first_step=6) == (True, ["evaluate 6"])


@pytest.mark.parametrize("first_step", [0, 4])
def test_an_evaluation_may_end_the_work(first_step):
    done, found = events(first_step=first_step, enough_at=4)
    assert (done, found[-1]) == (True, "evaluate 4")


def test_work_may_be_saved_only_where_it_is_stopped():
    only_at_a_stop = {"save_interval": None, "saves_last": False}
    assert not any("save" in str(row) for row in events(loop=only_at_a_stop)[1])
    assert events(loop=only_at_a_stop, stop_at=5)[1][-1] == "save 5"


def test_a_save_that_fails_is_left_out():
    done, found = events(full=(3, 6))
    assert done and found[-2:] == [(6, 6), "evaluate 6"]


def test_a_save_that_fails_ends_a_stop_and_work_that_insists_on_it():
    for changes in ({"full": (4,), "stop_at": 4}, {"full": (3,), "insists": True}):
        with pytest.raises(OSError, match="full"):
            events(**changes)
    with pytest.raises(OSError, match="full"):
        events(full=(6,), insists=True, total_steps=6)


@pytest.mark.parametrize("reads_behind", [False, True])
def test_a_failed_save_that_is_insisted_on_ends_the_work_at_a_step_that_all_agree_on(reads_behind):
    work = NoWork(full=(3,), insists=True)
    options = LoopOptions(60, 100, 3, reads_behind=reads_behind)
    with pytest.raises(OSError, match="full"):
        run_steps(work, options, work, SimpleNamespace(requested=False))
    assert work.started == 4 + reads_behind


@pytest.mark.parametrize(
    ("work", "saved", "is_set_aside"),
    [
        ({"bad": (1, 2)}, "nothing is saved", False),
        ({"bad": (5, 6)}, "the checkpoint of step 3 is good", False),
        ({"bad": (4, 5)}, "no step behind the checkpoint of step 3 .* begins anew", True),
        ({"first_step": 3, "bad": (4, 5), "former": 2}, "of step 3 .* goes on from step 2", True),
        ({"first_step": 4, "bad": (6, 7), "total_steps": 9}, "of step 4 is good", False),
    ],
)
@pytest.mark.parametrize("reads_behind", [False, True])
def test_a_checkpoint_that_no_step_was_good_with_is_set_aside(
    work, saved, is_set_aside, reads_behind
):
    worked = NoWork(**{name: value for name, value in work.items() if name != "total_steps"})
    options = LoopOptions(
        work.get("total_steps", 6), 100, 3, max_bad_steps=2, reads_behind=reads_behind
    )
    with pytest.raises(TrainingDivergedError, match=saved):
        run_steps(worked, options, worked, SimpleNamespace(requested=False))
    assert ("set aside" in worked.events) == is_set_aside


def test_a_teacher_that_is_at_fault_leaves_checkpoints_alone():
    worked = NoWork(bad=(4, 5), cause="the teacher is broken")
    with pytest.raises(TrainingDivergedError, match="the teacher is broken"):
        run_steps(
            worked,
            LoopOptions(6, 100, 3, max_bad_steps=2),
            worked,
            SimpleNamespace(requested=False),
        )
    assert "set aside" not in worked.events


def test_numbers_are_read_when_the_next_step_has_started_but_before_saves_and_evaluations():
    done, found = events(reads_behind=True)
    assert done
    rows = [(1, 2), (2, 2), "evaluate 2", (3, 3), "save 3", (4, 4), "evaluate 4", (5, 6), (6, 6)]
    assert found == [*rows, "save 6", "evaluate 6"]


def test_a_stop_that_is_seen_a_step_late_saves_that_step():
    done, found = events(reads_behind=True, stop_at=1, first_step=0, total_steps=60)
    assert (done, found) == (False, [(1, 2), (2, 2), "save 2"])
    done, found = events(reads_behind=True, stop_at=7, first_step=6, total_steps=60)
    assert (done, found) == (False, ["evaluate 6", (7, 8), (8, 8), "save 8"])


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
    assert done and "save 3" in found


@pytest.mark.parametrize("reads_behind", [False, True])
@pytest.mark.parametrize(
    "work", [{"bad": (1, 2)}, {"searches": (1, 2)}, {"bad": range(9), "enough_at": 2}]
)
def test_a_run_in_which_no_step_changed_anything_fails(work, reads_behind):
    with pytest.raises(TrainingDivergedError, match="student: no step had a finite loss"):
        events(total_steps=work.get("enough_at", 1) * 2 if "enough_at" in work else 2,
               reads_behind=reads_behind, **work)  # fmt: skip


def test_bad_steps_behind_good_ones_do_not_fail_a_run():
    assert events(bad=(2, 3, 4, 5, 6))[0]
    assert events(first_step=4, bad=(5, 6))[0]


@pytest.mark.parametrize("max_bad_steps", [2, 10])
def test_what_gives_no_finite_numbers_is_named(max_bad_steps):
    with pytest.raises(TrainingDivergedError, match="; the teacher t gives nothing: look at its"):
        events(
            total_steps=2,
            bad=(1, 2),
            max_bad_steps=max_bad_steps,
            cause="the teacher t gives nothing",
        )
