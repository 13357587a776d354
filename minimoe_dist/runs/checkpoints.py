"""Reads how far a run is saved from its files, without torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..durable import REPLACED
from ..errors import UserError
from .folder import CellFolder, RunFolder
from .options import SavedRecipe
from .reading import Record

MANIFEST, PROGRESS = "manifest.json", "run.json"
FINISHED = -1  # in place of a step: whatever is there is exported


class SavedFacts(Record):
    """The facts of a run, which must not change under it, that its progress is reported by.

    Its options are among them.
    """

    global_batch_size: int | None = None
    total_steps: int | None = None


class SavedProgress(Record):
    """A checkpoint's ``run.json``, as far as progress is read from it."""

    step: int
    facts: SavedFacts = SavedFacts()


class SavedRun(Record):
    """A checkpoint's ``run.json``, as far as the recipe of its run is read from it."""

    step: int
    facts: SavedRecipe = SavedRecipe()


@dataclass(frozen=True)
class SavedState:
    """The newest saved state of a run: its step, where it is, and when it was written (epoch)."""

    step: int
    path: Path
    time: float
    facts: SavedFacts


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Lists finished training checkpoints by step, oldest first.

    A checkpoint that was to be replaced counts where the one that was to replace it never came.

    Args:
        folder: ``checkpoints`` of a run.
    """
    checkpoints: dict[int, Path] = {}
    for path in sorted(folder.glob("step_*")):
        if match := re.fullmatch(rf"step_(\d+)({re.escape(REPLACED)})?", path.name):
            checkpoints.setdefault(int(match[1]), path)
    return dict(sorted(checkpoints.items()))


def checkpoint_of(run: RunFolder, step: int | str) -> tuple[int, Path]:
    """Finds the checkpoint after a step.

    Args:
        run: its folder.
        step: its number, or a word for the newest.

    Returns:
        The step and the checkpoint.

    Raises:
        UserError: there is none after this step, or none at all.
    """
    saved = list_checkpoints(run.checkpoints)
    if not saved:
        raise UserError(f"--step: {run.path} has no checkpoint; wait until the run saves one")
    found = step if isinstance(step, int) else max(saved)
    if found not in saved:
        steps = ", ".join(map(str, saved))
        raise UserError(f"--step: {step} is not saved in {run.path}; choose {steps}, or newest")
    return found, saved[found]


def newest_state(folder: Path) -> SavedState | None:
    """Finds the newest saved state of a run or cell; None where there is none."""
    run = RunFolder(folder)
    for step, path in reversed(list_checkpoints(run.checkpoints).items()):
        manifest = path / MANIFEST
        if manifest.is_file():
            progress = SavedProgress.find(path / PROGRESS)
            facts = progress.facts if progress else SavedFacts()
            return SavedState(step, path, manifest.stat().st_mtime, facts)
    return None


def saved_step(folder: Path) -> int | None:
    """Finds the newest saved step of a run or cell.

    Returns:
        The step; FINISHED where the run or cell has ended; None where nothing is saved.
    """
    run, cell = RunFolder(folder), CellFolder(folder)
    state = newest_state(folder)
    ends = [path for path in (run.summary, run.results, cell.result) if path.is_file()]
    if not ends:
        return state.step if state else None
    # An older summary is that of a run which this one replaces.
    is_older = state is not None and ends[0].stat().st_mtime < state.time
    return state.step if state and is_older else FINISHED


def progress_of(folder: Path) -> dict[str, int]:
    """Finds the newest saved step of a run's folder, and of each stage or cell below it.

    Returns:
        Step, or FINISHED, by the folder's path below `folder`; "." is `folder` itself.
    """
    below = sorted(
        path
        for pattern in ("*", "cells/*", "*/cells/*")
        for path in folder.glob(pattern)
        if path.is_dir()
    )
    steps = {path.relative_to(folder).as_posix(): saved_step(path) for path in (folder, *below)}
    return {name: step for name, step in steps.items() if step is not None}
