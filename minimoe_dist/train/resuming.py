"""Saves work, and goes on from what was saved: one way for all that goes step by step."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from .. import __version__
from ..checkpoints.run import (
    TrainingState,
    load_checkpoint,
    newest_whole_checkpoint,
    read_progress,
    read_tensors,
    set_aside_checkpoints,
    set_aside_newest_checkpoint,
)
from ..checkpoints.writing import CheckpointWriter, Ranks, SnapshotMemory
from ..config.changes import changed_options, refusal_of
from ..errors import UserError
from ..runtime import logger
from .agreement import decided_by_rank_0
from .background import BackgroundWriter, SavingTimes

_log = logger("train.resuming")


class Resumable(Protocol):
    """Work that can be saved and go on, bit for bit; every method is a collective."""

    @property
    def engines(self) -> Sequence[TrainingState]:
        """The engines that are trained; their states are saved and restored."""

    def progress(self) -> dict[str, Any]:
        """Returns JSON of all else that is no tensor, the same on every rank; without the step."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Returns on rank 0 all else that is made of tensors, on CPU; others' do not count."""

    def resume(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restores on every rank what :meth:`progress` and :meth:`tensors` returned."""


class Checkpoints:
    """A folder of checkpoints of one piece of work; methods are collectives.

    A save copies the state, which is then written while the work goes on. The next save, a stop and
    the end wait until it is on the disk.

    Args:
        folder: ``checkpoints`` of the run.
        facts: JSON of what must not change under the work: options, corpora.
        ranks: the processes, on connections of their own.
        keep: how many checkpoints stay.
        ends_at_failed_save: whether a checkpoint that cannot be written ends the work.
        begins_anew: move earlier checkpoints aside instead of going on.
        allow_changed_options: whether to go on although facts changed; None where nobody can say
            so.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        ranks: Ranks,
        *,
        keep: int = 2,
        ends_at_failed_save: bool = False,
        begins_anew: bool = False,
        allow_changed_options: bool | None = None,
    ) -> None:
        self._folder = folder
        self._facts = facts
        self._ends_at_failed_save = ends_at_failed_save
        self._begins_anew = begins_anew
        self._allow_changed_options = allow_changed_options

        self.times = SavingTimes()
        self._memory = SnapshotMemory()
        self._writer = BackgroundWriter(CheckpointWriter(folder, ranks, keep), self.times)
        self._resumed_step = 0

    def save(self, work: Resumable, steps_done: int, goes_on: bool = True) -> None:
        """Copies the state behind a step, and begins to write it.

        Args:
            work: what is saved.
            steps_done: by the work.
            goes_on: whether the work does, where the state cannot be written.

        Raises:
            OSError: the state before could not be written, and that ends the work.
        """
        started = time.perf_counter()
        self._settle()
        progress = {
            **work.progress(),
            "step": steps_done,
            "facts": self._facts,
            "version": __version__,
        }
        snapshot = self._memory.take(work.engines, progress, work.tensors())
        self.times.waited_seconds += time.perf_counter() - started
        self.times.saves += 1
        self._writer.start(snapshot, goes_on and not self._ends_at_failed_save)

    @property
    def saved_step(self) -> int:
        """The last step that is on the disk, saved or resumed from; 0 where none is."""
        return self._writer.saved_step or self._resumed_step

    @property
    def asks_for_end(self) -> bool:
        """Whether a save has failed on this rank, in a way that ends the work."""
        return self._ends_work(self._writer.failure)

    def finish(self, must_be_saved: bool = False) -> None:
        """Waits until what was saved is on the disk.

        Args:
            must_be_saved: whether an error of the disk ends the work, as options may say too.

        Raises:
            OSError: it could not be written, and that ends the work.
        """
        started = time.perf_counter()
        self._settle(must_be_saved)
        self.times.ending_seconds += time.perf_counter() - started

    def wait(self) -> None:
        """Waits as :meth:`finish` does, where the work ends by an error already."""
        failure = self._writer.wait()
        if failure is not None:
            _log.error("the last checkpoint was not written: %s", failure)

    def _settle(self, must_be_saved: bool = False) -> None:
        failure = self._writer.wait()
        if failure is not None and (must_be_saved or self._ends_work(failure)):
            raise failure

    def _ends_work(self, failure: BaseException | None) -> bool:
        forgiven = isinstance(failure, OSError) and not self._ends_at_failed_save
        return failure is not None and not forgiven

    def resume(self, work: Resumable) -> int:
        """Restores the newest whole checkpoint, the same one on every rank.

        Returns:
            The steps done before; 0 where nothing was saved.

        Raises:
            UserError: it is of other options, or none is whole.
        """
        checkpoint = decided_by_rank_0(self._newest)
        if checkpoint is None:
            return 0
        saved = read_progress(checkpoint)
        self._refuse_changes(checkpoint, saved["facts"])
        load_checkpoint(checkpoint, work.engines)
        work.resume(saved, read_tensors(checkpoint))
        self._resumed_step = saved["step"]
        _log.info("resumed from %s at step %d", checkpoint, saved["step"])
        return saved["step"]

    def set_aside_newest(self) -> int | None:
        """Moves the newest checkpoint away, so that the next start goes on from the one before.

        Returns:
            The step of the one before; None where there is none.
        """
        return decided_by_rank_0(lambda: set_aside_newest_checkpoint(self._folder))

    def _newest(self) -> Path | None:
        """Finds the checkpoint to go on from; called on rank 0."""
        if not self._begins_anew:
            return newest_whole_checkpoint(self._folder)
        aside = set_aside_checkpoints(self._folder)
        if aside is not None:
            _log.warning("resume never: earlier checkpoints are now in %s", aside)
        return None

    def _refuse_changes(self, checkpoint: Path, saved: Mapping[str, Any]) -> None:
        changes = changed_options(saved, self._facts)
        if changes and not self._allow_changed_options:
            may_be_allowed = self._allow_changed_options is not None
            raise UserError(refusal_of(changes, checkpoint, may_be_allowed))
        for change in changes:
            _log.warning("option changed since the checkpoint: %s", change)
