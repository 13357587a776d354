"""The one loop of all that goes step by step: step, record, save, evaluate, stop, go on.

Distilling, fine-tuning and measuring importances are each a :class:`Work`; when they are saved and
evaluated, when they end and how they go on is decided here.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar

from ..runtime import StopRequest, logger
from .resuming import Checkpoints, Resumable

_log = logger("train.loop")


class TrainingDivergedError(RuntimeError):
    """Raised after too many steps in a row without a finite loss and gradient, or only such."""


class StepOutcome(Protocol):
    """The outcome of a step, as far as the loop must know it; asking may wait for the device."""

    @property
    def stop_requested(self) -> bool:
        """Whether a rank was asked to stop; the same on all ranks."""

    @property
    def problem(self) -> str | None:
        """Why the step changed nothing, for a warning; None for a good one."""

    @property
    def unchanged(self) -> frozenset[str]:
        """What the step is there to change and did not: names of students."""


Outcome = TypeVar("Outcome", bound=StepOutcome)


class Work(Resumable, Protocol[Outcome]):
    """Something that is done step by step; every method is a collective."""

    def under_way(self, first_step: int) -> AbstractContextManager[None]:
        """Holds what steps need (data, progress) from ``first_step`` on, behind any resume."""

    def step(self, step: int, stop_requested: bool) -> Outcome:
        """Does one step, and need not wait for the device.

        Args:
            step: counts from 0.
            stop_requested: whether this process was asked to stop.
        """

    def record(self, steps_done: int, outcome: Outcome) -> None:
        """Takes in a step's numbers, in the order of steps; another step may have begun."""

    def evaluate(self, steps_done: int) -> bool:
        """Evaluates, and returns whether no more steps are wanted."""

    def cause_of_divergence(self) -> str | None:
        """Says what gives numbers that are not finite; None where it is not an input's fault."""

    def paused(self) -> AbstractContextManager[None]:
        """Leaves what is done inside, a save, out of rates."""


@dataclass(frozen=True)
class LoopOptions:
    """The number of steps, and when they are evaluated, saved and given up.

    Attributes:
        total_steps: of the whole work.
        eval_interval: steps between evaluations; the last step is evaluated too.
        save_interval: steps between checkpoints; None: only where it is asked to stop.
        saves_last: whether the last step is saved too.
        max_bad_steps: steps in a row with a problem before giving up.
        reads_behind: whether a step's numbers are read when the next step has been started, so
            that a GPU never waits for the host. A stop, a step that went wrong and a record are
            then seen a step late, on every rank alike.
    """

    total_steps: int
    eval_interval: int
    save_interval: int | None
    saves_last: bool = True
    max_bad_steps: int = 10
    reads_behind: bool = False

    def evaluates(self, steps_done: int) -> bool:
        """Returns whether an evaluation is due behind a step."""
        is_due = steps_done % self.eval_interval == 0 or steps_done == self.total_steps
        return steps_done > 0 and is_due

    def saves(self, steps_done: int) -> bool:
        """Returns whether a checkpoint is due behind a step."""
        if steps_done == self.total_steps:
            return self.saves_last
        return self.save_interval is not None and steps_done % self.save_interval == 0


def run_steps(
    work: Work[Any], options: LoopOptions, checkpoints: Checkpoints, stop: StopRequest
) -> bool:
    """Goes on from the newest checkpoint until the end, or until a rank was asked to stop.

    A checkpoint comes before the evaluation of its step, which is then done again by whoever goes
    on from it. It is written while the work goes on, and is on the disk when this returns; one that
    cannot be written is told and left out, unless ``checkpoints`` insist on it.

    Args:
        work: what is done.
        options: how many steps, and what happens when.
        checkpoints: where ``work`` is saved.
        stop: asked for by a signal.

    Returns:
        Whether it came to its end; otherwise it was saved where it stopped.

    Raises:
        TrainingDivergedError: ``options.max_bad_steps`` steps in a row had a problem, or no step
            since the first one changed anything.
        UserError: the newest checkpoint is of other options, or none is whole.
        OSError: the checkpoint of a stop cannot be written, or one that is insisted on.
    """
    try:
        is_done = _run_steps(work, options, checkpoints, stop)
    except BaseException:
        checkpoints.wait()
        raise
    checkpoints.finish()
    return is_done


def _run_steps(
    work: Work[Any], options: LoopOptions, checkpoints: Checkpoints, stop: StopRequest
) -> bool:
    first_step = checkpoints.resume(work)
    with work.under_way(first_step):
        if options.evaluates(first_step) and work.evaluate(first_step):
            return True
        outcomes = _Outcomes(work, checkpoints, options.max_bad_steps)
        for step in range(first_step, options.total_steps):
            # All ranks must agree on the step at which a failed save ends the work too.
            outcome = work.step(step, stop.requested or checkpoints.asks_for_end)
            done = step + 1
            saves, evaluates = options.saves(done), options.evaluates(done)
            # Whoever saves or evaluates wants to know all about the steps before.
            outcomes.add(done, outcome, waits=not options.reads_behind or saves or evaluates)
            if outcomes.stop_requested:
                outcomes.read_pending()
                with work.paused():
                    checkpoints.save(work, done, goes_on=False)
                    checkpoints.finish(must_be_saved=True)
                _log.info("stopped at step %d of %d and saved", done, options.total_steps)
                return False
            if saves and outcomes.bad_steps == 0:
                with work.paused():
                    checkpoints.save(work, done)
            if evaluates and work.evaluate(done):
                break
        if first_step == 0:
            outcomes.check_changes()
    return True


class _Outcomes:
    """The outcomes of the steps so far; the newest one's numbers may be pending."""

    def __init__(self, work: Work[Any], checkpoints: Checkpoints, max_bad_steps: int) -> None:
        self._work = work
        self._checkpoints = checkpoints
        self._max_bad_steps = max_bad_steps
        self._last_good_step = 0
        self._pending: tuple[int, StepOutcome] | None = None
        self._unchanged: frozenset[str] | None = None  # by any step so far
        self.bad_steps = 0
        self.stop_requested = False

    def add(self, steps_done: int, outcome: StepOutcome, waits: bool) -> None:
        """Reads the step before, and with ``waits`` this one too."""
        self.read_pending()
        self._pending = steps_done, outcome
        if waits:
            self.read_pending()

    def read_pending(self) -> None:
        """Reads the newest step's numbers, if that was not done yet."""
        if self._pending is None:
            return
        (step, outcome), self._pending = self._pending, None
        self._work.record(step, outcome)
        self.stop_requested = self.stop_requested or outcome.stop_requested
        before, now = self._unchanged, outcome.unchanged
        self._unchanged = now if before is None else before & now
        if outcome.problem is None:
            self.bad_steps = 0
            self._last_good_step = step
            return
        _log.warning("step %d: %s", step, outcome.problem)
        self.bad_steps += 1
        if self.bad_steps >= self._max_bad_steps:
            self._give_up(
                f"step {step}: {self.bad_steps} steps in a row without a finite loss and gradient",
                "lower the learning rate or look at the data",
            )

    def check_changes(self) -> None:
        """Refuses an end at which something is still as it was at the beginning.

        Raises:
            TrainingDivergedError: no step changed it.
        """
        if self._unchanged:
            self._give_up(
                f"{', '.join(sorted(self._unchanged))}: no step had a finite loss and gradient, so "
                "nothing was learnt",
                "take more steps, lower the learning rate or look at the data",
            )

    def _give_up(self, reason: str, remedy: str) -> NoReturn:
        cause = self._work.cause_of_divergence()
        if cause is not None:
            raise TrainingDivergedError(f"{reason}; {cause}: look at its weights, or give another")
        raise TrainingDivergedError(f"{reason}: {remedy}; {self._what_is_saved()}")

    def _what_is_saved(self) -> str:
        """Says what the next start goes on from; not from weights that no step was good with."""
        self._checkpoints.finish()
        saved = self._checkpoints.saved_step
        if not saved:
            return "nothing is saved"
        if self._last_good_step > saved:
            return f"the checkpoint of step {saved} is good"
        former = self._checkpoints.set_aside_newest()
        return (
            f"no step behind the checkpoint of step {saved} was good, so it was set aside: the "
            f"next start {f'goes on from step {former}' if former else 'begins anew'}"
        )
