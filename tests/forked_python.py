"""An interpreter for job scripts whose ranks are forked from the server of tests/distributed.py.

A rank that starts from nothing imports for fifteen seconds, and a job that is requeued does so at
each start. The stand-in made here hands `-m minimoe_dist.slurm.task` to a process that is forked
from the preloaded server: with its arguments, variables, folder and streams. Signals go through,
the status comes back, and a stand-in that is killed takes its process along. Everything else that
a job script calls runs in the real interpreter.
"""

import contextlib
import json
import os
import runpy
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing import connection, reduction
from pathlib import Path
from typing import Any

from tests.distributed import _context

_LENGTH = struct.Struct("!I")
_STATUS = struct.Struct("!i")
_STAND_IN = """\
#!{python} -IS
import json, os, signal, socket, struct, sys
if sys.argv[1:3] != ["-m", "minimoe_dist.slurm.task"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
words = json.dumps([sys.argv[3:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [struct.pack("!I", len(words))], [0, 1, 2])
server.sendall(words)
(pid,) = struct.unpack("!i", server.recv(4))
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
(status,) = struct.unpack("!i", server.recv(4))
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


class _Streams:
    """Three file descriptors that go to a forked process with its arguments."""

    def __init__(self, descriptors: list[int]) -> None:
        self.descriptors = descriptors

    def __getstate__(self) -> list[Any]:
        return [reduction.DupFd(descriptor) for descriptor in self.descriptors]

    def __setstate__(self, duplicates: list[Any]) -> None:
        self.descriptors = [duplicate.detach() for duplicate in duplicates]


def _task(
    arguments: list[str], folder: str, environment: dict[str, str], streams: _Streams
) -> None:
    """The main program of a forked rank."""
    for place, descriptor in enumerate(streams.descriptors):
        os.dup2(descriptor, place)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["minimoe_dist.slurm.task", *arguments]
    runpy.run_module("minimoe_dist.slurm.task", run_name="__main__", alter_sys=True)


def _serve(client: socket.socket) -> None:
    """Forks one rank, and waits for its end or the stand-in's."""
    with client:
        head, descriptors, _, _ = socket.recv_fds(client, _LENGTH.size, 3)
        (length,) = _LENGTH.unpack(head)
        words = b""
        while len(words) < length:
            words += client.recv(length - len(words))
        process = _context().Process(target=_task, args=(*json.loads(words), _Streams(descriptors)))
        process.start()
        for descriptor in descriptors:
            os.close(descriptor)
        client.sendall(_STATUS.pack(process.pid))
        connection.wait([process.sentinel, client])
        if process.is_alive():
            process.kill()
        process.join()
        with contextlib.suppress(BrokenPipeError):
            client.sendall(_STATUS.pack(process.exitcode))


@contextlib.contextmanager
def forked_python() -> Iterator[str]:
    """The path of a stand-in for the interpreter, which works as long as the context does."""
    # Sockets' paths may have some hundred characters only, less than pytest's folders take.
    with tempfile.TemporaryDirectory(prefix="python.") as folder:
        address = f"{folder}/socket"
        stand_in = Path(folder, "python")
        stand_in.write_text(_STAND_IN.format(python=sys.executable, address=address))
        stand_in.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()

            def accept() -> None:
                with contextlib.suppress(OSError):  # the listener is closed at the end
                    while True:
                        client, _ = listener.accept()
                        threading.Thread(target=_serve, args=(client,), daemon=True).start()

            threading.Thread(target=accept, daemon=True).start()
            yield str(stand_in)
            listener.shutdown(socket.SHUT_RDWR)
