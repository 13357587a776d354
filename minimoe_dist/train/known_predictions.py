"""Asks a fine-tuned teacher once for its predictions of all samples that are trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self, TextIO

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.batches import MicroBatch
from ..data.packed import PackedBatch
from ..data.tasks.batches import batches_by_length, collate
from ..data.tasks.encoding import IGNORED, EncodedTask
from ..runtime import StopRequest, logger
from .agreement import decided_by_rank_0, on_any_rank
from .health import refuse_useless, teacher_records
from .out_of_memory import naming_batch
from .progress import Progress, TimedProgress
from .task_objective import TaskTargets, is_counted
from .teacher_signals import SignalFault, find_faults

_log = logger("finetune")
_LOOK_SECONDS = 2.0
_SUMMED = 16 << 20  # numbers of one collective
_LOOKED_AT = 64  # samples, before all of them
_LOOKED_AT_ONCE = 1 << 20  # rows


@dataclass(frozen=True)
class RecalledPredictions:
    """A batch's predictions; a :class:`..data.placing.Recalled`.

    Attributes:
        rows: float32 [N, C], in the order of the batch's samples and of their tokens.
    """

    rows: Tensor

    def laid_out(self, batch: MicroBatch | PackedBatch) -> Self:
        """Returns the same: what has no prediction has no row."""
        return self

    def tensors(self) -> list[Tensor]:
        """Returns what there is to move."""
        return [self.rows]

    def on_each(self, move: Callable[[Tensor], Tensor]) -> RecalledPredictions:
        """Returns the same with the rows replaced by ``move`` of them."""
        return RecalledPredictions(move(self.rows))

    def decode(self) -> TaskTargets:
        """Returns them as the objective has them."""
        return TaskTargets(self.rows)


@dataclass(frozen=True)
class KnownPredictions:
    """A teacher's predictions of a task's samples.

    Attributes:
        rows: float32 [R, C], a row a sample, or of tags a row a token that has one; C numbers of
            classes before the softmax, or one of a regression.
        starts: int64 [samples + 1], where each sample's rows begin.
        faults: what is wrong with the rows.
    """

    rows: Tensor
    starts: np.ndarray
    faults: Sequence[SignalFault]

    def recall(self, samples: np.ndarray) -> RecalledPredictions:
        """Returns the rows of samples, int64 [b], one behind the other."""
        return RecalledPredictions(self.rows[_places(self.starts, samples)])


@dataclass(frozen=True)
class PredictionFiller:
    """Asks a teacher for the predictions of samples.

    Attributes:
        teacher: gives a :class:`..models.task_heads.TaskOutput`; in evaluation mode, on `device`.
        path: its path, for messages.
        data: the samples.
        batch_size: samples of a pass.
        device: of this rank.
        stream: where progress goes; None: nowhere.
    """

    teacher: nn.Module
    path: str
    data: EncodedTask
    batch_size: int
    device: torch.device
    stream: TextIO | None

    def fill(self, stop: StopRequest) -> KnownPredictions | None:
        """Computes all predictions, each rank a share; a collective.

        Samples of like length go together, the same ones whatever the number of ranks, and the
        longest come first: what does not fit shows at once.

        Returns:
            The same on every rank; None where one was asked to stop.

        Raises:
            UserError: nothing can be learnt from the teacher, or memory does not suffice.
        """
        self._look_at_teacher()
        starts = _starts_of(self.data)
        rank, ranks = dist.get_rank(), dist.get_world_size()
        batches = list(batches_by_length(self.data, self.batch_size))
        rounds, looked = -(-len(batches) // ranks), time.monotonic()
        own = batches[rank::ranks]
        rows = torch.empty(0)
        with self._progress(rounds) as progress:
            for number in range(rounds):
                # In the last round some ranks may have no samples.
                samples = own[number] if number < len(own) else np.zeros(0, np.int64)
                found = self._predict(samples)
                if number == 0:
                    rows = self._table(int(starts[-1]), found.shape[1])
                rows[_places(starts, samples)] = found
                progress.advance({})
                progress.tell(number + 1, is_last=number == rounds - 1)
                if decided_by_rank_0(partial(_is_time, looked)):
                    looked = time.monotonic()
                    if on_any_rank(stop.requested, self.device):
                        _log.info("stopped: the next start asks the teacher from the beginning")
                        return None
        _sum_over_ranks(rows, self.device)
        parts = ({"predictions": part} for part in rows.split(_LOOKED_AT_ONCE))
        return KnownPredictions(rows, starts, find_faults(parts, self.device))

    def _look_at_teacher(self) -> None:
        """Refuses, before all samples are gone through, what no cell could learn from.

        Samples of all of the file are looked at: neighbours, or those of one length, may be alike.
        """
        count = len(self.data)
        spread = np.linspace(0, count - 1, min(count, _LOOKED_AT), dtype=np.int64)
        batches = np.split(spread, range(self.batch_size, len(spread), self.batch_size))
        found = torch.cat([self._predict(samples) for samples in batches])
        faults = find_faults([{"predictions": found}], self.device)
        refuse_useless(teacher_records(0, self.path, faults))

    def _table(self, rows: int, classes: int) -> Tensor:
        with naming_batch(
            f"the teacher's predictions of {len(self.data):,} samples, which each rank keeps",
            "give fewer texts, or start fewer ranks a node",
        ):
            return torch.zeros(rows, classes)

    def _progress(self, rounds: int) -> TimedProgress:
        return TimedProgress(Progress(self.stream, rounds, 0, "asking the", label="teacher"))

    @torch.no_grad()
    def _predict(self, samples: np.ndarray) -> Tensor:
        """Returns the rows of samples, [N, C], on the host."""
        micro = collate(self.data, samples)
        with naming_batch(
            f"{micro.input_ids.shape[0]} samples of {micro.input_ids.shape[1]} tokens, by the "
            "teacher",
            "lower eval_batch_size or max_length",
        ):
            logits = self.teacher(**micro.to(self.device).inputs()).logits.float().cpu()
        return logits[is_counted(micro)]


def _starts_of(data: EncodedTask) -> np.ndarray:
    """Counts where the predictions of each sample begin, int64 [samples + 1]."""
    counts = [1] * len(data)
    if data.task.kind == "tagging":
        counts = [int(np.count_nonzero(tags != IGNORED)) for tags in data.labels]
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _places(starts: np.ndarray, samples: np.ndarray) -> Tensor:
    """Returns the numbers of the rows of samples, int64 [N]."""
    ranges = [np.arange(starts[one], starts[one + 1]) for one in samples]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *ranges]))


def _is_time(looked: float) -> bool:
    return time.monotonic() - looked > _LOOK_SECONDS


def _sum_over_ranks(rows: Tensor, device: torch.device) -> None:
    """Adds up what each rank has a share of, in place: elsewhere it has zeros."""
    if dist.get_world_size() == 1:
        return
    for part in rows.flatten().split(_SUMMED):
        summed = part.to(device, copy=True)
        dist.all_reduce(summed)
        part.copy_(summed)
