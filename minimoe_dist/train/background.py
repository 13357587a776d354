"""Writes checkpoints in a thread of its own, while training goes on."""

import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ..checkpoints.writing import CheckpointWriter, Ranks, Snapshot
from ..runtime import logger

_RETRY_SECONDS = (0.5, 2.0)  # before further attempts; a stop waits for them too
_log = logger("train.background")


def saving_ranks(timeout_seconds: float) -> Ranks:
    """Connects all ranks once more, for the threads that write checkpoints; a collective.

    Two threads must not share a process group: which of their collectives comes first would differ
    from rank to rank.

    Args:
        timeout_seconds: how long a rank may wait for the others' writing.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size == 1:
        return Ranks(0, 1, lambda said: [said])
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))

    def exchange(said: Any) -> list[Any]:
        heard: list[Any] = [None] * world_size
        dist.all_gather_object(heard, said, group=group)
        return heard

    return Ranks(rank, world_size, exchange)


@dataclass
class SavingTimes:
    """What the saves of this process have cost so far.

    Attributes:
        saves: checkpoints that were begun.
        waited_seconds: for which steps stood still: copies, and waits for the save before.
        ending_seconds: for which an end or a stop waited for the last one.
        writing_seconds: from the end of a copy to the checkpoint's name, beside the work.
    """

    saves: int = 0
    waited_seconds: float = 0.0
    ending_seconds: float = 0.0
    writing_seconds: float = 0.0


class BackgroundWriter:
    """Writes one snapshot at a time; all methods are for the main thread.

    An error of a disk is told at once and the save tried again. All ranks see the same errors, as
    each tells the others its own.

    Args:
        writer: of the run's checkpoints.
        times: what writing takes is added to it.
        retry_seconds: waits before further attempts.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        times: SavingTimes,
        retry_seconds: tuple[float, ...] = _RETRY_SECONDS,
    ) -> None:
        self._writer = writer
        self._times = times
        self._retry_seconds = retry_seconds
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._saved_step = 0

    @property
    def saved_step(self) -> int:
        """The last step whose checkpoint has its name; 0 where none has."""
        return self._saved_step

    @property
    def failure(self) -> BaseException | None:
        """What made the save fail that was not waited for yet."""
        return self._failure

    def start(self, snapshot: Snapshot, goes_on: bool) -> None:
        """Begins to write a snapshot; :meth:`wait` was called since the one before.

        Args:
            snapshot: not to be overwritten until then.
            goes_on: whether the work does where the snapshot cannot be written, which is then told.
        """
        assert self._thread is None, "the save before was not waited for"
        # A daemon: where the main thread ends by an error of a peer, nobody waits for that peer.
        self._thread = threading.Thread(
            target=self._write, args=(snapshot, goes_on), name="checkpoint-writer", daemon=True
        )
        self._thread.start()

    def wait(self) -> BaseException | None:
        """Waits for the save under way; returns what made it fail, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        return failure

    def _write(self, snapshot: Snapshot, goes_on: bool) -> None:
        started, step = time.perf_counter(), snapshot.progress["step"]
        try:
            self._attempt(snapshot, step)
            self._saved_step = step
        except OSError as error:
            self._failure = error
            if goes_on and self._writer.tells:
                _log.error("step %d was not saved (%s); the run goes on", step, error)
        except BaseException as error:
            self._failure = error
        self._times.writing_seconds += time.perf_counter() - started

    def _attempt(self, snapshot: Snapshot, step: int) -> None:
        for seconds in self._retry_seconds:
            try:
                self._writer.write(snapshot)
                return
            except OSError as error:
                if self._writer.tells:
                    _log.warning("step %d is not saved yet (%s): trying again", step, error)
            time.sleep(seconds)
        self._writer.write(snapshot)
