"""The passes of a step: the teacher's, and each student's forward and backward.

Three ways to run them, each on top of the one before:

* :class:`EagerPasses`: operator by operator. On CPUs, and wherever the others do not apply.
* :class:`CompiledPasses`: ``torch.compile`` makes one graph of a student's pass with its objective,
  and one of the teacher's; hashes of dropout are then part of what uses them.
* :class:`.captured.CapturedPasses`: these are recorded as CUDA graphs, one for each size of
  batches, and played back: Python then takes no part in a pass.

A pass that cannot be compiled or recorded falls back, with one line in the log that says why.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..data.packed import PackedBatch
from ..data.placing import Recalled
from ..runtime import logger
from .engine import StudentEngine
from .objectives import Batch, Objective, inputs_of, measure

_log = logger("train.passes")


class PassOutput(NamedTuple):
    """The output of a student's pass over a micro-batch, on the device.

    Attributes:
        parts: float32 [P], sums of the objective's parts, the mean over sub-models.
        probability_sums: float32 [K], those of all routers side by side.
        token_counts: float32 [K], this rank's tokens per expert; without a gradient.
    """

    parts: Tensor
    probability_sums: Tensor
    token_counts: Tensor


class Passes(Protocol):
    """A way to run the passes of a step.

    Attributes:
        packed: whether batches come without their padding.
        warms_up: whether the first passes take much longer than the others.
    """

    packed: bool
    warms_up: bool

    def teach(self, batch: Batch, recalled: Recalled | None = None) -> tuple[Batch, Any]:
        """Runs the teacher's pass, or takes its signals as they were recalled for the batch.

        Returns:
            What to hand to the students' passes: the batch, and the teacher's targets for it.
        """

    def forward(self, index: int, batch: Batch, targets: Any) -> PassOutput:
        """Runs a student's pass in training, on what :meth:`teach` returned."""

    def backward(self, index: int, loss: Tensor) -> None:
        """Adds the gradients of a loss made of the last :meth:`forward` of that student."""


class EagerPasses:
    """Passes that run operator by operator.

    Args:
        students: their modules are in training mode.
        objective: what all of them are trained for.
        seed: of dropout and router noise.
        packed: whether batches come without their padding.
    """

    warms_up = False

    def __init__(
        self,
        students: Sequence[StudentEngine],
        objective: Objective,
        seed: int,
        packed: bool = False,
    ) -> None:
        self.students = list(students)
        self.objective = objective
        self._seed = seed
        self.packed = packed

    def teach(self, batch: Batch, recalled: Recalled | None = None) -> tuple[Batch, Any]:
        return batch, self.objective.teach(batch) if recalled is None else recalled.decode()

    def forward(self, index: int, batch: Batch, targets: Any) -> PassOutput:
        student = self.students[index]
        return self._measure(student, student, batch, targets)

    def backward(self, index: int, loss: Tensor) -> None:
        self.students[index].backward(loss)

    def _measure(
        self, student: StudentEngine, run: Callable[..., Any], batch: Batch, targets: Any
    ) -> PassOutput:
        inputs = inputs_of(batch) | {"sample_ids": batch.sample_ids, "noise_seed": self._seed}
        sub_models = student.config.sub_models
        measured = measure(self.objective, run, sub_models, inputs, batch, targets)
        empty = measured.sums.new_zeros(0)
        return PassOutput(
            measured.sums.mean(0),
            torch.cat([router.probability_sum for router in measured.routers] or [empty]),
            torch.cat([router.token_count for router in measured.routers] or [empty]),
        )


class CompiledPasses(EagerPasses):
    """Compiled passes of packed batches; what does not compile runs eagerly from then on."""

    warms_up = True

    def __init__(self, students: Sequence[StudentEngine], objective: Objective, seed: int) -> None:
        super().__init__(students, objective, seed, packed=True)
        self._teach: Callable[..., Any] = objective.teach
        if objective.teaches_packed:
            self._teach = _Compiled("the teacher's pass", objective.teach)
        self._runs = [
            _Compiled(f"{student.name}'s pass", self._pass_of(student)) for student in students
        ]

    def teach(self, batch: Batch, recalled: Recalled | None = None) -> tuple[Batch, Any]:
        with torch.no_grad():
            return batch, self._teach(batch) if recalled is None else recalled.decode()

    def forward(self, index: int, batch: Batch, targets: Any) -> PassOutput:
        return self._runs[index](batch, targets)

    def _pass_of(self, student: StudentEngine) -> Callable[[Batch, Any], PassOutput]:
        def run(batch: Batch, targets: Any) -> PassOutput:
            # Not through the module's call: hooks on it are not for compilers.
            return self._measure(student, student.module.forward, batch, targets)

        return run


class _Compiled:
    """A function of a packed batch, compiled at its first call."""

    def __init__(self, label: str, function: Callable[..., Any]) -> None:
        self._label = label
        self._eager = function
        self._compiled: Callable[..., Any] | None = _compile(function)
        self._calls = 0

    def __call__(self, batch: Batch, *arguments: Any) -> Any:
        assert isinstance(batch, PackedBatch)
        if self._compiled is None:
            return self._eager(batch, *arguments)
        started = time.perf_counter()
        try:
            result = self._compiled(batch, *arguments)
        except Exception as error:
            _log.warning("%s is not compiled: %s", self._label, error_line(error))
            self._compiled = None
            return self._eager(batch, *arguments)
        self._calls += 1
        if self._calls == 1:
            _log.info("%s compiled in %.0f s", self._label, time.perf_counter() - started)
        return result


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # Its own loggers tell of every recompilation and missed fusion; a run has one line of ours.
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    return torch.compile(function, fullgraph=True)


def error_line(error: BaseException) -> str:
    """Returns an error's type and the first line of its text, for the log."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
