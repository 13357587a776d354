"""Files and folders that are whole under their names, or not there at all.

What is being written has the suffix ``.partial``. A folder that takes the place of another one
moves it to ``.replaced`` for the moment between two renames: who finds such a folder alone was
killed there, and :func:`finish_replacing` puts it back.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..data.durable import PARTIAL as PARTIAL

REPLACED = ".replaced"


def beside(path: Path, suffix: str) -> Path:
    """The name of ``path`` with another suffix behind all it has."""
    return path.with_name(path.name + suffix)


def make_empty(folder: Path) -> None:
    """Makes a folder, without anything that was in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


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


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``folder`` at the end, on disk and whole.

    An exception leaves nothing of it, and what was there as it was.
    """
    finish_replacing(folder)
    aside = beside(folder, PARTIAL)
    make_empty(aside)
    try:
        yield aside
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


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes and flushes a safetensors file.

    Raises:
        OSError: the disk is full or broken.
        safetensors.SafetensorError: the same, in safetensors' own words.
    """
    save_file(dict(tensors), path, metadata={"format": "pt"})
    share(path)
    flush_file(path)


def share(path: Path) -> None:
    """Gives a file the mode that ``open`` would have: safetensors makes its files private."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes and flushes readable JSON."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    flush_file(path)


def hash_file(path: Path) -> dict[str, Any]:
    """``{"size": bytes, "sha256": hexadecimal}`` of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def hash_json(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON value, whatever its layout in a file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
