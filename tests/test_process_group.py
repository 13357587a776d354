"""Process groups: bounded rendezvous, devices, and what goes wrong told in one line."""

import socket
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from minimoe_dist import process_group
from minimoe_dist.process_group import LaunchError, start_process_group
from minimoe_dist.runtime import DeviceType, Launch

_LAUNCH = {name: "0" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_process_alone_gets_a_group_without_a_port() -> None:
    code = """
        import torch, torch.distributed as dist
        from minimoe_dist import process_group, runtime
        launch = runtime.detect_launch({})
        device = process_group.start_process_group(launch, runtime.prepare_environment(True), 10)
        ones = torch.ones(1)
        dist.all_reduce(ones)
        process_group.stop_process_group()
        print(device, ones.item(), dist.is_initialized())
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert found.stdout.split() == ["cpu", "1.0", "False"], found.stderr


@pytest.fixture
def second_of_two_gpus(monkeypatch: pytest.MonkeyPatch) -> Launch:
    """A launch for which torch shows two GPUs; what it announces is taken back."""
    for name, value in _LAUNCH.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return Launch(0, 1, 1, 2, "127.0.0.1", 1, "slurm")


@pytest.mark.parametrize(
    ("device_type", "device_id"), [("cuda", torch.device("cuda", 1)), ("cpu", None)]
)
def test_nccl_is_told_its_device_and_gloo_none(
    device_type: DeviceType,
    device_id: torch.device | None,
    second_of_two_gpus: Launch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **group: given.update(group)
    )
    start_process_group(second_of_two_gpus, device_type, 10)
    assert given.get("device_id") == device_id


def test_nccl_that_does_not_connect_is_told_in_one_line(
    second_of_two_gpus: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(backend: str, **group: object) -> None:
        raise torch.distributed.DistBackendError("NCCL error: unhandled system error\nLast error:")

    monkeypatch.setattr(torch.distributed, "init_process_group", fail)
    with pytest.raises(
        LaunchError, match=r"NCCL cannot connect cuda:1 .*system error\)"
    ) as failure:
        start_process_group(second_of_two_gpus, "cuda", 10)
    assert "\n" not in str(failure.value)


def test_unreachable_rendezvous_ends_in_time_with_host_and_port() -> None:
    port = free_port()
    started = time.monotonic()
    with pytest.raises(LaunchError, match=f"127.0.0.1:{port}"):
        start_process_group(Launch(1, 2, 1, 2, "127.0.0.1", port, "slurm"), "cpu", 1.0)
    assert time.monotonic() - started < 5


def test_taken_port_is_refused_with_host_and_port() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=f"cannot listen at 127.0.0.1:{port}"):
            start_process_group(Launch(0, 2, 0, 2, "127.0.0.1", port, "slurm"), "cpu", 1.0)


def test_more_ranks_than_gpus_is_refused() -> None:
    with pytest.raises(LaunchError, match="2 GPUs visible"):
        process_group._device_index(Launch(3, 4, 3, 4, "h", 1, "torchrun"), 2)


def test_own_gpu_of_each_process_is_the_first() -> None:
    assert process_group._device_index(Launch(3, 4, 3, 4, "h", 1, "slurm"), 1) == 0
