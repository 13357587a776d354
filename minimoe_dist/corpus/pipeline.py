"""Maps a function over items in several processes, in order and with bounded memory.

Each worker has a connection of its own. The standard library's pool has one for all, with locks: a
worker that is killed while it holds one, or in the middle of a result, leaves all others waiting.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from ..exit_status import ExitStatus

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_WAITING_PER_PROCESS = 3
_LEAVING_SECONDS = 5.0


def ordered_map(
    function: Callable[[_Item], _Result], items: Iterable[_Item], num_processes: int
) -> Generator[_Result, None, None]:
    """Yields `function(item)` for each item, in the order of the items.

    Items are taken only as results are consumed, a few for each process ahead. With one process
    everything happens in the caller's.

    Raises:
        RuntimeError: a worker process died.
        Exception: what the function raised.
    """
    assert num_processes >= 1
    if num_processes == 1:
        yield from map(function, items)
        return
    remaining = iter(items)
    # The function comes to workers by fork, as it need not be picklable.
    workers = [_start_worker(function) for _ in range(num_processes)]
    outcomes: dict[int, tuple[bool, Any]] = {}
    taken = 0
    try:
        for number in itertools.count():
            while taken - number < num_processes * _WAITING_PER_PROCESS:
                worker = min(workers, key=lambda worker: len(worker.pending))
                if not _give_next(worker, taken, remaining):
                    break
                taken += 1
            if number == taken:
                return
            while number not in outcomes:
                _receive(workers, outcomes)
            is_result, value = outcomes.pop(number)
            if not is_result:
                raise value
            yield value
    finally:
        _end(workers)


@dataclass
class _Worker:
    """A worker process, the parent's end of its connection, and the items that it has."""

    process: BaseProcess
    connection: Connection
    pending: set[int] = field(default_factory=set)


def _start_worker(function: Callable[[Any], Any]) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run_worker, args=(function, theirs, os.getpid()), daemon=True)
    process.start()
    theirs.close()  # or its end would not be seen
    return _Worker(process, ours)


def _give_next(worker: _Worker, number: int, items: Iterable[Any]) -> bool:
    """Gives a worker the next item; returns False where there is none."""
    for item in items:
        try:
            worker.connection.send((number, item))
        except OSError as error:
            raise _died() from error
        worker.pending.add(number)
        return True
    return False


def _receive(workers: list[_Worker], outcomes: dict[int, tuple[bool, Any]]) -> None:
    """Waits for workers, and takes one outcome of each that has some."""
    ready = wait([place for w in workers for place in (w.connection, w.process.sentinel)])
    heard = [worker for worker in workers if worker.connection in ready]
    if not heard:
        raise _died()
    for worker in heard:
        try:
            number, is_result, value = worker.connection.recv()
        except (EOFError, OSError) as error:
            raise _died() from error
        worker.pending.discard(number)
        outcomes[number] = is_result, value


def _died() -> RuntimeError:
    return RuntimeError(
        "a worker process died (killed, or out of memory); use fewer processes and start again"
    )


def _end(workers: list[_Worker]) -> None:
    """Lets workers without work leave, and ends those with some, whose results nobody wants."""
    for worker in workers:
        if worker.pending:
            worker.process.kill()
        else:
            try:
                worker.connection.send(None)
            except OSError:
                continue  # it is gone already
    for worker in workers:
        worker.process.join(_LEAVING_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()
        worker.process.close()


def _run_worker(function: Callable[[Any], Any], connection: Connection, parent: int) -> None:
    # An interrupt reaches the whole group: the parent ends the workers, they need not shout.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    # Items are read at once, so that the parent never waits while this process computes.
    given: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read_items, args=(connection, given), daemon=True).start()
    while (numbered := given.get()) is not None:
        number, item = numbered
        try:
            outcome = number, True, function(item)
        except Exception as error:
            outcome = number, False, error
        try:
            connection.send(outcome)
        except OSError:
            return  # the parent wants no more
        except Exception as error:  # what cannot be pickled
            connection.send((number, False, error))


def _read_items(connection: Connection, given: queue.SimpleQueue[Any]) -> None:
    """Hands on what the parent sends, until it sends None or leaves."""
    numbered: Any = True
    while numbered is not None:
        try:
            numbered = connection.recv()
        except (EOFError, OSError):
            numbered = None
        given.put(numbered)


def _leave_with(parent: int) -> None:
    """Ends the process when its parent is gone: a killed parent cannot tell its workers."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(ExitStatus.FAILED)
