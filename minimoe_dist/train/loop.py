"""The training loop: batch, step, log, evaluate, save, stop."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from ..data.loader import StepBatch
from ..runtime import StopRequest, logger
from .distillation import Distiller
from .step_metrics import PendingMetrics, StepMetrics

_log = logger("train.loop")


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row without a finite loss and gradient."""


class Recorder(Protocol):
    """Where the numbers go."""

    def step(self, step: int, metrics: StepMetrics) -> None: ...


@dataclass(frozen=True)
class LoopOptions:
    """When what happens.

    Attributes:
        total_steps: of the whole run.
        save_interval: steps between checkpoints.
        eval_interval: steps between evaluations.
        max_bad_steps: steps in a row without a finite loss and gradient before giving up.
        reads_behind: whether a step's numbers are read when the next step has been started, so
            that a GPU never waits for the host. A stop, a step that went wrong and a record are
            then seen a step late, on every rank alike.
    """

    total_steps: int
    save_interval: int
    eval_interval: int
    max_bad_steps: int
    reads_behind: bool = False


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
    seen = _Seen(recorder, options.max_bad_steps)
    steps = range(first_step, options.total_steps)
    if steps and first_step and first_step % options.eval_interval == 0:
        # Due behind the save at which the run ended, so perhaps not done.
        evaluate(first_step)
    for step, batch in zip(steps, batches, strict=False):
        pending = distiller.train_step(batch, step, stop.requested)
        done = step + 1
        ended = done == options.total_steps
        saves, evaluates = done % options.save_interval == 0, done % options.eval_interval == 0
        # Whoever saves or evaluates wants to know all about the weights.
        seen.add(done, pending, waits=not options.reads_behind or saves or evaluates or ended)
        if seen.stop_requested:
            seen.finish()
        if seen.stop_requested or ((saves or ended) and seen.bad_steps == 0):
            save(done)
        if seen.stop_requested:
            return done
        if evaluates and not ended:
            evaluate(done)
    return options.total_steps


class _Seen:
    """What is known of the steps so far; the newest one's numbers may be outstanding."""

    def __init__(self, recorder: Recorder, max_bad_steps: int) -> None:
        self._recorder = recorder
        self._max_bad_steps = max_bad_steps
        self._outstanding: tuple[int, PendingMetrics] | None = None
        self.bad_steps = 0
        self.stop_requested = False

    def add(self, step: int, pending: PendingMetrics, waits: bool) -> None:
        """Reads the step before, and with ``waits`` this one too."""
        self.finish()
        self._outstanding = step, pending
        if waits:
            self.finish()

    def finish(self) -> None:
        """Reads what is outstanding."""
        if self._outstanding is None:
            return
        (step, pending), self._outstanding = self._outstanding, None
        metrics = pending.metrics
        self._recorder.step(step, metrics)
        self.stop_requested = self.stop_requested or metrics.stop_requested
        self.bad_steps = self.bad_steps + 1 if _is_bad(step, metrics) else 0
        if self.bad_steps >= self._max_bad_steps:
            raise TrainingDivergedError(
                f"step {step}: {self.bad_steps} steps in a row without a finite loss and gradient; "
                "the last checkpoint is good: lower training.learning_rate or look at the data"
            )


def _is_bad(step: int, metrics: StepMetrics) -> bool:
    """Whether a student's update was left out for another reason than fp16's search for a scale."""
    for name, student in metrics.students.items():
        finite = math.isfinite(student.loss)
        if not finite or not (student.applied or student.searches):
            _log.warning("step %d: %s: loss %s: update left out", step, name, student.loss)
            return True
    return False
