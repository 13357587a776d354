"""Measures how long the parts of steps take."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .clocks import StepClock

METRICS = "metrics"  # the part behind a step's last one: its numbers are read on the host


class Pending(Protocol):
    """A step that may still run: reading its numbers waits for it."""

    @property
    def metrics(self) -> object: ...


@dataclass(frozen=True)
class StepTimes:
    """The measured times of some steps.

    Attributes:
        steps: seconds of each step by part.
    """

    steps: list[dict[str, float]]

    @property
    def fastest(self) -> dict[str, float]:
        """The parts of the fastest step, which other work on the machine disturbed least."""
        return min(self.steps, key=lambda parts: sum(parts.values()))

    @property
    def seconds(self) -> float:
        """The seconds of the fastest step."""
        return sum(self.fastest.values())

    @property
    def median_seconds(self) -> float:
        """The median of the seconds of all steps."""
        return statistics.median(sum(parts.values()) for parts in self.steps)


def measure_steps(
    train_step: Callable[[int], Pending],
    clock: StepClock,
    *,
    warm_up: int,
    steps: int,
    reads_behind: bool,
    tell: Callable[[], None] = lambda: None,
) -> StepTimes:
    """Runs steps as a training does, and times those after the first ones.

    Args:
        train_step: function that runs the step of a number and marks ``clock`` after each part.
        clock: clock of the steps.
        warm_up: number of first steps, which compile, record and fill caches, and do not count.
        steps: number of steps that count.
        reads_behind: whether a step's numbers are read when the next has been started, as on GPUs.
        tell: function that is called after each step.
    """
    previous: Pending | None = None
    for number in range(warm_up + steps):
        clock.begin()
        pending: Pending | None = train_step(number)
        if reads_behind:
            pending, previous = previous, pending
        if pending is not None:
            _ = pending.metrics
        clock.mark(METRICS)
        tell()
    return StepTimes(clock.steps()[warm_up:])
