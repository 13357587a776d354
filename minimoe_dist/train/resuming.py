"""Saves work, and goes on from what was saved: one way for all that goes step by step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor

from .. import __version__
from ..checkpoints.run import (
    Ranks,
    TrainingState,
    load_checkpoint,
    newest_whole_checkpoint,
    read_progress,
    read_tensors,
    save_checkpoint,
    set_aside_checkpoints,
    set_aside_newest_checkpoint,
)
from ..config.changes import changed_options, join_changes
from ..errors import UserError
from ..runtime import logger
from .agreement import decided_by_rank_0

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

    Args:
        folder: ``checkpoints`` of the run.
        facts: JSON of what must not change under the work: options, corpora.
        keep: how many checkpoints stay.
        begins_anew: move earlier checkpoints aside instead of going on.
        allow_changed_options: whether to go on although facts changed; None where nobody can say
            so.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        *,
        keep: int = 2,
        begins_anew: bool = False,
        allow_changed_options: bool | None = None,
    ) -> None:
        self._folder = folder
        self._facts = facts
        self._keep = keep
        self._begins_anew = begins_anew
        self._allow_changed_options = allow_changed_options

    def save(self, work: Resumable, steps_done: int) -> None:
        """Writes the state behind a step.

        Raises:
            OSError: the disk is full or broken; earlier checkpoints are untouched.
        """
        state = {
            **work.progress(),
            "step": steps_done,
            "facts": self._facts,
            "version": __version__,
        }
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.barrier)
        save_checkpoint(
            self._folder, work.engines, state, ranks, self._keep, tensors=work.tensors()
        )

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
            remedy = "give the former ones, or --resume never or another output_dir to start anew"
            if self._allow_changed_options is not None:
                remedy = f"give --allow_changed_options to go on with the new ones, or {remedy}"
            raise UserError(
                f"{checkpoint}: the run's options changed since ({join_changes(changes)}): {remedy}"
            )
        for change in changes:
            _log.warning("option changed since the checkpoint: %s", change)
