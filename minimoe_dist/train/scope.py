"""Holds what every command on several ranks needs while it runs."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from .. import roll_call
from ..checkpoints.writing import Ranks
from ..exit_status import ExitStatus
from ..last_words import tell_torchrun
from ..process_group import start_process_group, stop_process_group
from ..runs import launches
from ..runs.folder import RunFolder
from ..runs.locks import locked
from ..runtime import Launch, StopRequest, logger, prepare_environment
from .agreement import StopRequestedError, decided_by_rank_0
from .background import saving_ranks
from .loop import TrainingDivergedError
from .peers import PeerWatch

_log = logger("train.scope")


@dataclass(frozen=True)
class Scope:
    """A started process group.

    Attributes:
        device: of this rank.
        stop: the signals that asked for an end, if any.
        saving: all ranks, as the threads that write checkpoints talk to each other.
    """

    device: torch.device
    stop: StopRequest
    saving: Ranks


@contextmanager
def open_scope(launch: Launch, *, use_cpu: bool, timeout_seconds: int) -> Iterator[Scope]:
    """Opens the process group of a launch, its watch over lost ranks, and its signals.

    Args:
        launch: the processes that were started.
        use_cpu: stay on CPUs although there is a GPU.
        timeout_seconds: of a collective, after which a silent rank is named and all end.
    """
    device_type = prepare_environment(use_cpu)
    device = start_process_group(launch, device_type, timeout_seconds)
    try:
        with PeerWatch(launch, timeout_seconds), StopRequest() as stop:
            roll_call.end(have_met=True)
            _note_hosts(launch)
            yield Scope(device, stop, saving_ranks(timeout_seconds))
    finally:
        stop_process_group()


def run_resumable(
    launch: Launch, *, use_cpu: bool, timeout_seconds: int, work: Callable[[Scope], ExitStatus]
) -> ExitStatus:
    """Does work that saves where it is asked to stop, and that the same command goes on with.

    Ends the process with 1 where another rank is lost.

    Args:
        launch: the processes that were started.
        use_cpu: see :func:`open_scope`.
        timeout_seconds: see :func:`open_scope`.
        work: called in the process group.

    Returns:
        What ``work`` does; ``FAILED`` where a loss stayed not finite.
    """
    with open_scope(launch, use_cpu=use_cpu, timeout_seconds=timeout_seconds) as scope:
        try:
            status = work(scope)
        except StopRequestedError:
            status = ExitStatus.STOPPED
        except TrainingDivergedError as error:
            if launch.rank == 0:
                _log.error("%s", error)
            tell_torchrun(str(error))
            launches.leave(f"failed: {error}", ExitStatus.FAILED)
            return ExitStatus.FAILED
        if status == ExitStatus.STOPPED:
            # A late signal must not change the status.
            scope.stop.ignore_from_now_on()
            name = scope.stop.signal_name or "a signal to another rank"
            launches.leave(f"stopped by {name}", status)
        return status


def _note_hosts(launch: Launch) -> None:
    """Notes where all ranks run; a collective."""
    hosts: list[str] = [""] * launch.world_size
    dist.all_gather_object(hosts, socket.gethostname())
    launches.note_hosts(hosts)


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Holds the folder's lock on rank 0; the kernel frees it when a process dies.

    Raises:
        UserError: another run holds it, or a name in it is taken by something else.
    """
    with ExitStack() as stack:

        def acquire() -> None:
            RunFolder(folder).check()
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))

        decided_by_rank_0(acquire)
        yield
