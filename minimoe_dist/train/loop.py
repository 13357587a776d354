"""The training loop: batch, step, log, evaluate, save, stop."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from ..data.loader import StepBatch
from ..runtime import StopRequest, logger
from .distillation import Distiller, StepMetrics

_log = logger("train.loop")


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row without a finite loss and gradient."""


class Recorder(Protocol):
    """Where the numbers go."""

    def step(self, step: int, metrics: StepMetrics) -> None: ...


@dataclass(frozen=True)
class LoopOptions:
    """Intervals in steps; ``loss_scaling`` says that fp16 may leave out updates while it scales."""

    total_steps: int
    save_interval: int
    eval_interval: int
    max_bad_steps: int
    loss_scaling: bool


def train(
    distiller: Distiller,
    batches: Iterable[StepBatch],
    recorder: Recorder,
    options: LoopOptions,
    stop: StopRequest,
    *,
    save: Callable[[int], None],
    evaluate: Callable[[int], object],
    first_step: int = 0,
) -> int:
    """Trains from ``first_step`` until the end, or until a rank was asked to stop.

    Args:
        distiller: trains every student on a batch.
        batches: of the steps from ``first_step`` on.
        recorder: gets every step's numbers.
        options: how many steps, and what happens when.
        stop: asked for by a signal.
        save: called with the steps done; the last step's save comes before any evaluation.
        evaluate: called with the steps done at every interval, but not at the end; at
            ``first_step`` too, where that is one.
        first_step: steps done before.

    Returns:
        The number of steps done; fewer than ``options.total_steps`` after a stop, then saved.

    Raises:
        TrainingDivergedError: ``options.max_bad_steps`` steps in a row were not finite.
    """
    bad_steps = 0
    steps = range(first_step, options.total_steps)
    if steps and first_step and first_step % options.eval_interval == 0:
        # Due behind the save at which the run ended, so perhaps not done.
        evaluate(first_step)
    for step, batch in zip(steps, batches, strict=False):
        metrics = distiller.train_step(batch, step, stop.requested)
        done = step + 1
        recorder.step(done, metrics)
        bad_steps = bad_steps + 1 if _is_bad(done, metrics, options.loss_scaling) else 0
        if bad_steps >= options.max_bad_steps:
            raise TrainingDivergedError(
                f"step {done}: {bad_steps} steps in a row without a finite loss and gradient; the "
                "last checkpoint is good: lower training.learning_rate or look at the data"
            )
        ended = done == options.total_steps
        due = bad_steps == 0 and (done % options.save_interval == 0 or ended)
        if due or metrics.stop_requested:
            save(done)
        if metrics.stop_requested:
            return done
        if done % options.eval_interval == 0 and not ended:
            evaluate(done)
    return options.total_steps


def _is_bad(step: int, metrics: StepMetrics, loss_scaling: bool) -> bool:
    """Whether a student's update was left out for another reason than fp16's search for a scale."""
    for name, student in metrics.students.items():
        finite = math.isfinite(student.loss)
        if not finite or (not student.applied and not loss_scaling):
            _log.warning("step %d: %s: loss %s: update left out", step, name, student.loss)
            return True
    return False
