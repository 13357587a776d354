"""Writes a run's checkpoints from snapshots, so that training need not wait for a disk.

A :class:`Snapshot` is a copy in host memory of all that a checkpoint holds of this rank;
:func:`write_checkpoint` makes a checkpoint (:mod:`.run`) of all ranks' snapshots, in any thread.
Every rank writes its piece into a folder of another name and flushes it; when all have said so,
rank 0 adds the manifest, renames the folder and then moves ``latest``. A process killed anywhere in
between leaves the checkpoint before as it was.

torch.distributed.checkpoint is not used for it: its metadata is an unrestricted pickle, it knows
no hash of what it wrote, and ZeRO's flat partitions, which end amid a row, are no blocks of a
tensor as its planners know them.
"""

import copy
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..durable import (
    PARTIAL,
    REPLACED,
    beside,
    finish_replacing,
    flush_folder,
    hash_file,
    hash_json,
    make_empty,
    remove_folder,
    replace_folder,
    write_json,
    write_text,
)
from ..runs.checkpoints import MANIFEST, PROGRESS, list_checkpoints
from .run import FORMAT, TENSORS, TrainingState, is_whole
from .tensors import save_tensors

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranks:
    """The processes that write a checkpoint together.

    Attributes:
        rank: of this one.
        world_size: how many there are.
        exchange: gives everybody what each rank says, by rank; waits for all.
    """

    rank: int
    world_size: int
    exchange: Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Snapshot:
    """A rank's copy of what a checkpoint is made of.

    Attributes:
        progress: JSON for ``run.json``; its ``step`` names the checkpoint.
        pieces: this rank's parts of parameters' states by key, float32, flat.
        shapes: of all parameters by "<student>/<parameter>".
        kinds: of state that each parameter of a student has, by student.
        tensors: on rank 0, what belongs to no student, by name.
    """

    progress: Mapping[str, Any]
    pieces: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, Sequence[str]]
    tensors: Mapping[str, Tensor]


class SnapshotMemory:
    """Host memory for snapshots of one run, one after the other.

    It is kept: pinned memory and fresh pages cost more time than the copy into them.
    """

    def __init__(self) -> None:
        self._layout: list[tuple[str, int]] = []
        self._pieces: dict[str, Tensor] = {}

    def take(
        self,
        students: Sequence[TrainingState],
        progress: Mapping[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> Snapshot:
        """Copies the students' states, and waits for their devices; no collective.

        The pieces of the snapshot before are overwritten.

        Args:
            students: their states; all ranks name the same ones in the same order.
            progress: JSON: step, consumed samples, configuration.
            tensors: on rank 0, what belongs to no student, by name.
        """
        values = {key: value for student in students for key, value in _owned(student)}
        self._fit(values)
        with torch.no_grad():
            for key, value in values.items():
                self._pieces[key].copy_(value, non_blocking=True)
        if any(value.is_cuda for value in values.values()):
            torch.cuda.current_stream().synchronize()
        counters = {student.name: student.counters() for student in students}
        return Snapshot(
            copy.deepcopy({**progress, "counters": counters}),
            self._pieces,
            {
                f"{student.name}/{name}": shape
                for student in students
                for name, shape in student.state_shapes().items()
            },
            {student.name: tuple(student.kinds) for student in students},
            {name: tensor.clone() for name, tensor in (tensors or {}).items()},
        )

    def _fit(self, values: Mapping[str, Tensor]) -> None:
        """Makes room, all in one tensor, unless there is room of just this layout."""
        layout = [(key, value.numel()) for key, value in values.items()]
        if layout == self._layout:
            return
        total = sum(count for _, count in layout)
        memory = _host_memory(total, any(value.is_cuda for value in values.values()))
        views = memory.split([count for _, count in layout])
        self._layout = layout
        self._pieces = {key: view for (key, _), view in zip(layout, views, strict=True)}


def _owned(student: TrainingState) -> Iterator[tuple[str, Tensor]]:
    for part in student.state_slices():
        values = part.values[part.owned]
        if values.numel():
            start = part.start + part.owned.indices(part.values.numel())[0]
            yield f"{student.name}/{part.kind}/{part.name}@{start}", values


def _host_memory(count: int, pinned: bool) -> Tensor:
    if pinned:
        try:
            return torch.empty(count, dtype=torch.float32, pin_memory=True)
        except RuntimeError as error:  # no more of it may be locked
            _log.warning("no pinned memory for checkpoints, which take longer: %s", error)
    return torch.empty(count, dtype=torch.float32)


class CheckpointWriter:
    """Writes the checkpoints of one run.

    Args:
        folder: the run's ``checkpoints`` folder.
        ranks: the processes.
        keep: how many checkpoints stay, at least 2; those of later steps do not count and go.
    """

    def __init__(self, folder: Path, ranks: Ranks, keep: int = 2) -> None:
        self._folder = folder
        self._ranks = ranks
        self._keep = max(2, keep)
        self._whole: set[Path] = set()  # hashed when they were written, and not again

    @property
    def tells(self) -> bool:
        """Whether this rank is the one that tells people of what all ranks know."""
        return self._ranks.rank == 0

    def write(self, snapshot: Snapshot) -> Path:
        """Writes the checkpoint of all ranks' snapshots; a collective.

        Returns:
            The checkpoint's final path.

        Raises:
            OSError: on all ranks: the disk of one is full or broken. Nothing of the checkpoint is
                left, and earlier ones are untouched.
        """
        final = self._folder / f"step_{snapshot.progress['step']:08d}"
        partial = beside(final, PARTIAL)
        rank = self._ranks.rank
        try:
            self._agree(_prepare, partial)
            notes = self._ranks.exchange(_outcome(_write_piece, partial, snapshot, rank))
            _raise_first(notes, rank)
            self._agree(_complete, partial, final, snapshot, [note for note, _ in notes])
        except OSError:
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)  # it may be what fills the disk
            raise
        if rank == 0:
            self._whole.add(final)
            self._announce(final)
        return final

    def _agree(self, act: Callable[..., None], *arguments: Any) -> None:
        """Does something on rank 0, and raises everywhere what it raised there."""
        outcome = _outcome(act, *arguments) if self._ranks.rank == 0 else (None, None)
        _raise_first(self._ranks.exchange(outcome), self._ranks.rank)

    def _announce(self, checkpoint: Path) -> None:
        """Moves ``latest`` and removes old checkpoints; the new one is safe, whatever fails."""
        latest = checkpoint.parent / "latest"
        try:
            write_text(latest, checkpoint.name + "\n")
        except OSError as error:
            _log.warning("%s still names an earlier checkpoint: %s", latest, error)
        checkpoints = list(list_checkpoints(checkpoint.parent).values())
        index = checkpoints.index(checkpoint)
        # Later ones were broken when this run started, or it would not have come by here again.
        for former in [*checkpoints[index + 1 :], *self._superfluous(checkpoints[:index])]:
            remove_folder(former)
        self._whole &= set(checkpoints)

    def _superfluous(self, earlier: Sequence[Path]) -> list[Path]:
        """Returns all but the newest to keep, counted from the newest that is whole."""
        newest_first = list(reversed(earlier))
        while newest_first and not self._is_whole(newest_first[0]):
            newest_first.pop(0)
        return newest_first[self._keep - 1 :]

    def _is_whole(self, checkpoint: Path) -> bool:
        if checkpoint not in self._whole and is_whole(checkpoint):
            self._whole.add(checkpoint)
        return checkpoint in self._whole


Outcome = tuple[Any, OSError | None]


def _outcome(act: Callable[..., Any], *arguments: Any) -> Outcome:
    try:
        return act(*arguments), None
    except OSError as error:
        return None, error


def _raise_first(outcomes: Sequence[Outcome], rank: int) -> None:
    """Raises this rank's error, or else the first one of another rank, which it names."""
    if (error := outcomes[rank][1]) is not None:
        raise error
    for other, (_, error) in enumerate(outcomes):
        if error is not None:
            raise OSError(f"rank {other}: {error}")


def _prepare(partial: Path) -> None:
    """Removes what killed processes left behind, and makes the folder for the pieces."""
    for left in partial.parent.glob(f"step_*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
    for former in partial.parent.glob(f"step_*{REPLACED}"):
        finish_replacing(former.with_suffix(""))
    make_empty(partial)
    flush_folder(partial.parent.parent)


def _write_piece(folder: Path, snapshot: Snapshot, rank: int) -> dict[str, Any]:
    """Writes this rank's tensors; returns what the manifest says of them."""
    path = folder / f"rank_{rank:05d}.safetensors"
    save_tensors(snapshot.pieces, path)
    counts = {key: tensor.numel() for key, tensor in snapshot.pieces.items()}
    return {"file": path.name, **hash_file(path), "pieces": counts}


def _complete(
    partial: Path, final: Path, snapshot: Snapshot, notes: Sequence[dict[str, Any]]
) -> None:
    """Checks that all pieces are there, adds what is no rank's and the manifest, and renames."""
    for rank, note in enumerate(notes):
        if not (partial / note["file"]).is_file():
            raise OSError(f"{final}: the piece of rank {rank} is not there: no shared disk?")
    _check_cover(snapshot, notes)
    run_path = partial / PROGRESS
    write_json(run_path, {**snapshot.progress, "world_size": len(notes)})
    files = {note["file"]: {key: note[key] for key in ("size", "sha256")} for note in notes}
    files[run_path.name] = hash_file(run_path)
    if snapshot.tensors:
        save_tensors(snapshot.tensors, partial / TENSORS)
        files[TENSORS] = hash_file(partial / TENSORS)
    manifest = {
        "format": FORMAT,
        "files": files,
        "shapes": {name: list(shape) for name, shape in snapshot.shapes.items()},
        "pieces": {
            key: [note["file"], count] for note in notes for key, count in note["pieces"].items()
        },
    }
    # The hashes in it do not show a changed name, hence one of its own.
    write_json(partial / MANIFEST, {**manifest, "sha256": hash_json(manifest)})
    flush_folder(partial)
    replace_folder(partial, final)


def _check_cover(snapshot: Snapshot, notes: Sequence[dict[str, Any]]) -> None:
    """Asserts that the ranks' pieces are all of the state, each number once."""
    pieces: dict[str, list[tuple[int, int]]] = {}
    for note in notes:
        for key, count in note["pieces"].items():
            name, _, start = key.rpartition("@")
            pieces.setdefault(name, []).append((int(start), count))
    for name, shape in snapshot.shapes.items():
        student, _, parameter = name.partition("/")
        for kind in snapshot.kinds[student]:
            end = 0
            for start, count in sorted(pieces.get(f"{student}/{kind}/{parameter}", [])):
                assert start == end, f"{name}, {kind}: element {end} is in no piece or in two"
                end += count
            assert end == math.prod(shape), f"{name}, {kind}: {end} elements of {shape}"
