"""Watches the other ranks of this node until all ranks have met; `train/peers.py` does it then.

Between the first line of a start and its process group lie seconds of imports, and a rank that is
killed there would be waited for until the time-out. Each rank listens at an abstract Unix socket of
its launch, which the kernel closes with the process, and keeps a connection to the socket of each
other rank of its node. For those that begin after its end it leaves a note, which it holds locked
while it lives. What happens on other nodes is seen there, and ended by the launcher.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import selectors
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from .exit_status import ExitStatus
from .last_words import ATTEMPT, LastWords, shared_prefix
from .runs import launches
from .runtime import Launch

_LOOK_SECONDS = 0.1
# Of one that ended by itself: what it found, the others are about to find too.
_GRACE_SECONDS = 5.0
# Of one that was gone before it said a word: it may have met all, and so has this one then.
_WORDLESS_SECONDS = 1.0
# Between the starts of two ranks of one launch, at most. Ranks that are started by hand again and
# again at one port are told from those before by this: no start fails sooner.
_SKEW_SECONDS = 0.25
_MET = b"met"
_current: "RollCall | None" = None


def begin(launch: Launch) -> None:
    """Begins to watch the other ranks of this node, where there are some."""
    global _current
    if launch.world_size > 1 and launch.local_world_size > 1 and _current is None:
        _current = RollCall(launch)
        _current.start()


def end(have_met: bool) -> None:
    """Ends the watch; does nothing where there is none.

    Args:
        have_met: all ranks have; False where this one ends before.
    """
    global _current
    if _current is not None:
        _current.end(_MET if have_met else b"left")
        _current = None


@dataclass
class _Local:
    """Another rank of this node, from the connection to its socket on."""

    local_rank: int
    connection: socket.socket
    said: bytes = b""  # its rank in a line, and a last word

    @property
    def name(self) -> str:
        rank, end, _ = self.said.partition(b"\n")
        return f"rank {rank.decode()}" if end else f"the rank with local rank {self.local_rank}"

    @property
    def last_word(self) -> bytes:
        return self.said.partition(b"\n")[2]


class RollCall:
    """The ranks of one node; ends this process with status 1 where one of them is gone.

    Args:
        launch: of this process.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        facts = (
            *(os.getuid(), launch.master_addr, launch.master_port, launch.world_size),
            *(launch.launcher, os.environ.get("SLURM_STEP_ID"), os.environ.get(ATTEMPT)),
        )
        self._launch_name = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        self._server: socket.socket | None = None
        self._note: _Note | None = None
        self._watchers: list[socket.socket] = []  # connections of the others to this rank
        self._missing = {one for one in range(launch.local_world_size) if one != launch.local_rank}
        self._selector = selectors.DefaultSelector()
        self._closing = threading.Event()
        self._ends_at: tuple[float, str] | None = None  # when, and because of which rank
        self._thread = threading.Thread(target=self._watch, name="roll-call", daemon=True)

    def start(self) -> None:
        """Listens, and looks for the others in a thread."""
        # Before the socket, whose coming the others take for granted once there is one.
        with contextlib.suppress(OSError, ValueError, IndexError):
            self._note = _Note(self._note_path(self._launch.local_rank), self._launch.rank)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.bind(self._address(self._launch.local_rank))
            server.listen(self._launch.local_world_size)
        except OSError:  # no Linux, or an earlier start that has not ended yet
            server.close()
            return
        server.setblocking(False)
        self._server = server
        self._selector.register(server, selectors.EVENT_READ)
        self._thread.start()

    def end(self, last_word: bytes) -> None:
        """Says a last word to the others, and closes."""
        if self._note is not None:
            self._note.close(is_needed=last_word != _MET)
        if self._server is None:
            return
        self._closing.set()
        self._thread.join()
        self._accept()  # whoever waits for that still
        for connection in self._watchers:
            with contextlib.suppress(OSError):
                connection.send(last_word)
        for connection in [*self._watchers, *self._connections(), self._server]:
            connection.close()
        self._selector.close()

    def _note_path(self, local_rank: int) -> Path:
        name = f"{shared_prefix()}roll.{self._launch_name}.{local_rank}"
        return Path(tempfile.gettempdir()) / name

    def _address(self, local_rank: int) -> str:
        return f"\0minimoe-dist.{self._launch_name}.{local_rank}"

    def _connections(self) -> list[socket.socket]:
        keys = self._selector.get_map().values()
        return [key.data.connection for key in keys if key.data is not None]

    def _watch(self) -> None:
        while not self._closing.is_set():
            self._look_for_missing()
            for key, _ in self._selector.select(_LOOK_SECONDS):
                if key.data is None:
                    self._accept()
                else:
                    self._hear(key.data)
            if self._ends_at is not None and time.monotonic() > self._ends_at[0]:
                self._exit(self._ends_at[1])

    def _accept(self) -> None:
        assert self._server is not None
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self._watchers.append(connection)
                connection.send(f"{self._launch.rank}\n".encode())

    def _look_for_missing(self) -> None:
        for local_rank in sorted(self._missing):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.setblocking(False)
            try:
                connection.connect(self._address(local_rank))
            except OSError:  # it has not come yet, or it has gone again
                connection.close()
                left = _left_by(self._note_path(local_rank))
                if left is not None and self._ends_at is None:
                    self._end_for(*left)
                continue
            self._missing.remove(local_rank)
            self._selector.register(
                connection, selectors.EVENT_READ, _Local(local_rank, connection)
            )

    def _hear(self, other: _Local) -> None:
        try:
            data = other.connection.recv(64)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        other.said += data
        if data:
            return
        self._selector.unregister(other.connection)
        other.connection.close()
        if other.last_word == _MET or self._ends_at is not None:
            return
        self._end_for(other.name, bool(other.last_word), 0.0 if other.said else _WORDLESS_SECONDS)

    def _end_for(self, name: str, by_itself: bool, seconds: float = 0.0) -> None:
        how, seconds = ("ended", _GRACE_SECONDS) if by_itself else ("died", seconds)
        self._ends_at = (time.monotonic() + seconds, f"{name} has {how} before all ranks had met")

    def _exit(self, words: str) -> None:
        reason = f"{words}; started again, the run goes on from its last checkpoint"
        LastWords(self._launch).say(RuntimeError(reason))
        launches.leave(f"failed: {words}", ExitStatus.FAILED)
        sys.stdout.flush()
        os._exit(ExitStatus.FAILED)


class _Note:
    """A file that tells of this process, locked while it lives.

    Args:
        path: of the file; that of an earlier start is replaced.
        rank: of this process.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self._path, self._words = path, [rank, *_birth()]
        # Under its name it is locked and whole from its first moment on.
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        self._descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._write(by_itself=False)
        os.rename(temporary, path)

    def close(self, is_needed: bool) -> None:
        """Lets go of the file.

        Args:
            is_needed: ranks that begin later are to know that this one has ended by itself.
        """
        with contextlib.suppress(OSError):
            self._write(by_itself=True)
            if not is_needed:
                os.ftruncate(self._descriptor, 0)  # for whoever has it open already
                self._path.unlink()
        os.close(self._descriptor)

    def _write(self, by_itself: bool) -> None:
        os.pwrite(self._descriptor, json.dumps([int(by_itself), *self._words]).encode(), 0)


def _left_by(path: Path) -> tuple[str, bool] | None:
    """Returns whose note is left of a process that was started with this one and is gone.

    Returns:
        The rank's name, and whether it ended by itself; None where there is no such note, its
        process lives, or it belongs to an earlier start.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        is_own = os.fstat(descriptor).st_uid == os.getuid()
        by_itself, rank, parent, started = json.loads(os.read(descriptor, 256))
        own_parent, own_start = _birth()
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    if not is_own or parent != own_parent or abs(started - own_start) > _SKEW_SECONDS:
        return None
    return f"rank {rank}", bool(by_itself)


def _birth() -> tuple[int, float]:
    """Returns the parent's process id, and when this process was started, in seconds since boot."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[1]), int(fields[19]) / os.sysconf("SC_CLK_TCK")
