"""Reads the batches of every step, in an order that does not depend on the number of ranks.

A run is one endless row of samples. Position p of it belongs to epoch e = p // N (N samples an
epoch) and is sample permutation_e(p mod N). A step takes the next G positions, G = micro-batch
size × accumulation steps × ranks, and its micro-batches are consecutive runs of them that the
ranks share out. So the number of consumed samples says everything: it is the loader's whole state,
and a run that goes on with other ranks reads the same samples in the same order.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from ..errors import UserError
from .batches import Collate, MicroBatch
from .keyed import as_int64, feistel_bits
from .pairs import Pairs
from .placing import PlacedBatch, Placer
from .signal_rows import SignalRows

_STOP_POLL_SECONDS = 0.1
# A reader computes without the interpreter's lock, but may wait for it after each computation, up
# to five milliseconds beside Python that never pauses; meanwhile the other one computes.
_MOST_READERS = 2


@dataclass
class StepBatch:
    """Holds what one rank reads in one step.

    Attributes:
        micro_batches: one for each accumulation step; on their way if the loader places them.
        first_position: the step's first global position (of all ranks').
    """

    micro_batches: Sequence[MicroBatch | PlacedBatch]
    first_position: int


class Recall(Protocol):
    """Reads a teacher's signals for a batch instead of computing them."""

    def __call__(self, epochs: np.ndarray, numbers: np.ndarray, micro: MicroBatch) -> SignalRows:
        """Returns the rows of the tokens of pairs that :meth:`Pairs.draw` gave; int64 [b] each."""


@dataclass(frozen=True)
class _Plan:
    """Reads steps; holds no state, so that a thread may own it."""

    pairs: Pairs
    collate: Collate
    micro_batch_size: int
    accumulation_steps: int
    rank: int
    world_size: int
    seed: int
    place: Placer | None
    recall: Recall | None

    @property
    def samples_per_step(self) -> int:
        return self.micro_batch_size * self.accumulation_steps * self.world_size

    def read_step(self, first_position: int) -> StepBatch:
        global_micro_batch = self.micro_batch_size * self.world_size
        micro_batches: list[MicroBatch | PlacedBatch] = []
        for step in range(self.accumulation_steps):
            start = first_position + step * global_micro_batch + self.rank * self.micro_batch_size
            micro_batches.append(self._read(start))
        return StepBatch(micro_batches, first_position)

    def _read(self, start: int) -> MicroBatch | PlacedBatch:
        from .compiled.order import find_samples

        positions = np.arange(start, start + self.micro_batch_size, dtype=np.int64)
        epochs, numbers = np.empty_like(positions), np.empty_like(positions)
        size = self.pairs.num_samples
        find_samples(start, size, feistel_bits(size), as_int64(self.seed), epochs, numbers)
        micro = self.collate(self.pairs.draw(epochs, numbers), positions)
        if self.place is None:
            return micro
        recalled = self.recall(epochs, numbers, micro) if self.recall is not None else None
        return self.place(micro, recalled)


class _Reader:
    """Reads every ``turns``-th step ahead in a thread, until it is told to stop."""

    def __init__(
        self, plan: _Plan, position: int, turns: int, depth: int, stop: threading.Event
    ) -> None:
        self._plan = plan
        self._position = position
        self._turns = turns
        self._stop = stop
        self._ready: queue.Queue[StepBatch | BaseException] = queue.Queue(depth)
        self._thread = threading.Thread(target=self._run, name="pair-loader", daemon=True)
        self._thread.start()

    def take(self) -> StepBatch | BaseException:
        """Waits for its next step, or what kept it from reading that.

        Raises:
            StopIteration: it was told to stop.
        """
        while True:
            try:
                return self._ready.get(timeout=_STOP_POLL_SECONDS)
            except queue.Empty:
                # `close` may come from a signal handler while this waits.
                if self._stop.is_set():
                    raise StopIteration from None

    def discard(self) -> None:
        """Forgets what was read ahead."""
        # Room in the queue wakes a thread that waits for it at once.
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()

    def join(self) -> None:
        """Waits for the thread's end, after it was told to stop."""
        self._thread.join()
        self.discard()

    def _run(self) -> None:
        while not self._stop.is_set():
            step: StepBatch | BaseException
            try:
                step = self._plan.read_step(self._position)
            except BaseException as error:
                step = error
            self._put(step)
            if isinstance(step, BaseException):
                return
            self._position += self._turns * self._plan.samples_per_step

    def _put(self, step: StepBatch | BaseException) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(step, timeout=_STOP_POLL_SECONDS)
                return


class PairLoader:
    """Iterates without end over a rank's steps, read ahead by threads that take turns.

    The threads start at the first ``next`` and end with ``close`` (or the ``with`` block). An
    error in one is raised by the ``next`` that would have returned the step.

    Args:
        pairs: where samples come from.
        collate: makes micro-batches of them.
        micro_batch_size: samples of a micro-batch on this rank.
        accumulation_steps: micro-batches of a step.
        rank: this rank, in [0, world_size).
        world_size: number of ranks that share a step's samples.
        seed: picks the order of each epoch.
        consumed_samples: global position to go on from; any integer ≥ 0.
        prefetch_steps: steps that are read ahead; 0 reads in the caller's thread.
        place: starts every micro-batch's way to the device, in the threads that read.
        recall: reads the teacher's signals there too, for :attr:`.PlacedBatch.recalled`.

    Raises:
        UserError: a size that is not positive or a number that is negative.
    """

    def __init__(
        self,
        pairs: Pairs,
        collate: Collate,
        *,
        micro_batch_size: int,
        accumulation_steps: int,
        rank: int,
        world_size: int,
        seed: int,
        consumed_samples: int = 0,
        prefetch_steps: int = 2,
        place: Placer | None = None,
        recall: Recall | None = None,
    ) -> None:
        _require(micro_batch_size, 1, "training.per_device_train_batch_size")
        _require(accumulation_steps, 1, "training.num_grad_accum_steps")
        _require(consumed_samples, 0, "consumed samples")
        _require(prefetch_steps, 0, "data.prefetch_steps")
        assert 0 <= rank < world_size
        self._plan = _Plan(
            pairs,
            collate,
            micro_batch_size,
            accumulation_steps,
            rank,
            world_size,
            seed,
            place,
            recall,
        )
        self._consumed_samples = consumed_samples
        self._prefetch_steps = prefetch_steps
        self._stop = threading.Event()
        self._readers: list[_Reader] = []
        self._turn = 0

    @property
    def consumed_samples(self) -> int:
        """The number of samples of all ranks in the steps handed out: the state to resume from."""
        return self._consumed_samples

    @property
    def samples_per_step(self) -> int:
        """The number of samples of a step, all ranks together."""
        return self._plan.samples_per_step

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StepBatch:
        if self._stop.is_set():
            raise StopIteration
        if self._prefetch_steps == 0:
            step = self._plan.read_step(self._consumed_samples)
        else:
            step = self._next_read_ahead()
        assert step.first_position == self._consumed_samples
        self._consumed_samples += self.samples_per_step
        return step

    def _next_read_ahead(self) -> StepBatch:
        if not self._readers:
            self._start_readers()
        step = self._readers[self._turn].take()
        self._turn = (self._turn + 1) % len(self._readers)
        if isinstance(step, BaseException):
            self.close()
            raise step
        return step

    def _start_readers(self) -> None:
        count = min(_MOST_READERS, self._prefetch_steps)
        for turn in range(count):
            # Together they hold prefetch_steps.
            depth = (self._prefetch_steps + count - 1 - turn) // count
            position = self._consumed_samples + turn * self.samples_per_step
            self._readers.append(_Reader(self._plan, position, count, depth, self._stop))

    def close(self) -> None:
        """Ends the threads and waits for them; gives nothing more. May be called again."""
        self._stop.set()
        for reader in self._readers:
            reader.discard()
        for reader in self._readers:
            reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A loader that was dropped without `close` must not leave its threads polling for ever.
        if hasattr(self, "_stop"):
            self._stop.set()


def heldout_batches(
    pairs: Pairs,
    collate: Collate,
    *,
    count: int,
    batch_size: int,
    rank: int,
    world_size: int,
) -> Iterator[MicroBatch]:
    """Reads a rank's share of the first ``count`` samples of epoch 0, each on one rank once.

    Every rank gets the same number of batches, so that collectives inside a forward pass meet;
    sizes differ by at most one sample. With fewer samples than ranks × batches some batch has no
    sample ([0, 8] tensors).

    Args:
        pairs: where samples come from.
        collate: makes batches of them.
        count: samples wanted; all there are if it exceeds ``pairs.num_samples``.
        batch_size: the most samples of a batch.
        rank: this rank, in [0, world_size).
        world_size: number of ranks that share the samples.

    Raises:
        UserError: ``count`` or ``batch_size`` not positive.
    """
    _require(count, 1, "training.eval_sequences")
    _require(batch_size, 1, "training.per_device_eval_batch_size")
    assert 0 <= rank < world_size
    count = min(count, pairs.num_samples)
    cells = -(-count // (batch_size * world_size)) * world_size

    def read(cell: int) -> MicroBatch:
        positions = np.arange(count * cell // cells, count * (cell + 1) // cells, dtype=np.int64)
        return collate(pairs.draw(np.zeros_like(positions), positions), positions)

    return map(read, range(rank, cells, world_size))


def _require(value: int, least: int, option: str) -> None:
    if value < least:
        raise UserError(f"{option} is {value}; give an integer of at least {least}")
