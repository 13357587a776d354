"""Says why a process of a launch ends: once a node, by whichever rank finds it, with its host.

Ranks mostly find the same, and none can know that another will. What was said stands in a file that
belongs to the launch for as long as one of its processes holds it open: a line too many is printed
where they do not overlap, never one too few.
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

_ERROR_FILE, _ATTEMPT = "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_RESTART_COUNT"


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
                self._descriptor = _open_shared(_path(launch))

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
        """Returns whether nobody has claimed a text on this node; it is this process's then."""
        if self._descriptor is None:
            return True
        digest = hashlib.sha256(text.encode()).hexdigest()
        own = f"{digest} {os.getpid()} {time.monotonic_ns()}\n"
        try:
            # Appended lines keep an order: of several ranks the first one's counts.
            os.write(self._descriptor, own.encode())
            said = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0).decode()
        except OSError:
            return True
        first = next((line for line in said.splitlines(True) if line.startswith(digest)), own)
        return first == own

    def close(self) -> None:
        """Leaves the file to the others; the last one takes it away."""
        if self._descriptor is None or self._launch is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """Returns the launch's file: ranks of a node share parent, rendezvous and attempt."""
    facts = (os.getppid(), launch.master_addr, launch.master_port, os.environ.get(_ATTEMPT))
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"minimoe_dist.{os.getuid()}.{name}"


def _open_shared(path: Path) -> int:
    """Opens a file that others hold too; whoever finds it held by nobody empties it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
