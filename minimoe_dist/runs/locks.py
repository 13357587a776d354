"""Keeps a run's folder to one run, though the lock's file be deleted or other hosts not see it.

The lock is the kernel's, on ``run.lock`` and on the folder itself, so that it ends with the process
and outlives its file. A network's file system may lock files but no folders, or may not tell other
hosts: the file names its holder, who looks at it time and again and ends where another took it.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..durable import flush_stream
from ..errors import UserError
from ..exit_status import ExitStatus
from .folder import RunFolder

_PATIENCE_SECONDS = 0.5  # another start's look at the lock takes microseconds
_WATCH_SECONDS = 2.0
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is there.

    Raises:
        UserError: another run holds it.
    """
    with contextlib.ExitStack() as stack:
        # The folder first: who is refused here must not have written into the holder's file.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, descriptor)
        if _lock(descriptor, _PATIENCE_SECONDS) is False:
            raise held_by_another(folder)
        lock = _LockFile(folder)
        stack.callback(lock.close)
        lock.take()
        closing = threading.Event()
        watch = threading.Thread(target=_watch, args=(lock, closing), name="lock-watch")
        watch.daemon = True
        watch.start()
        stack.callback(watch.join)
        stack.callback(closing.set)
        yield


def check_free(folder: Path) -> None:
    """Refuses a folder that a run holds now; takes and changes nothing.

    Raises:
        UserError: a run that is alive holds it.
    """
    for path in (RunFolder(folder).lock, folder):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise held_by_another(folder) from None
        except OSError:
            continue  # no locks here
        finally:
            os.close(descriptor)


def held_by_another(folder: Path) -> UserError:
    """Returns the error for a folder that is another run's."""
    return UserError(
        f"output_dir: {folder} is used by another run that is alive: stop that one or choose "
        "another folder"
    )


class _LockFile:
    """The file ``run.lock``, which names its holder while it is held."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, RunFolder(folder).lock
        self._holder = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
        self._descriptor: int | None = None

    def take(self) -> None:
        """Locks the file, makes it where it is missing, and writes who holds it."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            self.close()
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            if _lock(self._descriptor, deadline - time.monotonic()) is False:
                raise held_by_another(self.folder)
            if self._is_in_place():
                break
        with open(self._descriptor, "r+", encoding="utf-8", closefd=False) as file:
            file.truncate()
            file.write(self._holder + "\n")
            flush_stream(file)

    def taken_by(self) -> str | None:
        """Returns who else has taken the file; None where it is this one's still."""
        try:
            with self._path.open(encoding="utf-8", errors="replace") as file:
                holder = file.readline().strip()
        except OSError:
            return None
        # Other programs' locks empty the file that they only try.
        return (
            None
            if holder in ("", self._holder)
            else "process {1} on {0}".format(*[*holder.split(), "?", "?"])
        )

    def mend(self) -> None:
        """Puts the file back where somebody deleted it."""
        if not self._path.exists() and self.folder.is_dir():
            self.take()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_in_place(self) -> bool:
        """Tells whether the file that was opened still has the name: it may have been deleted."""
        assert self._descriptor is not None
        own = os.fstat(self._descriptor)
        try:
            return os.path.samestat(own, self._path.stat())
        except OSError:
            return False


def _lock(descriptor: int, seconds: float) -> bool | None:
    """Locks what is open; False where another holds it, None where nothing can be locked here."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        except OSError:
            return None


def _watch(lock: _LockFile, closing: threading.Event) -> None:
    """Ends the process where another run has taken the lock: two would ruin each other's files."""
    while not closing.wait(_WATCH_SECONDS):
        try:
            lock.mend()
            other = lock.taken_by()
        except OSError:
            continue  # a file system that is away
        except UserError:
            other = "which holds its lock"
        if other is not None:
            _log.error(
                "output_dir: %s was taken by another run, %s, while this one held it, so this one "
                "stops; started again, it goes on from the last checkpoint", lock.folder, other,
            )  # fmt: skip
            os._exit(ExitStatus.FAILED)
