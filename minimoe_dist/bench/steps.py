"""Steps, and how long their parts take."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .clocks import StepClock

METRICS = "metrics"  # behind a step's last part: what it found out, on its way to the host


class Pending(Protocol):
    """Of a step: reading its numbers waits for it."""

    @property
    def metrics(self) -> object: ...


@dataclass(frozen=True)
class StepTimes:
    """Of some steps.

    Attributes:
        steps: of each, part -> seconds.
    """

    steps: list[dict[str, float]]

    @property
    def fastest(self) -> dict[str, float]:
        """The parts of the fastest step, which other work on the machine disturbed least."""
        return min(self.steps, key=lambda parts: sum(parts.values()))

    @property
    def seconds(self) -> float:
        """Of the fastest step."""
        return sum(self.fastest.values())

    @property
    def median_seconds(self) -> float:
        """Of all steps."""
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
    """Runs steps as a training does, and times those behind the first ones.

    Args:
        train_step: of a number; it marks ``clock`` behind each of its parts.
        clock: that runs.
        warm_up: steps that are not counted: they compile, record and fill caches.
        steps: that are.
        reads_behind: whether a step's numbers are read when the next has been started, as on GPUs.
        tell: called behind each step.
    """
    before: Pending | None = None
    for number in range(warm_up + steps):
        clock.begin()
        pending: Pending | None = train_step(number)
        if reads_behind:
            pending, before = before, pending
        if pending is not None:
            _ = pending.metrics
        clock.mark(METRICS)
        tell()
    return StepTimes(clock.steps()[warm_up:])
