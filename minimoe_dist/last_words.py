"""Says why a process of a launch ends: once a node, by whichever rank finds it, with its host.

Ranks mostly find the same, and none can know that another will. What was said stands in a file of
the launch. It outlives the processes that said something by a minute, as one rank may be gone
before another has come; a line too many is printed after that, never one too few.
"""

import fcntl
import hashlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from .errors import UserError
from .runtime import Launch, detect_launch

_HEARD_SECONDS, _OLD_SECONDS = 60.0, 3600.0
ATTEMPT = "TORCHELASTIC_RESTART_COUNT"  # torchrun's variable: starts of one launch
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


class LastWords:
    """What the processes of a launch say on this node.

    Args:
        launch: of this process; None where there is none that can be read.
    """

    def __init__(self, launch: Launch | None) -> None:
        self._launch = launch
        self._descriptor: int | None = None
        if launch is not None and launch.world_size > 1:
            with suppress(OSError):  # without the file each rank speaks for itself
                self._descriptor = _open_shared(_path(launch), launch.rank)

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> "LastWords":
        """Returns those of the launch that the environment tells of."""
        try:
            return cls(detect_launch(environ))
        except UserError:
            return cls(None)

    def say(self, error: BaseException, remedy: str = "") -> None:
        """Prints an error on one line, unless another rank of this node, or rank 0, has said it.

        Args:
            error: why the process ends; it names no rank.
            remedy: what its own words do not say.
        """
        line = " ".join(f"{error}: {remedy}".split()) if remedy else " ".join(str(error).split())
        tell_torchrun(line)
        if not getattr(error, "is_said", False) and self.claims(line):
            with suppress(OSError):  # of a terminal that was closed: the status says it still
                print(f"minimoe-dist: {self._whose()}{line}", file=sys.stderr, flush=True)

    def claims(self, text: str) -> bool:
        """Returns whether no other rank of the launch has claimed a text on this node."""
        if self._descriptor is None or self._launch is None:
            return True
        digest = hashlib.sha256(text.encode()).hexdigest()
        own = f"{digest} {self._launch.rank} {os.getpid()} {time.monotonic_ns()}\n"
        try:
            # Appended lines keep an order: of several ranks the first one's counts.
            os.write(self._descriptor, own.encode())
            said = _content(self._descriptor)
        except OSError:
            return True
        return next((line for line in said if line.startswith(digest)), own) == own

    def close(self) -> None:
        """Leaves the file to the others; the last one takes it away where nothing was said."""
        if self._descriptor is None or self._launch is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(descriptor).st_size:
                _path(self._launch).unlink()
        os.close(descriptor)

    def _whose(self) -> str:
        if self._launch is None or self._launch.world_size == 1:
            return ""
        return f"rank {self._launch.rank} on {socket.gethostname()}: "


def tell_torchrun(line: str) -> None:
    """Gives torchrun a line for its report, which buries what was printed before it.

    It shows the first failure's line as the last words of the report.
    """
    path = os.environ.get(_ERROR_FILE)
    if not path:
        return
    details = {"py_callstack": line, "timestamp": str(int(time.time()))}
    with suppress(OSError):
        Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": details}}))


def _path(launch: Launch) -> Path:
    """Returns the launch's file: ranks of a node share parent, rendezvous and attempt.

    So may launches that follow each other by hand.
    """
    facts = (os.getppid(), launch.master_addr, launch.master_port, os.environ.get(ATTEMPT))
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"{shared_prefix()}{name}"


def shared_prefix() -> str:
    """Returns what the names of the files that processes of a launch share begin with.

    They lie in the folder for temporary files and are removed an hour later.
    """
    return f"minimoe_dist.{os.getuid()}."


def _remove_old(folder: Path) -> None:
    """Removes the files of launches that ended long ago."""
    for path in folder.glob(f"{shared_prefix()}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _OLD_SECONDS:
                path.unlink()


def _open_shared(path: Path, rank: int) -> int:
    """Opens a file that others hold too; whoever finds that of another launch empties it.

    It is another's where nobody holds it, and it is old or this rank has spoken in it.
    """
    _remove_old(path.parent)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_old = time.time() - os.fstat(descriptor).st_mtime > _HEARD_SECONDS
            if is_old or any(line.split()[1:2] == [str(rank)] for line in _content(descriptor)):
                os.ftruncate(descriptor, 0)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _content(descriptor: int) -> list[str]:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode("utf-8", "replace").splitlines(keepends=True)
