"""Clocks of the host and of a GPU, whose stamps are not waited for until they are read."""

import itertools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

_FEWEST_RUNS = 3


class Stamps(NamedTuple):
    """The functions of a clock.

    Attributes:
        take: function that notes this moment; on a GPU, the moment when it gets there.
        between: function that returns the seconds from one stamp to another.
    """

    take: Callable[[], Any]
    between: Callable[[Any, Any], float]


HOST = Stamps(time.perf_counter, lambda first, last: last - first)


def stamps_of(device: torch.device) -> Stamps:
    """Returns the clock of what a device computes: events of the current stream on a GPU."""
    return Stamps(_event, _between_events) if device.type == "cuda" else HOST


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between_events(first: Any, last: Any) -> float:
    last.synchronize()
    return 1e-3 * float(first.elapsed_time(last))


class StepClock:
    """Measures the seconds of the parts of steps.

    Args:
        stamps: clock that notes moments.
    """

    def __init__(self, stamps: Stamps) -> None:
        self._stamps = stamps
        self._steps: list[list[tuple[str, Any]]] = []

    def begin(self) -> None:
        """Starts a step."""
        self._steps.append([("", self._stamps.take())])

    def mark(self, part: str) -> None:
        """Ends a part of the step, which may have several pieces, and starts the next one."""
        self._steps[-1].append((str(part), self._stamps.take()))

    def steps(self) -> list[dict[str, float]]:
        """Returns the seconds of each step by part, in the order in which parts first ended."""
        return [self._read(marks) for marks in self._steps]

    def _read(self, marks: list[tuple[str, Any]]) -> dict[str, float]:
        seconds: dict[str, float] = {}
        for (_, before), (part, after) in itertools.pairwise(marks):
            seconds[part] = seconds.get(part, 0.0) + self._stamps.between(before, after)
        return seconds


def fastest(
    action: Callable[[], object], stamps: Stamps, seconds: float, at_once: int = 1
) -> float:
    """Returns the seconds of an action's fastest run, after one that warms up.

    Args:
        action: function to run.
        stamps: clock of the device that it runs on.
        seconds: time for which it is repeated, three times at least.
        at_once: runs between two stamps, so that a GPU does not wait for a host that reads them.
    """
    action()
    best, runs, end = math.inf, 0, time.perf_counter() + seconds
    while runs < _FEWEST_RUNS or time.perf_counter() < end:
        first = stamps.take()
        for _ in range(at_once):
            action()
        best = min(best, stamps.between(first, stamps.take()) / at_once)
        runs += 1
    return best
