"""Clocks: the host's, and a GPU's, whose stamps nobody waits for until they are read."""

import itertools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

_FEWEST_RUNS = 3


class Stamps(NamedTuple):
    """How moments are noted.

    Attributes:
        take: notes this moment; on a GPU, the moment at which it gets there.
        between: seconds from one to another.
    """

    take: Callable[[], Any]
    between: Callable[[Any, Any], float]


HOST = Stamps(time.perf_counter, lambda first, last: last - first)


def stamps_of(device: torch.device) -> Stamps:
    """Time stamps of what a device computes: events of the current stream on a GPU."""
    return Stamps(_event, _between_events) if device.type == "cuda" else HOST


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between_events(first: Any, last: Any) -> float:
    last.synchronize()
    return 1e-3 * float(first.elapsed_time(last))


class StepClock:
    """Seconds of the parts of steps.

    Args:
        stamps: how moments are noted.
    """

    def __init__(self, stamps: Stamps) -> None:
        self._stamps = stamps
        self._steps: list[list[tuple[str, Any]]] = []

    def begin(self) -> None:
        """A step starts."""
        self._steps.append([("", self._stamps.take())])

    def mark(self, part: str) -> None:
        """A part of the step has ended; the next one starts. One may come several times."""
        self._steps[-1].append((str(part), self._stamps.take()))

    def steps(self) -> list[dict[str, float]]:
        """The parts of each step: name -> seconds, in the order of their first ends."""
        return [self._read(marks) for marks in self._steps]

    def _read(self, marks: list[tuple[str, Any]]) -> dict[str, float]:
        seconds: dict[str, float] = {}
        for (_, before), (part, after) in itertools.pairwise(marks):
            seconds[part] = seconds.get(part, 0.0) + self._stamps.between(before, after)
        return seconds


def fastest(
    action: Callable[[], object], stamps: Stamps, seconds: float, at_once: int = 1
) -> float:
    """Seconds of the fastest run of an action, after one that warms up.

    Args:
        action: what is run.
        stamps: of where it runs.
        seconds: until when it is run again, three times at least.
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
