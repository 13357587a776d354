"""Watches the other ranks: a run ends when one of them is gone, instead of waiting for it.

Every rank keeps a connection to rank 0, and both sides say something over it once a tick. The
kernel closes the connection of a killed process at once; a stopped process or a lost node falls
silent. Rank 0 says which rank is gone and why, and tells the others, who say it where rank 0 is the
one that is gone. The main thread then leaves by the error of its collective; where that hangs, as
NCCL's do, the watching thread ends the process. A rank that fails with words of its own hears
whether rank 0 has said them, and says them itself if not.
"""

import contextlib
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch.distributed as dist

from ..exit_status import ExitStatus
from ..last_words import LastWords, tell_torchrun
from ..runs import launches
from ..runtime import Launch, logger
from .agreement import decided_by_rank_0

_LONGEST_TICK = 1.0
_CONNECT_SECONDS, _ACCEPT_SECONDS = 2.0, 8.0
# For the main thread to end by itself, and for it to learn whether a peer is behind its error.
_GRACE_SECONDS, _NOTICE_SECONDS = 0.75, 4.0
_PARTING_SECONDS = 1.0
_BEAT, _BYE, _LOST, _SAID = "beat", "bye", "lost", "said"
_FAILED = "failed: "
_GO_ON = ": stopping; started again, the run goes on from its last checkpoint"
_log = logger("train.peers")


@dataclass
class _Peer:
    """The other end of a connection; `silent_ticks` counts since it was last heard."""

    rank: int
    connection: socket.socket
    host: str
    received: bytes = b""
    silent_ticks: int = 0

    def send(self, *parts: str) -> None:
        """Sends one message; a peer that does not read is found out by its silence."""
        try:
            self.connection.send((" ".join(parts) + "\n").encode())
        except OSError:
            return

    def receive(self) -> list[str] | None:
        """Returns the messages since the last call; None where the connection is closed."""
        try:
            data = self.connection.recv(4096)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self.silent_ticks = 0
        *lines, self.received = (self.received + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]

    def close(self, deadline: float) -> bytes:
        """Closes the connection once the other end has closed it, or at ``deadline``.

        Closed with a message unread, it would be reset, and the last word be lost on its way.

        Returns:
            What the other end still said.
        """
        with self.connection, contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(max(0.01, deadline - time.monotonic()))
            while (data := self.connection.recv(4096)) and time.monotonic() < deadline:
                self.received += data
        return self.received


class PeerWatch:
    """Ends this process with status 1, and a line that names the rank, when another one is lost.

    A context manager around everything that the ranks do together; entering it is a collective.
    Leaving it by an error tells the others the error's text; the error's ``is_said`` then tells
    whether rank 0 has said it.

    Args:
        launch: of this process.
        timeout_seconds: how long a rank may give no sign of life.
    """

    def __init__(self, launch: Launch, timeout_seconds: float) -> None:
        self._launch = launch
        self._timeout_seconds = timeout_seconds
        # Silence counts in ticks of our own: a suspended machine stops all ranks, and no one is
        # lost then.
        self._tick = min(_LONGEST_TICK, timeout_seconds / 5)
        self._peers: dict[int, _Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._lost = threading.Event()
        self._closing = threading.Event()
        self._reason, self._says_reason = "", False
        self._failures: dict[int, str] = {}  # of other ranks, as they told them
        self._said: set[str] = set()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._launch.world_size == 1:
            return self
        self._connect()
        for peer in self._peers.values():
            peer.connection.setblocking(False)
            self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        self._thread = threading.Thread(target=self._watch, name="peer-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is None:
            return
        # torch reports a collective that failed by the bare type.
        by_collective = type(error) is RuntimeError or isinstance(error, dist.DistError)
        if by_collective and self._lost.wait(_NOTICE_SECONDS):
            self._exit()
        self._closing.set()
        self._thread.join()
        if error is None:
            self._part(_BYE)
        else:
            self._say_failures(own=_one_line(error))
            words = f"{_FAILED}{_one_line(error)} (on {socket.gethostname()})"
            if _SAID in self._part(_LOST, str(self._launch.rank), words):
                error.is_said = True  # type: ignore[attr-defined]
        self._selector.close()

    def _part(self, *words: str) -> list[str]:
        """Tells all peers the last words and closes; returns the last words of rank 0."""
        for peer in self._peers.values():
            peer.send(*words)
        deadline = time.monotonic() + _PARTING_SECONDS
        heard = {rank: peer.close(deadline) for rank, peer in self._peers.items()}
        return heard.get(0, b"").decode("utf-8", "replace").split("\n")

    def _say_failures(self, own: str | None = None) -> None:
        """Says on rank 0 why others failed, unless by ``own``, and tells them that it is said."""
        for rank, failure in self._failures.items() if self._launch.rank == 0 else ():
            if own is None or not failure.startswith(f"{_FAILED}{own} (on "):
                self._say(f"rank {rank} {failure}")
            self._peers[rank].send(_SAID)

    def _say(self, reason: str) -> None:
        tell_torchrun(reason)
        if reason not in self._said and LastWords(self._launch).claims(reason):
            _log.error("%s", reason)
        self._said.add(reason)

    def _connect(self) -> None:
        """Connects rank 0 with each other rank; a collective."""
        launch = self._launch
        server: socket.socket | None = None

        def listen() -> tuple[list[str], int, str, str]:
            nonlocal server
            server = _listening_socket(launch.world_size)
            port, token = server.getsockname()[1], secrets.token_hex(16)
            return _local_addresses(launch), port, token, socket.gethostname()

        addresses, port, token, host = decided_by_rank_0(listen)
        if server is not None:
            with server:
                self._accept_peers(server, token)
            missing = [rank for rank in range(1, launch.world_size) if rank not in self._peers]
            if missing:
                _log.warning(
                    "ranks %s did not reach rank 0 at port %d of %s: only the time-out of a "
                    "collective will tell if one is lost", missing, port, addresses,
                )  # fmt: skip
        else:
            self._connect_to_rank_0(addresses, port, token, host)
        dist.barrier()

    def _accept_peers(self, server: socket.socket, token: str) -> None:
        deadline = time.monotonic() + _ACCEPT_SECONDS
        while len(self._peers) < self._launch.world_size - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
                connection.settimeout(_CONNECT_SECONDS)
                words = connection.makefile().readline().split()
                peer_token, rank, host = words if len(words) == 3 else ("", "", "")
            except OSError:
                if time.monotonic() > deadline:
                    return
                continue
            if secrets.compare_digest(peer_token, token) and rank.isdigit():
                connection.sendall(b"\n")
                self._peers[int(rank)] = _Peer(int(rank), connection, host)
            else:
                connection.close()

    def _connect_to_rank_0(self, addresses: list[str], port: int, token: str, host: str) -> None:
        greeting = f"{token} {self._launch.rank} {socket.gethostname()}\n".encode()
        for address in addresses:
            try:
                connection = socket.create_connection((address, port), _CONNECT_SECONDS)
                connection.sendall(greeting)
                if connection.recv(1) == b"\n":
                    self._peers[0] = _Peer(0, connection, host)
                    return
            except OSError:
                continue

    def _watch(self) -> None:
        next_tick = time.monotonic()
        while not self._closing.is_set():
            wait = min(next_tick - time.monotonic(), 0.1)
            for key, _ in self._selector.select(max(0.0, wait)):
                self._read_messages(key.data)
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + self._tick
                self._send_heartbeats()
            if self._lost.is_set():
                break
        else:
            return
        if not self._closing.wait(_GRACE_SECONDS):
            self._exit()

    def _send_heartbeats(self) -> None:
        for key in list(self._selector.get_map().values()):
            peer: _Peer = key.data
            peer.send(_BEAT)
            peer.silent_ticks += 1
            if peer.silent_ticks * self._tick > self._timeout_seconds:
                silence = f"has given no sign of life for {self._timeout_seconds:g} s"
                return self._mark_lost(peer.rank, f"{silence} on {peer.host}{_GO_ON}")

    def _read_messages(self, peer: _Peer) -> None:
        messages = peer.receive()
        if messages is None:
            return self._mark_lost(peer.rank, f"has died on {peer.host}{_GO_ON}")
        for message in messages:
            if message == _BYE:
                self._selector.unregister(peer.connection)
                peer.connection.close()
                return
            kind, _, rest = message.partition(" ")
            if kind == _LOST:
                rank, _, reason = rest.partition(" ")
                if int(rank) == peer.rank:
                    self._failures[peer.rank] = reason
                return self._mark_lost(int(rank), reason)

    def _mark_lost(self, rank: int, reason: str) -> None:
        if self._lost.is_set():
            return
        self._reason = f"rank {rank} {reason}"
        # What rank 0 fails by it says itself.
        self._says_reason = self._launch.rank == 0 or (rank == 0 and not reason.startswith(_FAILED))
        if self._launch.rank == 0:
            for peer in self._peers.values():
                peer.send(_LOST, str(rank), reason)
        self._lost.set()

    def _exit(self) -> None:
        """Ends the process at once: with a rank lost, tidying up would wait for it."""
        if self._says_reason:
            self._say(self._reason)
        self._say_failures()
        launches.leave(f"failed: {self._reason}", ExitStatus.FAILED)
        sys.stdout.flush()
        os._exit(ExitStatus.FAILED)


def _listening_socket(backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
        )
    return socket.create_server(("", 0), backlog=backlog)


def _local_addresses(launch: Launch) -> list[str]:
    """Returns where the others may reach this process, which need not be the rendezvous' host."""
    addresses = [launch.master_addr]
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Sends nothing; tells which of our addresses faces the rendezvous.
            probe.connect((launch.master_addr, launch.master_port))
            addresses.append(probe.getsockname()[0])
    except OSError:
        pass
    return [*dict.fromkeys([*addresses, socket.gethostname()])]


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
