"""Maps a function over items in several processes, in order and with bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from ..exit_status import ExitStatus

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_WAITING_PER_PROCESS = 3

# Set in worker processes only: the function came to them by fork, as it need not be picklable.
_worker_function: Callable[[Any], Any] | None = None


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
    pool = ProcessPoolExecutor(
        num_processes,
        multiprocessing.get_context("fork"),
        initializer=_start_worker,
        initargs=(function, os.getpid()),
    )
    try:
        waiting: deque[Future[Any]] = deque()
        while True:
            free = num_processes * _WAITING_PER_PROCESS - len(waiting)
            waiting.extend(pool.submit(_work, item) for item in islice(remaining, free))
            if not waiting:
                return
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process died (killed, or out of memory); use fewer processes and start again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(function: Callable[[Any], Any], parent: int) -> None:
    global _worker_function
    _worker_function = function
    # An interrupt reaches the whole group: the parent ends the workers, they need not shout.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """Ends the process when its parent is gone: a killed parent cannot tell its workers."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(ExitStatus.FAILED)


def _work(item: Any) -> Any:
    assert _worker_function is not None
    return _worker_function(item)
