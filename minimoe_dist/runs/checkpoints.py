"""How far a run is saved, as its files tell without torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..durable import REPLACED
from .folder import CellFolder, RunFolder
from .reading import Record

MANIFEST, PROGRESS = "manifest.json", "run.json"
FINISHED = -1  # in place of a step: whatever is there is exported


class SavedFacts(Record):
    """Of what must not change under a run, what its progress is told with."""

    global_batch_size: int | None = None
    total_steps: int | None = None


class SavedProgress(Record):
    """``run.json`` of a checkpoint."""

    step: int
    facts: SavedFacts = SavedFacts()


@dataclass(frozen=True)
class SavedState:
    """The newest saved state of a run: its step, where it is, and when it was written (epoch)."""

    step: int
    path: Path
    time: float
    facts: SavedFacts


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Finished training checkpoints by step, oldest first; one that was making way among them.

    Args:
        folder: ``checkpoints`` of a run.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("step_*")):
        # One that was making way for another has its step to itself if that never came.
        if match := re.fullmatch(rf"step_(\d+)({re.escape(REPLACED)})?", path.name):
            found.setdefault(int(match[1]), path)
    return dict(sorted(found.items()))


def newest_state(folder: Path) -> SavedState | None:
    """The newest saved state of a run or cell; None where there is none."""
    run = RunFolder(folder)
    for step, path in reversed(list_checkpoints(run.checkpoints).items()):
        manifest = path / MANIFEST
        if manifest.is_file():
            progress = SavedProgress.find(path / PROGRESS)
            facts = progress.facts if progress else SavedFacts()
            return SavedState(step, path, manifest.stat().st_mtime, facts)
    return None


def saved_step(folder: Path) -> int | None:
    """The newest saved step of a run or cell, FINISHED behind its end, None where nothing is."""
    run, cell = RunFolder(folder), CellFolder(folder)
    state = newest_state(folder)
    ends = [path for path in (run.summary, run.results, cell.result) if path.is_file()]
    if not ends:
        return state.step if state else None
    # An older summary is that of a run which this one replaces.
    is_older = state is not None and ends[0].stat().st_mtime < state.time
    return state.step if state and is_older else FINISHED


def progress_of(folder: Path) -> dict[str, int]:
    """How far a run is: the newest saved step of its folder, and of each stage or cell below it.

    Returns:
        Step, or FINISHED, by the folder's path below `folder`; "." is `folder` itself.
    """
    below = sorted(
        path
        for pattern in ("*", "cells/*", "*/cells/*")
        for path in folder.glob(pattern)
        if path.is_dir()
    )
    found = {one.relative_to(folder).as_posix(): saved_step(one) for one in (folder, *below)}
    return {name: step for name, step in found.items() if step is not None}
