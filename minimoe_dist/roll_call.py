"""Watches the other ranks of this node until all ranks have met; `train/peers.py` does it then.

Between the first line of a start and its process group lie seconds of imports, and a rank that is
killed there would be waited for until the time-out. Each rank listens at an abstract Unix socket of
its launch, which the kernel closes with the process, and keeps a connection to the socket of each
other rank of its node. One that is gone before another has begun is not seen by that. What happens
on other nodes is seen there, and ended by the launcher.
"""

import contextlib
import hashlib
import os
import selectors
import socket
import sys
import threading
import time
from dataclasses import dataclass

from .exit_status import ExitStatus
from .last_words import ATTEMPT, LastWords
from .runs import launches
from .runtime import Launch

_LOOK_SECONDS = 0.1
# Of one that ended by itself: what it found, the others are about to find too.
_GRACE_SECONDS = 5.0
# Of one that was gone before it said a word: it may have met all, and so has this one then.
_WORDLESS_SECONDS = 1.0
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
        self._watchers: list[socket.socket] = []  # connections of the others to this rank
        self._missing = {one for one in range(launch.local_world_size) if one != launch.local_rank}
        self._selector = selectors.DefaultSelector()
        self._closing = threading.Event()
        self._ends_at: tuple[float, str] | None = None  # when, and because of which rank
        self._thread = threading.Thread(target=self._watch, name="roll-call", daemon=True)

    def start(self) -> None:
        """Listens, and looks for the others in a thread."""
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
            except OSError:  # it has not come yet
                connection.close()
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
        how, seconds = ("ended", _GRACE_SECONDS) if other.last_word else ("died", 0.0)
        seconds = seconds if other.said else _WORDLESS_SECONDS
        words = f"{other.name} has {how} before all ranks had met"
        self._ends_at = (time.monotonic() + seconds, words)

    def _exit(self, words: str) -> None:
        reason = f"{words}; started again, the run goes on from its last checkpoint"
        LastWords(self._launch).say(RuntimeError(reason))
        launches.leave(f"failed: {words}", ExitStatus.FAILED)
        sys.stdout.flush()
        os._exit(ExitStatus.FAILED)
