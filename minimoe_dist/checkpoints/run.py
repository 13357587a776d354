"""Checkpoints of a run: by logical name, whole or not there at all, readable on any topology.

    <output>/checkpoints/
        latest                      the newest checkpoint's name
        step_00001000/
            manifest.json           size and SHA-256 of every file; shapes, and where each piece is
            run.json                progress, counters, the configuration
            rank_00000.safetensors  "<student>/<kind>/<parameter>@<first element>", float32, flat
            tensors.safetensors     what else is made of tensors, if anything is

A parameter's state is a flat sequence of numbers, experts one behind the other by their global
number. Each rank writes a part of what it holds, every number is in one file, and each rank reads
what it needs: another world size, ZeRO stage or expert-parallel size reads the same state.
:mod:`.writing` makes such folders.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..durable import hash_file, hash_json, set_aside, write_text
from ..errors import UserError
from ..foreign import read_json
from ..runs.checkpoints import MANIFEST, PROGRESS, list_checkpoints

FORMAT, _OLDEST_FORMAT = 2, 1
TENSORS = "tensors.safetensors"
_MOST_MANIFEST_BYTES = 1 << 28  # it lists every piece of every rank
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateSlice:
    """A part of a parameter's state that lies in this rank's memory.

    Attributes:
        name: the parameter's logical name, the same on any topology.
        kind: what of the parameter it is, such as the master weight or a moment.
        start: of its first element in the whole parameter, flat; experts by their global number.
        values: the elements, 1-D, writable in place.
        owned: those of ``values`` that this rank writes into checkpoints.
    """

    name: str
    kind: str
    start: int
    values: Tensor
    owned: slice


class TrainingState(Protocol):
    """A student's state, as far as it lies on this rank.

    The methods are those of :class:`~minimoe_dist.train.engine.StudentEngine`.
    """

    name: str

    @property
    def kinds(self) -> Sequence[str]: ...
    def state_shapes(self) -> dict[str, tuple[int, ...]]: ...
    def state_slices(self) -> Iterator[StateSlice]: ...
    def counters(self) -> dict[str, Any]: ...
    def finish_writing(self, counters: Mapping[str, Any]) -> None: ...


class CheckpointError(UserError):
    """A checkpoint that can't be used: the line says which file and why."""


def is_whole(checkpoint: Path) -> bool:
    """Hashes a checkpoint's files, and returns whether all are as written; warns where not."""
    try:
        verify_checkpoint(checkpoint)
    except CheckpointError as error:
        _log.warning("checkpoint skipped: %s", error)
        return False
    return True


def set_aside_checkpoints(folder: Path) -> Path | None:
    """Moves a run's checkpoints out of the way of a new beginning; None where there are none."""
    return set_aside(folder) if list_checkpoints(folder) else None


def set_aside_newest_checkpoint(folder: Path) -> int | None:
    """Moves the newest checkpoint out of the way; returns the step of the one before, if any."""
    *earlier, (_, newest) = list_checkpoints(folder).items()
    latest = folder / "latest"
    if earlier:
        write_text(latest, earlier[-1][1].name + "\n")
    else:
        latest.unlink(missing_ok=True)  # alone it would say that checkpoints were lost
    _log.warning("%s is now %s", newest, set_aside(newest))
    return earlier[-1][0] if earlier else None


def verify_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Checks every file's size and hash.

    Returns:
        The manifest.

    Raises:
        CheckpointError: a file is missing, cut off or changed.
    """
    path = checkpoint / MANIFEST
    try:
        manifest: dict[str, Any] = read_json(path, _MOST_MANIFEST_BYTES)
        version, digest = manifest["format"], manifest.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from error
    if digest != hash_json(manifest):
        raise CheckpointError(f"{path}: its content does not have the hash that it names")
    if version not in range(_OLDEST_FORMAT, FORMAT + 1):
        raise CheckpointError(
            f"{path}: format {version}, this version reads {_OLDEST_FORMAT} to {FORMAT}"
        )
    for name, expected in manifest["files"].items():
        file = checkpoint / name
        try:
            actual = hash_file(file)
        except OSError as error:
            raise CheckpointError(f"{file}: unreadable ({error.strerror})") from error
        if actual["size"] != expected["size"]:
            raise CheckpointError(f"{file}: {actual['size']} bytes, not {expected['size']}")
        if actual["sha256"] != expected["sha256"]:
            raise CheckpointError(f"{file}: its SHA-256 differs from the manifest's")
    return manifest


def newest_whole_checkpoint(folder: Path) -> Path | None:
    """Finds the newest checkpoint whose hashes hold; None only where there has never been one.

    ``latest`` is a convenience for people: a missing or stale one must not make a run start anew.

    Raises:
        CheckpointError: there are checkpoints, but all are broken or gone.
    """
    checkpoints = list_checkpoints(folder).values()
    for checkpoint in reversed(checkpoints):
        if is_whole(checkpoint):
            return checkpoint
    if checkpoints or (folder / "latest").exists():
        raise CheckpointError(
            f"{folder}: none of its {len(checkpoints)} checkpoints is whole: move the folder away "
            "to start anew"
        )
    return None


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """Reads ``run.json``: step, consumed samples, configuration, counters."""
    return json.loads((checkpoint / PROGRESS).read_text())


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Reads the tensors that belong to no student, by name."""
    path = checkpoint / TENSORS
    return load_file(path) if path.is_file() else {}


def load_checkpoint(checkpoint: Path, students: Sequence[TrainingState]) -> dict[str, Any]:
    """Restores the students' states, each rank what it holds of them.

    Returns:
        The progress that was saved.

    Raises:
        CheckpointError: a student's parameters are not those of the checkpoint.
    """
    progress = read_progress(checkpoint)
    saved = _SavedState(checkpoint)
    for student in students:
        saved.check_names(student)
        for part in student.state_slices():
            saved.read_into(part, student.name)
        student.finish_writing(progress["counters"][student.name])
    return progress


def read_weights(checkpoint: Path, student: str, kind: str) -> dict[str, Tensor]:
    """Reads a student's parameters whole, with all experts.

    Args:
        checkpoint: its hashes are checked.
        student: by its name in the run.
        kind: of the state that is read, such as the master weights.

    Returns:
        Parameters by logical name, float32.

    Raises:
        CheckpointError: a file of it is broken, or it has no such student.
    """
    verify_checkpoint(checkpoint)
    saved = _SavedState(checkpoint)
    weights = {}
    for name, shape in saved.shapes_of(student).items():
        values = torch.empty(math.prod(shape))
        saved.read_into(StateSlice(name, kind, 0, values, slice(0, 0)), student)
        weights[name] = values.view(shape)
    return weights


@dataclass(frozen=True)
class _Piece:
    """Elements of a parameter's state from ``start`` on, one tensor of a file."""

    start: int
    stop: int
    file: str
    key: str


class _SavedState:
    """The tensors of a checkpoint, each of whose files is opened once."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._files: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        if manifest["format"] == 1:
            self._find_whole_tensors(manifest["keys"])
            return
        self._shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
        for key, (file, count) in manifest["pieces"].items():
            name, _, start = key.rpartition("@")
            piece = _Piece(int(start), int(start) + count, file, key)
            self._pieces.setdefault(name, []).append(piece)

    def _find_whole_tensors(self, keys: Mapping[str, str]) -> None:
        """Reads what format 1 had: a tensor a parameter, or one an expert (``name#3``)."""
        for key, file in keys.items():
            shape = tuple(self._file(file).get_slice(key).get_shape())
            name, mark, expert = key.partition("#")
            count, index = math.prod(shape), int(expert or 0)
            piece = _Piece(index * count, (index + 1) * count, file, key)
            self._pieces.setdefault(name, []).append(piece)
            student, _, parameter = name.split("/", 2)
            known = self._shapes.get(f"{student}/{parameter}", (0,))
            whole = (max(known[0], index + 1), *shape) if mark else shape
            self._shapes[f"{student}/{parameter}"] = whole

    def shapes_of(self, student: str) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of a student's parameters by name.

        Raises:
            CheckpointError: it has none.
        """
        prefix = f"{student}/"
        shapes = {
            name.removeprefix(prefix): shape
            for name, shape in self._shapes.items()
            if name.startswith(prefix)
        }
        if not shapes:
            names = ", ".join(sorted({name.partition("/")[0] for name in self._shapes}))
            raise CheckpointError(f"{self._checkpoint}: has no student {student}; it has {names}")
        return shapes

    def check_names(self, student: TrainingState) -> None:
        """Refuses a checkpoint of a student with other parameters."""
        prefix = f"{student.name}/"
        shapes = student.state_shapes()
        saved = {name for name in self._pieces if name.startswith(prefix)}
        expected = {f"{prefix}{kind}/{name}" for name in shapes for kind in student.kinds}
        if saved != expected:
            lacking, extra = sorted(expected - saved), sorted(saved - expected)
            problem = f"no {lacking[0]}" if lacking else f"{extra[0]}, which this student lacks"
            raise CheckpointError(
                f"{self._checkpoint}: has {problem}: saved from another student? give its options"
            )
        for name, shape in shapes.items():
            saved_shape = self._shapes[prefix + name]
            if saved_shape != shape:
                raise CheckpointError(
                    f"{self._checkpoint}: {prefix}{name} is {list(saved_shape)}, the student's is "
                    f"{list(shape)}: give the options it was saved with"
                )

    @torch.no_grad()
    def read_into(self, part: StateSlice, student: str) -> None:
        """Fills a slice from the pieces that have elements of it."""
        first, last = part.start, part.start + part.values.numel()
        for piece in self._pieces[f"{student}/{part.kind}/{part.name}"]:
            start, stop = max(first, piece.start), min(last, piece.stop)
            if start < stop:
                values = self._file(piece.file).get_tensor(piece.key).flatten()
                target = part.values[start - first : stop - first]
                target.copy_(values[start - piece.start : stop - piece.start])

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = safe_open(str(self._checkpoint / name), "pt")
        return self._files[name]
