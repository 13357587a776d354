"""A rendezvous that takes connections and says nothing ends a start in time, with host and port."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from minimoe_dist.process_group import LaunchError, start_process_group
from minimoe_dist.rendezvous import check_rendezvous
from minimoe_dist.runtime import Launch
from tests.commands import support
from tests.commands.support import Workshop


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a listener whose connections stand open for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def second_of_two(port: int) -> Launch:
    return Launch(1, 2, 1, 2, "127.0.0.1", port, "torchrun")


def start_on_cpus(launch: Launch, timeout_seconds: float) -> None:
    start_process_group(launch, "cpu", timeout_seconds)


@pytest.mark.parametrize("connect", [check_rendezvous, start_on_cpus])
def test_a_mute_listener_is_given_the_time_out(
    connect: Callable[[Launch, float], None], mute: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")  # what is announced is taken back
    started = time.monotonic()
    with pytest.raises(LaunchError, match=f"127.0.0.1:{mute} takes connections and does not"):
        connect(second_of_two(mute), 1.0)
    assert 1 <= time.monotonic() - started < 1 + 5


@pytest.mark.parametrize("use_libuv", [True, False])
def test_torchs_stores_answer(use_libuv: bool) -> None:
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False, use_libuv=use_libuv)
    started = time.monotonic()
    check_rendezvous(second_of_two(store.port), 60.0)
    assert time.monotonic() - started < 30
    store.set("key", "value")  # and go on
    assert store.get("key") == b"value"


def test_a_rendezvous_that_is_not_there_yet_is_no_mute_one() -> None:
    check_rendezvous(second_of_two(support.free_port()), 60.0)


@pytest.mark.parametrize(("rank", "agent"), [(1, "False"), (0, "True")])
def test_a_start_ends_before_torch_is_imported(
    rank: int, agent: str, mute: int, workshop: Workshop, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run", parallel={"timeout_seconds": 1})
    done = support.execute(
        [sys.executable, "-X", "importtime", "-m", "minimoe_dist", "distill", f"--config={recipe}"],
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_PORT=str(mute), TORCHELASTIC_USE_AGENT_STORE=agent,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    said = [line for line in lines if not line.startswith("import time:")]
    assert done.returncode == 1 and len(said) == 1, said
    assert f"rank {rank} on {socket.gethostname()}: rendezvous at 127.0.0.1:{mute}" in said[0]
    assert "torch" not in {line.split("|")[-1].strip() for line in lines}
