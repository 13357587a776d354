"""Writes files and folders that are whole under their names, or not there at all.

What is being written has the suffix ``.partial``; it is flushed to the disk before it gets its
name. A folder that takes the place of another one moves it to ``.replaced`` for the moment between
two renames: who finds such a folder alone was killed there, and :func:`finish_replacing` puts it
back. A folder that was written so lists its files in ``.minimoe_dist``: one without that list, or
with a file that is not on it, is somebody else's and is never replaced.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import UserError

PARTIAL = ".partial"
REPLACED = ".replaced"
_FILE_LIST = ".minimoe_dist"
_IGNORED = "__pycache__"
_SAMPLED_START, _SAMPLES, _SAMPLE = 1 << 20, 64, 1 << 16  # bytes, pieces, bytes of a piece


def beside(path: Path, suffix: str) -> Path:
    """Returns ``path`` with ``suffix`` appended to its name."""
    return path.with_name(path.name + suffix)


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """Yields a path to write a file to, which becomes ``path`` at the end, on disk and whole.

    After an exception nothing of it is left, and an earlier file at ``path`` is as it was.

    Raises:
        OSError: the file cannot be written; it names the file.
    """
    final = Path(path)
    aside = beside(final, PARTIAL)
    try:
        with naming(path):
            yield aside
            give_name(final)
    except Exception:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Writes a small file of UTF-8 text, whole or not at all."""
    with written(path) as aside:
        aside.write_text(text, "utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes readable JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def give_name(path: str | Path) -> None:
    """Renames a closed file ``path.partial`` to ``path`` once it is on disk."""
    final = Path(path)
    aside = beside(final, PARTIAL)
    flush_file(aside)
    aside.rename(final)
    flush_folder(final.parent)


def give_names(paths: Sequence[str]) -> None:
    """Renames each `path.partial`, on disk already, to `path`, the last one's name coming last.

    What stands under these names goes first, the last one ahead: nobody sees old and new files
    together. Names whose partial file is gone were given before an interruption, and stay.
    """
    pending = [path for path in paths if os.path.exists(path + PARTIAL)]
    for path in reversed(pending):
        remove(path)
    for path in pending:
        os.rename(path + PARTIAL, path)
    flush_folder(Path(paths[0]).parent)


def remove(path: str) -> None:
    """Removes a file if it is there."""
    Path(path).unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder at once for those who know its name, whatever becomes of this process.

    What cannot be removed stays, and is no error.
    """
    aside = beside(folder, PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def make_empty(folder: Path) -> None:
    """Makes a folder, without anything that was in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def set_aside(path: Path) -> Path:
    """Moves a file or folder to the first of ``path.1``, ``path.2``, … that is free."""
    number = 1
    while (aside := beside(path, f".{number}")).exists():
        number += 1
    path.rename(aside)
    flush_folder(path.parent)
    return aside


def replace_folder(finished: Path, final: Path) -> None:
    """Gives a finished folder its name; one that has it already makes way and is then removed."""
    former = beside(final, REPLACED)
    if final.exists():
        shutil.rmtree(former, ignore_errors=True)  # of a call that was killed behind its renames
        final.rename(former)
    finished.rename(final)
    flush_folder(final.parent)
    shutil.rmtree(former, ignore_errors=True)


def finish_replacing(final: Path) -> None:
    """Ends a :func:`replace_folder` that was interrupted, if there was one."""
    former = beside(final, REPLACED)
    if not former.exists():
        return
    if final.exists():
        shutil.rmtree(former)
    else:
        former.rename(final)


def check_replaceable(folder: str | Path) -> None:
    """Refuses to replace what :func:`replaced` did not write.

    Raises:
        UserError: a file or a link is there, or a folder with a file of somebody else's.
    """
    path = Path(folder)
    if path.is_symlink():
        raise UserError(f"{path}: is a symbolic link, and is to be replaced; remove it first")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, and a folder is to be written there; move it away")
    try:
        listed = {*(path / _FILE_LIST).read_text("utf-8").split("\n"), _FILE_LIST}
    except (OSError, UnicodeDecodeError):
        listed = set()
    foreign = sorted(_files(path) - listed)
    if foreign:
        raise UserError(
            f"{path}: is to be replaced, and holds {foreign[0]}, which was not written by it; move "
            "the folder or the file away, or choose another folder"
        )


def _files(folder: Path) -> set[str]:
    """Returns the relative paths of all files, links and empty folders below a folder."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if _IGNORED not in path.relative_to(folder).parts
        and (path.is_symlink() or not path.is_dir() or not any(path.iterdir()))
    }


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yields a folder to write into, which replaces ``folder`` at the end, on disk and whole.

    After an exception nothing of it is left, and an earlier ``folder`` is as it was.

    Raises:
        UserError: something is there that was not written so.
    """
    finish_replacing(folder)
    check_replaceable(folder)
    aside = beside(folder, PARTIAL)
    make_empty(aside)
    try:
        yield aside
        (aside / _FILE_LIST).write_text(
            "\n".join(sorted(_files(aside) - {_FILE_LIST})) + "\n", "utf-8"
        )
        for path in aside.rglob("*"):
            if path.is_file():
                share(path)
                flush_file(path)
            else:
                flush_folder(path)
        flush_folder(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    replace_folder(aside, folder)


def share(path: Path) -> None:
    """Gives a file the mode that ``open`` would have: safetensors makes its files private."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def hash_file(path: Path) -> dict[str, Any]:
    """Returns ``{"size": bytes, "sha256": hexadecimal}`` of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def sampled_hash(path: Path) -> str:
    """Returns a hexadecimal SHA-256 that tells a file from others without reading gigabytes.

    It is of the size, the first mebibyte (where safetensors names its tensors) and 64 pieces of
    64 KiB spread evenly: retrained weights or shuffled tokens differ, a changed byte may not.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLED_START))
        rest = size - _SAMPLED_START
        for piece in range(_SAMPLES if rest > 0 else 0):
            # Together the pieces are the whole rest of a small file.
            file.seek(_SAMPLED_START + max(0, rest - _SAMPLE) * piece // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def hash_json(value: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a JSON value, whatever its layout in a file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def flush_stream(stream: IO[Any]) -> None:
    """Returns when all that was written to a stream is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def flush_file(path: Path) -> None:
    """Returns when a file's content is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Returns when a folder's names are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Adds the file's name to an I/O error that has none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:  # else it has words of its own
            error.filename = str(path)
        raise
