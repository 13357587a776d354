"""What every command on several ranks holds while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ..errors import UserError
from ..runtime import (
    Launch,
    StopRequest,
    prepare_environment,
    start_process_group,
    stop_process_group,
)
from .agreement import decided_by_rank_0
from .peers import PeerWatch


@dataclass(frozen=True)
class Scope:
    """A started process group.

    Attributes:
        device: of this rank.
        stop: the signals that asked for an end, if any.
    """

    device: torch.device
    stop: StopRequest


@contextmanager
def started(launch: Launch, *, use_cpu: bool, timeout_seconds: int) -> Iterator[Scope]:
    """The process group of a launch, its watch over lost ranks, and its signals.

    Args:
        launch: the processes that were started.
        use_cpu: stay on CPUs although there is a GPU.
        timeout_seconds: of a collective, after which a silent rank is named and all end.
    """
    device_type = prepare_environment(use_cpu)
    device = start_process_group(launch, device_type, timeout_seconds)
    try:
        with PeerWatch(launch, timeout_seconds), StopRequest() as stop:
            yield Scope(device, stop)
    finally:
        stop_process_group()


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Holds the folder's lock on rank 0; the kernel frees it when a process dies.

    Raises:
        UserError: another run holds it.
    """
    lock = FileLock(folder / "run.lock")

    def acquire() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"output_dir: {folder} is used by another run that is alive: stop that one or "
                "choose another folder"
            ) from None

    decided_by_rank_0(acquire)
    try:
        yield
    finally:
        lock.release()
