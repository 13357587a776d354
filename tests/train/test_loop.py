"""The order of steps, saves and evaluations, also over a stop. Students are left out."""

from types import SimpleNamespace

from minimoe_dist.train.distillation import StepMetrics
from minimoe_dist.train.loop import LoopOptions, train

OPTIONS = LoopOptions(
    total_steps=6, save_interval=3, eval_interval=2, max_bad_steps=10, loss_scaling=False
)


class NoStudents:
    """Trains nothing; stops when the step with the given number is done."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at

    def train_step(self, batch, step, stop_requested):
        return StepMetrics(0.1, 1, 1, step + 1 == self.stop_at, {})


def events(first_step=0, stop_at=None):
    found = []
    done = train(
        NoStudents(stop_at),
        iter(range(100)),
        SimpleNamespace(step=lambda step, metrics: found.append(step)),
        OPTIONS,
        SimpleNamespace(requested=False),
        save=lambda step: found.append(f"save {step}"),
        evaluate=lambda step: found.append(f"evaluate {step}"),
        first_step=first_step,
    )
    return done, found


def test_saves_and_evaluations_come_at_their_intervals_and_the_last_step_is_saved():
    whole = [1, 2, "evaluate 2", 3, "save 3", 4, "evaluate 4", 5, 6, "save 6"]
    assert events() == (6, whole)


def test_a_stop_saves_and_leaves_the_evaluation_to_the_next_start():
    assert events(stop_at=4) == (4, [1, 2, "evaluate 2", 3, "save 3", 4, "save 4"])
    assert events(first_step=4) == (6, ["evaluate 4", 5, 6, "save 6"])


def test_a_run_that_is_done_does_nothing_more():
    assert events(first_step=6) == (6, [])
