"""Checkpoints of a run: by logical name, whole or not there at all, readable on any topology.

    <output>/checkpoints/
        latest                      the newest checkpoint's name
        step_00001000/
            manifest.json           size and SHA-256 of every file, and which file holds which key
            run.json                progress, counters, the configuration
            rank_00000.safetensors  "<student>/<kind>/<parameter>" or "…/<parameter>#<expert>"

Every rank writes what it owns into a folder of another name and flushes it; after a barrier rank 0
checks that all pieces are there, writes the manifest, renames the folder and then moves ``latest``.
A process killed anywhere in between leaves the checkpoint before as it was. Experts are stored by
their global number, everything else once, so that another world size, ZeRO stage or
expert-parallel size reads the same state.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = 1
_PARTIAL = ".partial"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateEntry:
    """One parameter of a student.

    Attributes:
        name: its logical name, the same on any topology.
        kinds: what is kept of it, such as the master weight and the moments.
        owned: whether this rank writes it.
        first_expert: the global number of the first expert in this rank's tensor; None for a
            parameter that is not stacked.
        num_local_experts: experts in this rank's tensor, along its first axis.
    """

    name: str
    kinds: Sequence[str]
    owned: bool
    first_expert: int | None
    num_local_experts: int


class TrainingState(Protocol):
    """A student's state as named float32 tensors; reading and writing are collectives."""

    name: str

    def state_entries(self) -> Iterator[StateEntry]: ...
    def read_state(self, name: str, kind: str) -> Tensor: ...
    def write_state(self, name: str, kind: str, value: Tensor) -> None: ...
    def counters(self) -> dict[str, Any]: ...
    def finish_writing(self, counters: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Ranks:
    """What saving needs of the process group."""

    rank: int
    world_size: int
    barrier: Callable[[], None]


class CheckpointError(ValueError):
    """A checkpoint that can't be used: the line says which file and why."""


def save_checkpoint(
    folder: Path,
    students: Sequence[TrainingState],
    progress: Mapping[str, Any],
    ranks: Ranks,
    keep: int = 2,
) -> Path:
    """Writes a checkpoint of ``progress["step"]`` under ``folder``; a collective.

    Args:
        folder: the run's ``checkpoints`` folder.
        students: their states; all ranks name the same ones in the same order.
        progress: JSON: step, consumed samples, configuration.
        ranks: of this process.
        keep: how many checkpoints stay.

    Returns:
        The checkpoint's final path.

    Raises:
        OSError: the disk is full or broken; earlier checkpoints are untouched.
    """
    final = folder / f"step_{progress['step']:08d}"
    partial = folder / (final.name + _PARTIAL)
    if ranks.rank == 0:
        _make_empty(partial)
    ranks.barrier()
    failure = _write_piece(partial, students, ranks.rank)
    ranks.barrier()
    if ranks.rank == 0 and failure is None:
        failure = _complete(partial, final, students, progress, ranks.world_size, keep)
    ranks.barrier()
    if failure is not None:
        raise failure
    if not final.is_dir():
        raise OSError(f"{final}: was not written: see the first error of rank 0")
    return final


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_piece(folder: Path, students: Sequence[TrainingState], rank: int) -> OSError | None:
    """This rank's tensors; all ranks read them together, so an error waits until the end."""
    tensors: dict[str, Tensor] = {}
    for student in students:
        for entry in student.state_entries():
            for kind in entry.kinds:
                value = student.read_state(entry.name, kind)
                if entry.owned:
                    tensors.update(_keyed(student.name, kind, entry, value))
    try:
        path = folder / f"rank_{rank:05d}.safetensors"
        save_file(tensors, path)
        digest = _hash_and_flush(path)
        note = {"file": path.name, **digest, "keys": sorted(tensors)}
        _write_json(folder / f"rank_{rank:05d}.json", note)
    except Exception as error:  # safetensors has its own exception for a full disk
        return error if isinstance(error, OSError) else OSError(f"{folder}: {error}")
    return None


def _keyed(
    student: str, kind: str, entry: StateEntry, value: Tensor
) -> Iterator[tuple[str, Tensor]]:
    key = f"{student}/{kind}/{entry.name}"
    if entry.first_expert is None:
        yield key, value.contiguous()
    else:
        for index in range(entry.num_local_experts):
            yield f"{key}#{entry.first_expert + index}", value[index].clone()


def _complete(
    partial: Path,
    final: Path,
    students: Sequence[TrainingState],
    progress: Mapping[str, Any],
    world_size: int,
    keep: int,
) -> OSError | None:
    try:
        notes = []
        for rank in range(world_size):
            note = partial / f"rank_{rank:05d}.json"
            if not note.is_file():
                raise OSError(f"{final}: rank {rank} could not write its piece")
            notes.append(json.loads(note.read_text()))
            note.unlink()
        counters = {student.name: student.counters() for student in students}
        run_path = partial / "run.json"
        _write_json(run_path, {**progress, "counters": counters, "world_size": world_size})
        files = {note["file"]: {key: note[key] for key in ("size", "sha256")} for note in notes}
        files[run_path.name] = _hash_and_flush(run_path)
        keys = {key: note["file"] for note in notes for key in note["keys"]}
        _write_json(partial / "manifest.json", {"format": FORMAT, "files": files, "keys": keys})
        _flush_folder(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _flush_folder(final.parent)
        _point_latest(final)
        _remove_old(final.parent, keep)
    except OSError as error:
        return error
    return None


def _point_latest(checkpoint: Path) -> None:
    latest = checkpoint.parent / "latest"
    aside = latest.with_suffix(_PARTIAL)
    aside.write_text(checkpoint.name + "\n")
    _hash_and_flush(aside)
    aside.rename(latest)
    _flush_folder(checkpoint.parent)


def _remove_old(folder: Path, keep: int) -> None:
    for old in list_checkpoints(folder)[: -max(2, keep)]:
        shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    _hash_and_flush(path)


def _hash_and_flush(path: Path) -> dict[str, Any]:
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": digest}


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdigit()]
    return sorted(found)


def verify_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Checks every file's size and hash.

    Returns:
        The manifest.

    Raises:
        CheckpointError: a file is missing, cut off or changed.
    """
    path = checkpoint / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        files, _ = manifest["files"], manifest["keys"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from error
    if manifest.get("format") != FORMAT:
        found = manifest.get("format")
        raise CheckpointError(f"{path}: format {found}, this version reads {FORMAT}")
    for name, expected in files.items():
        file = checkpoint / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if file.stat().st_size != expected["size"]:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes, not {expected['size']}")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
                raise CheckpointError(f"{file}: its SHA-256 differs from the manifest's")
    return manifest


def newest_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose hashes hold; None only where there has never been one.

    ``latest`` is a convenience for people: a missing or stale one must not make a run start anew.

    Raises:
        CheckpointError: there are checkpoints, but all are broken.
    """
    checkpoints = list_checkpoints(folder)
    for checkpoint in reversed(checkpoints):
        try:
            verify_checkpoint(checkpoint)
        except CheckpointError as error:
            _log.warning("checkpoint skipped: %s", error)
        else:
            return checkpoint
    if checkpoints:
        raise CheckpointError(
            f"{folder}: none of its {len(checkpoints)} checkpoints is whole: move the folder away "
            "to start anew"
        )
    return None


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """``run.json``: step, consumed samples, configuration, counters."""
    progress: dict[str, Any] = json.loads((checkpoint / "run.json").read_text())
    return progress


def load_checkpoint(checkpoint: Path, students: Sequence[TrainingState]) -> dict[str, Any]:
    """Restores the students' states; a collective.

    Returns:
        The progress that was saved.

    Raises:
        CheckpointError: the checkpoint lacks a parameter or has it in another shape.
    """
    keys = json.loads((checkpoint / "manifest.json").read_text())["keys"]
    progress = read_progress(checkpoint)
    with _Pieces(checkpoint, keys) as pieces:
        for student in students:
            for entry in student.state_entries():
                for kind in entry.kinds:
                    value = pieces.read(student.name, kind, entry)
                    student.write_state(entry.name, kind, value)
            student.finish_writing(progress["counters"][student.name])
    return progress


class _Pieces:
    """The checkpoint's tensors, each file opened once."""

    def __init__(self, checkpoint: Path, keys: Mapping[str, str]) -> None:
        self._checkpoint = checkpoint
        self._keys = keys
        self._files: dict[str, Any] = {}

    def __enter__(self) -> "_Pieces":
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.clear()

    def read(self, student: str, kind: str, entry: StateEntry) -> Tensor:
        key = f"{student}/{kind}/{entry.name}"
        if entry.first_expert is None:
            return self._tensor(key)
        wanted = range(entry.first_expert, entry.first_expert + entry.num_local_experts)
        return torch.stack([self._tensor(f"{key}#{expert}") for expert in wanted])

    def _tensor(self, key: str) -> Tensor:
        if key not in self._keys:
            raise CheckpointError(f"{self._checkpoint}: no {key}: saved from another student?")
        name = self._keys[key]
        if name not in self._files:
            self._files[name] = safe_open(str(self._checkpoint / name), "pt")
        tensor: Tensor = self._files[name].get_tensor(key)
        return tensor
