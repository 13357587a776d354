"""Passes that are recorded and played back: Python takes no part in them.

A recording reads and writes fixed addresses. So a batch is copied into a buffer that stays, the
teacher leaves its signals where the students' recordings read them, and a student's backward pass
adds its gradients to the flat tensors of its update. There is one set of recordings for each size
of batches.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..data.packed import PackedBatch
from ..runtime import logger
from .objectives import Batch
from .passes import EagerPasses, PassOutput, first_line
from .recorder import Recorder, TrainingPass
from .updates import FlatUpdate

_log = logger("train.captured")


class _Recordings(NamedTuple):
    """Of one size of batches; ``numbers`` are read by all of them."""

    numbers: Tensor
    teach: Callable[[], None]
    students: list[TrainingPass]


class CapturedPasses:
    """Plays recordings; records what it meets for the first time.

    Args:
        passes: what is recorded; its students' updates are flat.
        recorder: how.
    """

    packed = True
    warms_up = True

    def __init__(self, passes: EagerPasses, recorder: Recorder) -> None:
        self._passes = passes
        self._recorder = recorder
        self._sizes: dict[tuple[int, ...], _Recordings | None] = {}
        self._playing: _Recordings | None = None
        self._leaves: dict[int, PassOutput] = {}

    def teach(self, batch: Batch) -> tuple[Batch, Any]:
        assert isinstance(batch, PackedBatch)
        size = (batch.samples, batch.rows, batch.predictions, batch.longest)
        if size not in self._sizes:
            self._sizes[size] = self._try_to_record(batch)
        self._playing = self._sizes[size]
        if self._playing is None:
            return self._passes.teach(batch)
        self._playing.numbers.copy_(batch.numbers, non_blocking=True)
        self._playing.teach()
        return batch, None

    def forward(self, index: int, batch: Batch, given: Any) -> PassOutput:
        if self._playing is None:
            return self._passes.forward(index, batch, given)
        recording = self._playing.students[index]
        recording.forward()
        # Copies, since what is played next may overwrite them; and leaves, from which the loss's
        # own few operators go back to what the recorded backward pass starts from.
        parts, probability_sums, counts = (one.clone() for one in recording.made)
        leaves = PassOutput(parts.requires_grad_(), probability_sums.requires_grad_(), counts)
        self._leaves[index] = leaves
        return leaves

    def backward(self, index: int, loss: Tensor) -> None:
        if self._playing is None:
            self._passes.backward(index, loss)
            return
        leaves, recording = self._leaves.pop(index), self._playing.students[index]
        update = self._passes.students[index].update
        assert isinstance(update, FlatUpdate)
        wanted = (leaves.parts, leaves.probability_sums)
        found = torch.autograd.grad(update.scaled(loss), wanted, allow_unused=True)
        upstream = [one for one in found if one is not None]
        for target, value in zip(recording.upstream, upstream, strict=True):
            target.copy_(value)
        recording.backward()

    def _try_to_record(self, batch: PackedBatch) -> _Recordings | None:
        try:
            return self._record(batch)
        except Exception as error:
            _log.warning("batches of %d rows are not recorded: %s", batch.rows, first_line(error))
            return None

    def _recorded_teacher(self, batch: PackedBatch) -> tuple[Callable[[], None], Any]:
        """What teaches a batch that stays, and where its signals then are."""
        if self._passes.objective.teaches_packed:
            return self._recorder.inference(lambda: self._passes.teach(batch)[1])
        # Other ranks take part in its pass, which is no matter for a recording.
        given = tree_map(torch.clone, self._passes.teach(batch)[1])

        def teach() -> None:
            made = tree_leaves(self._passes.teach(batch)[1])
            for target, value in zip(tree_leaves(given), made, strict=True):
                target.copy_(value)

        return teach, given

    def _record(self, batch: PackedBatch) -> _Recordings:
        numbers = batch.numbers.clone()
        own = batch.with_numbers(numbers)
        teach, given = self._recorded_teacher(own)
        students = []
        for index, student in enumerate(self._passes.students):
            students.append(
                self._recorder.training(
                    lambda index=index: self._passes.forward(index, own, given),  # type: ignore[misc]
                    [one for one in student.module.parameters() if one.requires_grad],
                )
            )
        return _Recordings(numbers, teach, students)
