"""Handles files that grow: held by one writer, read again in pieces, hashed aside."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

from ..errors import UserError

_CHUNK = 1 << 20


def open_locked(path: str, keep: bool = False) -> IO[bytes]:
    """Opens a file for reading and writing, unless a living process writes it.

    Args:
        path: the file; it is made if need be.
        keep: whether its contents stay.

    Raises:
        UserError: another process writes it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # A record lock: children that outlive a killed writer by a moment do not hold it.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise UserError(f"{path}: another process is writing it; choose another prefix") from None
    except OSError:
        # Some network file systems have no locks; the writer works there without.
        pass
    if not keep:
        os.ftruncate(descriptor, 0)
    # Opened by its path, so that the stream has a name.
    return open(path, "r+b", buffering=_CHUNK, opener=lambda _path, _flags: descriptor)


def pieces(stream: IO[bytes]) -> Iterator[bytes]:
    """Yields the contents of a stream from its beginning, 8 MiB at a time."""
    stream.flush()
    stream.seek(0)
    while piece := stream.read(_CHUNK * 8):
        yield piece


def close_quietly(stream: IO[bytes]) -> None:
    """Closes a stream whose contents are of no use any more."""
    try:
        stream.close()
    except OSError:
        # Closing flushes once more; on a full disk that fails again and tells nothing new.
        return


class RunningHash:
    """Computes the SHA-256 of a growing file beside what its owner does."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def update(self, data: bytes | memoryview) -> None:
        """Adds data, which must not change any more; waits for the data before it."""
        self._wait()
        self._running = self._thread.submit(self._digest.update, data)

    def hexdigest(self) -> str:
        """Returns the hash of all data so far."""
        self._wait()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()
            self._running = None
