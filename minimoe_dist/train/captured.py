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
from ..data.placing import Recalled
from ..runtime import logger
from .objectives import Batch
from .passes import EagerPasses, PassOutput, error_line
from .recorder import Recorder, TrainingPass
from .updates import FlatUpdate

_log = logger("train.captured")


class _Recordings(NamedTuple):
    """The recordings for one size of batches; all of them read ``numbers``, int32, in place."""

    numbers: Tensor
    teach: Callable[[Recalled | None], None]
    students: list[TrainingPass]


class CapturedPasses:
    """Plays recordings; records what it meets for the first time.

    Args:
        passes: what is recorded; its students' updates are flat.
        recorder: makes and plays the recordings.
    """

    packed = True
    warms_up = True

    def __init__(self, passes: EagerPasses, recorder: Recorder) -> None:
        self._passes = passes
        self._recorder = recorder
        self._sizes: dict[tuple[int, ...], _Recordings | None] = {}
        self._playing: _Recordings | None = None
        self._leaves: dict[int, PassOutput] = {}

    def teach(self, batch: Batch, recalled: Recalled | None = None) -> tuple[Batch, Any]:
        assert isinstance(batch, PackedBatch)
        size = (batch.samples, batch.rows, batch.predictions, batch.longest)
        if size not in self._sizes:
            self._sizes[size] = self._try_to_record(batch, recalled)
        self._playing = self._sizes[size]
        if self._playing is None:
            return self._passes.teach(batch, recalled)
        self._playing.numbers.copy_(batch.numbers, non_blocking=True)
        self._playing.teach(recalled)
        return batch, None

    def forward(self, index: int, batch: Batch, targets: Any) -> PassOutput:
        if self._playing is None:
            return self._passes.forward(index, batch, targets)
        recording = self._playing.students[index]
        recording.forward()
        # Copies, since what is played next may overwrite them; and leaves, from which the loss's
        # own few operators go back to what the recorded backward pass starts from.
        parts, probability_sums, counts = (output.clone() for output in recording.outputs)
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
        outputs = (leaves.parts, leaves.probability_sums)
        gradients = torch.autograd.grad(update.scaled(loss), outputs, allow_unused=True)
        upstream = [gradient for gradient in gradients if gradient is not None]
        for buffer, gradient in zip(recording.upstream, upstream, strict=True):
            buffer.copy_(gradient)
        recording.backward()

    def _try_to_record(self, batch: PackedBatch, recalled: Recalled | None) -> _Recordings | None:
        try:
            return self._record(batch, recalled)
        except Exception as error:
            _log.warning("batches of %d rows are not recorded: %s", batch.rows, error_line(error))
            return None

    def _recorded_teacher(
        self, batch: PackedBatch, recalled: Recalled | None
    ) -> tuple[Callable[[Recalled | None], None], Any]:
        """Returns what teaches a batch that stays, and the targets that it writes."""
        if recalled is None and self._passes.objective.teaches_packed:
            play, targets = self._recorder.inference(lambda: self._passes.teach(batch)[1])
            return lambda _: play(), targets
        # Other ranks take part in its pass, or its signals come from a cache: neither is a matter
        # for a recording.
        targets = tree_map(torch.clone, self._passes.teach(batch, recalled)[1])

        def teach(recalled: Recalled | None) -> None:
            new_targets = tree_leaves(self._passes.teach(batch, recalled)[1])
            for buffer, target in zip(tree_leaves(targets), new_targets, strict=True):
                buffer.copy_(target)

        return teach, targets

    def _record(self, batch: PackedBatch, recalled: Recalled | None) -> _Recordings:
        numbers = batch.numbers.clone()
        static_batch = batch.with_numbers(numbers)
        teach, targets = self._recorded_teacher(static_batch, recalled)
        students = []
        for index, student in enumerate(self._passes.students):
            students.append(
                self._recorder.training(
                    lambda index=index: self._passes.forward(index, static_batch, targets),  # type: ignore[misc]
                    [p for p in student.module.parameters() if p.requires_grad],
                )
            )
        return _Recordings(numbers, teach, students)
