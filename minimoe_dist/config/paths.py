"""Checks the folders that options name and a command will write."""

import tempfile
from pathlib import Path

from .problems import ConfigError


def check_output_dir(output_dir: str) -> None:
    """Refuses an output folder that cannot be written (it need not exist yet).

    Raises:
        ConfigError: it is a file, or it or its nearest existing parent is not writable.
    """
    check_writable("output_dir", output_dir)


def check_cache_dir(path: str) -> None:
    """Refuses a folder of caches that can be neither written nor read.

    Raises:
        ConfigError: it is a file or a link to nothing, or is not there and cannot be made.
    """
    folder = Path(path).expanduser()
    if folder.is_symlink() and not folder.exists():
        raise ConfigError(f"teacher.cache_dir: {path}: is a link to nothing; give another folder")
    if not folder.is_dir():  # one that is there may be full, and for reading only
        check_writable("teacher.cache_dir", path)


def check_writable(option: str, path: str) -> None:
    """Refuses a folder that cannot be written (it need not exist yet).

    Raises:
        ConfigError: it is a file, or it or its nearest existing parent is not writable.
    """
    folder = Path(path).expanduser().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"{option}: {path}: {existing} is a file; give another folder")
    try:
        # Only writing tells: permissions do not bind root, nor speak of a file system's state.
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"?")
    except OSError as error:
        raise ConfigError(
            f"{option}: {path}: {existing} is not writable ({error.strerror}); give another"
        ) from None
