"""Connects the processes of a run, gloo on CPUs and NCCL on GPUs; each failure is one line.

Nothing here imports torch at module level: a rendezvous that cannot be reached is told before the
seconds that importing it takes.
"""

import os
import socket
import sys
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from .runtime import DeviceType, Launch
from .waiting import within

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

_CONNECT_SECONDS = 5.0


class LaunchError(RuntimeError):
    """Says in one line, with host and port, why the processes of a run could not connect."""


def start_process_group(
    launch: Launch, device_type: DeviceType, timeout_seconds: float
) -> "torch.device":
    """Connects all ranks (gloo on CPUs, NCCL on GPUs) and returns this rank's device.

    Args:
        launch: from `detect_launch`.
        device_type: from `prepare_environment`.
        timeout_seconds: limit for the rendezvous and for every later collective.

    Raises:
        LaunchError: the rendezvous cannot be reached, its port is taken, ranks are missing, or NCCL
            does not connect.
    """
    deadline = time.monotonic() + timeout_seconds
    own_server = _has_own_server(launch)
    if launch.world_size > 1:
        _wait_for_rendezvous(launch, own_server, timeout_seconds)
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", _device_index(launch, torch.cuda.device_count()))
        torch.cuda.set_device(device)
    _announce(launch, device.index or 0 if device_type == "cuda" else launch.local_rank)
    connect = partial(_connect, launch, device, timedelta(seconds=timeout_seconds))
    try:
        if launch.world_size == 1:
            connect()
        else:
            if launch.rank or not own_server:
                # Importing torch may have taken all of a short time.
                seconds = max(deadline - time.monotonic(), min(timeout_seconds, _CONNECT_SECONDS))
                within(seconds, partial(_probe, launch, timedelta(seconds=seconds)))
            within(timeout_seconds + 1, connect)
    except TimeoutError:
        raise mute_rendezvous(launch, timeout_seconds) from None
    except dist.DistBackendError as error:
        raise LaunchError(
            f"NCCL cannot connect {device} to the other {launch.world_size - 1} ranks "
            f"({str(error).splitlines()[0]}); compare NCCL's version and interface "
            "(NCCL_SOCKET_IFNAME) on the nodes"
        ) from error
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise LaunchError(
            f"rendezvous of {launch.world_size} ranks at {_address(launch)} failed within "
            f"{timeout_seconds:g} s ({reason}); check that every rank was started and that the "
            "port is open between the nodes"
        ) from error
    return device


def _connect(launch: Launch, device: "torch.device", timeout: timedelta) -> None:
    """Joins the process group; may run in a thread of its own."""
    import torch
    import torch.distributed as dist

    options: dict[str, Any] = {"rank": launch.rank, "world_size": launch.world_size}
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of this thread
        # Or NCCL guesses the device from the rank, and warns of that at each barrier.
        options["device_id"] = device
    store = _store(launch, timeout)
    if store is not None:
        options["store"] = store
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timeout, **options)


def _store(launch: Launch, timeout: timedelta) -> "dist.Store | None":
    """Opens what the ranks tell each other their addresses by; None leaves that to torch."""
    import torch.distributed as dist

    if launch.world_size == 1:
        return dist.HashStore()
    if _has_own_server(launch):
        address = (launch.master_addr, launch.master_port)
        return dist.TCPStore(*address, launch.world_size, launch.rank == 0, timeout)
    if launch.local_world_size == launch.world_size:
        # torchrun keeps its server when it starts lost ranks again, and PyTorch 2.13 would find
        # the addresses of those that have died there.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return dist.PrefixStore(f"attempt_{attempt}", _client(launch, timeout))
    return None


def _client(launch: Launch, timeout: timedelta) -> "dist.Store":
    """Connects to the server of the rendezvous."""
    import torch.distributed as dist

    address = (launch.master_addr, launch.master_port)
    return dist.TCPStore(*address, None, False, timeout, wait_for_workers=False)


def _probe(launch: Launch, timeout: timedelta) -> None:
    """Returns where the server of the rendezvous answers."""
    _client(launch, timeout)


def _has_own_server(launch: Launch) -> bool:
    """Whether rank 0 serves the rendezvous: under torchrun its agent does already."""
    return launch.world_size > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _address(launch: Launch) -> str:
    return f"{launch.master_addr}:{launch.master_port}"


def mute_rendezvous(launch: Launch, timeout_seconds: float) -> LaunchError:
    """Returns the error for a rendezvous that does not answer within a time."""
    return LaunchError(
        f"rendezvous at {launch.master_addr}:{launch.master_port} takes connections and does not "
        f"answer within {timeout_seconds:g} s; rank 0 is stopped, or another program listens "
        "there: set MASTER_PORT (torchrun, deepspeed: --master_port) to a free port"
    )


def stop_process_group() -> None:
    """Closes the process group where there is one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _wait_for_rendezvous(launch: Launch, own_server: bool, timeout_seconds: float) -> None:
    """Fails with one line where torch would print stack traces: a taken port, a silent host."""
    rendezvous = _address(launch)
    if own_server and launch.rank == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", launch.master_port))
            except OSError as error:
                raise LaunchError(
                    f"cannot listen at {rendezvous} ({error.strerror}); "
                    "set MASTER_PORT (torchrun, deepspeed: --master_port) to a free port"
                ) from error
        return
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            address = (launch.master_addr, launch.master_port)
            seconds = min(_CONNECT_SECONDS, timeout_seconds)
            socket.create_connection(address, timeout=seconds).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"no rendezvous of {launch.world_size} ranks at {rendezvous} within "
                    f"{timeout_seconds:g} s ({error.strerror or error}); check that rank 0 "
                    "runs and that MASTER_ADDR and MASTER_PORT are right"
                ) from error
        time.sleep(min(0.2, timeout_seconds / 10))


def _device_index(launch: Launch, device_count: int) -> int:
    """Returns the local rank, or 0 where the launcher shows each process only its own GPU."""
    if device_count == 1:
        return 0
    if launch.local_rank >= device_count:
        raise LaunchError(
            f"rank {launch.rank}: local rank {launch.local_rank} but {device_count} GPUs visible; "
            "start at most one process per GPU, or give --use_cpu"
        )
    return launch.local_rank


def _announce(launch: Launch, device_index: int) -> None:
    """Sets the variables from which DeepSpeed reads the launch (without them it looks for MPI)."""
    os.environ["RANK"] = str(launch.rank)
    os.environ["WORLD_SIZE"] = str(launch.world_size)
    os.environ["LOCAL_RANK"] = str(device_index)
    os.environ["MASTER_ADDR"] = launch.master_addr
    os.environ["MASTER_PORT"] = str(launch.master_port)
