"""Takes a step's numbers from the device to the host.

All of it is one row of float64 that is copied to the host behind the step's work. Reading waits
for that copy; a loop that reads a step's numbers after it has started the next one waits for
nothing that the device would not have done anyway.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .updates import StepResult


@dataclass(frozen=True)
class StudentMetrics:
    """A student's numbers of one step, over all ranks.

    Attributes:
        loss: mean over the step, with the balance.
        parts: the objective's, means over the step.
        balance: of the experts.
        gradient_norm: before clipping.
        applied: False where a gradient was not finite and the update was left out.
        tokens_per_expert: by block.
        searches: whether float16's loss scale can still fall, so that a step that was left out is
            part of the search for it.
    """

    loss: float
    parts: dict[str, float]
    balance: float
    gradient_norm: float
    applied: bool
    tokens_per_expert: list[list[float]]
    searches: bool = False


@dataclass(frozen=True)
class StepMetrics:
    """The numbers of a step, the same on every rank."""

    learning_rate: float
    sequences: int
    tokens: int
    stop_requested: bool
    students: dict[str, StudentMetrics]

    @property
    def problem(self) -> str | None:
        """The student whose update was left out, other than by float16's search for a scale."""
        for name, student in self.students.items():
            if not math.isfinite(student.loss) or not (student.applied or student.searches):
                return f"{name}: loss {student.loss}: update left out"
        return None

    @property
    def unchanged(self) -> frozenset[str]:
        """The students whose update was left out, for whatever reason."""
        return frozenset(name for name, student in self.students.items() if not student.applied)


class StudentRow(NamedTuple):
    """A student's numbers on the device: scalars, the parts' means, and counts of each block."""

    loss: Tensor
    parts: Tensor
    balance: Tensor
    result: StepResult
    counts: Sequence[Tensor]


class HostCopy:
    """A tensor on its way to the host; only who reads it waits.

    Args:
        values: on any device; must not change any more.
    """

    def __init__(self, values: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @property
    def values(self) -> Tensor:
        """The tensor on the host, once it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values


class PendingMetrics:
    """A step's numbers; its attributes are :class:`StepMetrics`', and wait at first use.

    Args:
        learning_rate: of the step.
        parts: names of the objective's.
        names: of the students.
        totals: float64 [3]: tokens, sequences and whether a rank was asked to stop.
        rows: of each student.
    """

    def __init__(
        self,
        learning_rate: float,
        parts: Sequence[str],
        names: Sequence[str],
        totals: Tensor,
        rows: Sequence[StudentRow],
    ) -> None:
        self.learning_rate = learning_rate
        self._parts, self._names = parts, names
        self._blocks = [[len(count) for count in row.counts] for row in rows]
        self._copy = HostCopy(torch.cat([totals, *(_flat(row, totals.device) for row in rows)]))

    @cached_property
    def metrics(self) -> StepMetrics:
        """The step's numbers, once they have arrived."""
        numbers = iter(self._copy.values.tolist())
        tokens, sequences, stop = (next(numbers) for _ in range(3))
        students = {
            name: self._student(numbers, blocks)
            for name, blocks in zip(self._names, self._blocks, strict=True)
        }
        return StepMetrics(self.learning_rate, int(sequences), int(tokens), stop > 0, students)

    @property
    def sequences(self) -> int:
        """The number of sequences of all ranks."""
        return self.metrics.sequences

    @property
    def tokens(self) -> int:
        """The number of tokens of all ranks, without padding."""
        return self.metrics.tokens

    @property
    def stop_requested(self) -> bool:
        """Whether a rank was asked to stop."""
        return self.metrics.stop_requested

    @property
    def problem(self) -> str | None:
        """See :attr:`StepMetrics.problem`."""
        return self.metrics.problem

    @property
    def unchanged(self) -> frozenset[str]:
        """See :attr:`StepMetrics.unchanged`."""
        return self.metrics.unchanged

    @property
    def students(self) -> dict[str, StudentMetrics]:
        """The students' numbers, by name."""
        return self.metrics.students

    def _student(self, numbers: Iterator[float], blocks: Sequence[int]) -> StudentMetrics:
        loss, balance, norm, applied, searches = (next(numbers) for _ in range(5))
        return StudentMetrics(
            loss=loss,
            parts={name: next(numbers) for name in self._parts},
            balance=balance,
            gradient_norm=norm,
            applied=applied > 0,
            tokens_per_expert=[[next(numbers) for _ in range(size)] for size in blocks],
            searches=searches > 0,
        )


def _flat(row: StudentRow, device: torch.device) -> Tensor:
    result = row.result
    scalars = (row.loss, row.balance, result.gradient_norm, result.applied, result.searches)
    head = torch.stack([value.to(device, torch.float64) for value in scalars])
    return torch.cat([head, row.parts.double(), *(count.double() for count in row.counts)])


def to_device(numbers: Sequence[float], device: torch.device) -> Tensor:
    """Copies numbers to a device as float64, without waiting for it."""
    on_host = torch.tensor(numbers, dtype=torch.float64, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)
