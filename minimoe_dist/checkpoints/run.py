"""Checkpoints of a run: by logical name, whole or not there at all, readable on any topology.

    <output>/checkpoints/
        latest                      the newest checkpoint's name
        step_00001000/
            manifest.json           size and SHA-256 of every file, and which file holds which key
            run.json                progress, counters, the configuration
            rank_00000.safetensors  "<student>/<kind>/<parameter>" or "…/<parameter>#<expert>"
            tensors.safetensors     what else is made of tensors, if anything is

Every rank writes what it owns into a folder of another name and flushes it; after a barrier rank 0
checks that all pieces are there, writes the manifest, renames the folder and then moves ``latest``.
A process killed anywhere in between leaves the checkpoint before as it was. Experts are stored by
their global number, everything else once, so that another world size, ZeRO stage or
expert-parallel size reads the same state.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file
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
    replace_folder,
    set_aside,
    write_json,
    write_text,
)
from ..errors import UserError
from ..runs.checkpoints import MANIFEST, PROGRESS, list_checkpoints
from .tensors import save_tensors

FORMAT = 1
_TENSORS = "tensors.safetensors"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateEntry:
    """One parameter of a student.

    Attributes:
        name: its logical name, the same on any topology.
        kinds: what is kept of it, such as the master weight and the moments.
        owned: whether this rank writes it.
        shape: of the whole parameter; experts are counted by its first number.
        local_experts: the global numbers of the experts in this rank's tensor; None for a
            parameter that is not stacked.
    """

    name: str
    kinds: Sequence[str]
    owned: bool
    shape: tuple[int, ...]
    local_experts: range | None


class TrainingState(Protocol):
    """A student's state as named float32 tensors; reading and writing are collectives.

    The methods are those of :class:`~minimoe_dist.train.engine.StudentEngine`.
    """

    name: str

    def state_entries(self) -> Iterator[StateEntry]: ...
    def read_state(self, name: str, kind: str) -> Tensor: ...
    def write_state(self, name: str, kind: str, value: Tensor) -> None: ...
    def counters(self) -> dict[str, Any]: ...
    def finish_writing(self, counters: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Ranks:
    """The process group, as far as saving needs it."""

    rank: int
    world_size: int
    barrier: Callable[[], None]


class CheckpointError(UserError):
    """A checkpoint that can't be used: the line says which file and why."""


def save_checkpoint(
    folder: Path,
    students: Sequence[TrainingState],
    progress: Mapping[str, Any],
    ranks: Ranks,
    keep: int = 2,
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes a checkpoint of ``progress["step"]`` under ``folder``; a collective.

    Args:
        folder: the run's ``checkpoints`` folder.
        students: their states; all ranks name the same ones in the same order.
        progress: JSON: step, consumed samples, configuration.
        ranks: of this process.
        keep: how many checkpoints stay, at least 2; those of later steps do not count and go.
        tensors: on rank 0, what belongs to no student, by name.

    Returns:
        The checkpoint's final path.

    Raises:
        OSError: the disk is full or broken; earlier checkpoints are untouched.
    """
    final = folder / f"step_{progress['step']:08d}"
    partial = beside(final, PARTIAL)
    failure = _prepare(partial) if ranks.rank == 0 else None
    ranks.barrier()
    # Reading the state is a collective, so a rank that cannot write takes part all the same.
    failed_here = _write_piece(partial, students, ranks.rank)
    failure = failure or failed_here
    ranks.barrier()
    if ranks.rank == 0:
        failure = failure or _complete(
            partial, final, students, progress, ranks.world_size, tensors or {}
        )
        if failure is None:
            _announce(final, keep)
        else:
            shutil.rmtree(partial, ignore_errors=True)  # it may be what fills the disk
    ranks.barrier()
    if failure is not None:
        raise failure
    if not final.is_dir():
        raise OSError(f"{final}: was not written: see the first error of rank 0")
    return final


def _prepare(partial: Path) -> OSError | None:
    """Removes what killed processes left behind, and makes the folder for the pieces."""
    try:
        _remove(list(partial.parent.glob(f"step_*{PARTIAL}")))
        for former in partial.parent.glob(f"step_*{REPLACED}"):
            finish_replacing(former.with_suffix(""))
        make_empty(partial)
        flush_folder(partial.parent.parent)
    except OSError as error:
        return error
    return None


def _write_piece(folder: Path, students: Sequence[TrainingState], rank: int) -> OSError | None:
    """Writes this rank's tensors; all ranks read them together, so an error waits until the end."""
    tensors: dict[str, Tensor] = {}
    for student in students:
        for entry in student.state_entries():
            for kind in entry.kinds:
                value = student.read_state(entry.name, kind)
                if entry.owned:
                    tensors.update(_keyed(student.name, kind, entry, value))
    try:
        path = folder / f"rank_{rank:05d}.safetensors"
        save_tensors(tensors, path)
        note = {"file": path.name, **hash_file(path), "keys": sorted(tensors)}
        write_json(folder / f"rank_{rank:05d}.json", note)
    except OSError as error:
        return error
    return None


def _keyed(
    student: str, kind: str, entry: StateEntry, value: Tensor
) -> Iterator[tuple[str, Tensor]]:
    key = f"{student}/{kind}/{entry.name}"
    if entry.local_experts is None:
        yield key, value.contiguous()
    else:
        for index, expert in enumerate(entry.local_experts):
            yield f"{key}#{expert}", value[index].clone()


def _complete(
    partial: Path,
    final: Path,
    students: Sequence[TrainingState],
    progress: Mapping[str, Any],
    world_size: int,
    tensors: Mapping[str, Tensor],
) -> OSError | None:
    """Checks that all pieces are there, adds what is no rank's and the manifest, and renames."""
    try:
        notes = []
        for rank in range(world_size):
            note = partial / f"rank_{rank:05d}.json"
            if not note.is_file():
                raise OSError(f"{final}: rank {rank} could not write its piece")
            notes.append(json.loads(note.read_text()))
            note.unlink()
        counters = {student.name: student.counters() for student in students}
        run_path = partial / PROGRESS
        write_json(run_path, {**progress, "counters": counters, "world_size": world_size})
        files = {note["file"]: {key: note[key] for key in ("size", "sha256")} for note in notes}
        files[run_path.name] = hash_file(run_path)
        if tensors:
            save_tensors(tensors, partial / _TENSORS)
            files[_TENSORS] = hash_file(partial / _TENSORS)
        keys = {key: note["file"] for note in notes for key in note["keys"]}
        manifest = {"format": FORMAT, "files": files, "keys": keys}
        # The hashes in it do not show a changed name, hence one of its own.
        write_json(partial / MANIFEST, {**manifest, "sha256": hash_json(manifest)})
        flush_folder(partial)
        replace_folder(partial, final)
    except OSError as error:
        return error
    except ValueError as error:  # a note that was cut off
        return OSError(f"{final}: {error}")
    return None


def _announce(checkpoint: Path, keep: int) -> None:
    """Moves ``latest`` and removes old checkpoints; the new one is safe, whatever fails here."""
    latest = checkpoint.parent / "latest"
    try:
        write_text(latest, checkpoint.name + "\n")
    except OSError as error:
        _log.warning("%s still names an earlier checkpoint: %s", latest, error)
    checkpoints = list(list_checkpoints(checkpoint.parent).values())
    index = checkpoints.index(checkpoint)
    # Later ones were broken when this run started, or it would not have come by here again.
    _remove([*checkpoints[index + 1 :], *_superfluous(checkpoints[:index], max(2, keep) - 1)])


def _superfluous(earlier: Sequence[Path], keep: int) -> list[Path]:
    """Returns all but the newest ``keep`` checkpoints, counted from the newest that is whole."""
    newest_first = list(reversed(earlier))
    while newest_first and not _is_whole(newest_first[0]):
        newest_first.pop(0)
    return newest_first[keep:]


def _remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _is_whole(checkpoint: Path) -> bool:
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
        manifest: dict[str, Any] = json.loads(path.read_text())
        version, digest = manifest["format"], manifest.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from error
    if digest != hash_json(manifest):
        raise CheckpointError(f"{path}: its content does not have the hash that it names")
    if version != FORMAT:
        raise CheckpointError(f"{path}: format {version}, this version reads {FORMAT}")
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
        if _is_whole(checkpoint):
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
    path = checkpoint / _TENSORS
    return load_file(path) if path.is_file() else {}


def load_checkpoint(checkpoint: Path, students: Sequence[TrainingState]) -> dict[str, Any]:
    """Restores the students' states; a collective.

    Returns:
        The progress that was saved.

    Raises:
        CheckpointError: a student's parameters are not those of the checkpoint.
    """
    keys = json.loads((checkpoint / MANIFEST).read_text())["keys"]
    progress = read_progress(checkpoint)
    pieces = _Pieces(checkpoint, keys)
    for student in students:
        pieces.check_names(student)
        for entry in student.state_entries():
            for kind in entry.kinds:
                student.write_state(entry.name, kind, pieces.read(student.name, kind, entry))
        student.finish_writing(progress["counters"][student.name])
    return progress


class _Pieces:
    """The tensors of a checkpoint, each of whose files is opened once."""

    def __init__(self, checkpoint: Path, keys: Mapping[str, str]) -> None:
        self._checkpoint = checkpoint
        self._keys = keys
        self._files: dict[str, Any] = {}

    def check_names(self, student: TrainingState) -> None:
        """Refuses a checkpoint of a student with other parameters."""
        prefix = f"{student.name}/"
        saved = {key for key in self._keys if key.startswith(prefix)}
        expected = set()
        for entry in student.state_entries():
            parts = [""] if entry.local_experts is None else range(entry.shape[0])
            for kind in entry.kinds:
                mark = "" if entry.local_experts is None else "#"
                expected |= {f"{prefix}{kind}/{entry.name}{mark}{part}" for part in parts}
        if saved != expected:
            lacking, extra = sorted(expected - saved), sorted(saved - expected)
            problem = f"no {lacking[0]}" if lacking else f"{extra[0]}, which this student lacks"
            raise CheckpointError(
                f"{self._checkpoint}: has {problem}: saved from another student? give its options"
            )

    def read(self, student: str, kind: str, entry: StateEntry) -> Tensor:
        key = f"{student}/{kind}/{entry.name}"
        if entry.local_experts is None:
            return self._tensor(key, entry.shape)
        parts = [self._tensor(f"{key}#{expert}", entry.shape[1:]) for expert in entry.local_experts]
        return torch.stack(parts)

    def _tensor(self, key: str, shape: tuple[int, ...]) -> Tensor:
        name = self._keys[key]
        if name not in self._files:
            self._files[name] = safe_open(str(self._checkpoint / name), "pt")
        tensor: Tensor = self._files[name].get_tensor(key)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{self._checkpoint}: {key} is {list(tensor.shape)}, the student's is "
                f"{list(shape)}: give the options it was saved with"
            )
        return tensor
