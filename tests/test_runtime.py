"""Launch detection, device choice, signals, logs."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from minimoe_dist import runtime
from minimoe_dist.runtime import (
    Launch,
    StopRequest,
    detect_launch,
    first_host,
    prepare_environment,
)

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29511",
}
SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_NTASKS": "5",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "localhost,n2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}


def test_no_launcher_means_alone() -> None:
    launch = detect_launch({})
    assert (launch.rank, launch.world_size, launch.launcher) == (0, 1, "alone")


def test_torchrun_is_detected() -> None:
    assert detect_launch(TORCHRUN) == Launch(3, 4, 1, 2, "10.0.0.1", 29511, "torchrun")


def test_deepspeed_is_detected() -> None:
    environ = {**TORCHRUN, "CROSS_SIZE": "2", "CROSS_RANK": "1", "LOCAL_SIZE": "2"}
    del environ["LOCAL_WORLD_SIZE"]
    launch = detect_launch(environ)
    assert (launch.launcher, launch.local_world_size) == ("deepspeed", 2)


def test_slurm_task_is_detected() -> None:
    launch = detect_launch(SLURM)
    assert (launch.rank, launch.world_size, launch.local_rank) == (2, 5, 0)
    assert (launch.local_world_size, launch.launcher) == (2, "slurm")
    assert launch.master_addr == "localhost"
    assert 10_000 <= launch.master_port < 30_000


def test_slurm_batch_shell_is_no_task() -> None:
    environ = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert detect_launch(environ).launcher == "alone"


def test_torchrun_wins_over_slurm() -> None:
    assert detect_launch({**SLURM, **TORCHRUN}).launcher == "torchrun"


@pytest.mark.parametrize("variable", ["SLURM_STEP_ID", "SLURM_RESTART_COUNT"])
def test_slurm_steps_and_restarts_meet_at_different_ports(variable: str) -> None:
    other = detect_launch({**SLURM, variable: "1"})
    assert other.master_port != detect_launch(SLURM).master_port


def test_step_counts_its_own_tasks() -> None:
    assert detect_launch({**SLURM, "SLURM_STEP_NUM_TASKS": "3"}).world_size == 3


def test_node_that_does_not_resolve_is_asked_of_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "NodeName=$3 NodeAddr=127.0.0.9 NodeHostName=x"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    launch = detect_launch({**SLURM, "SLURM_STEP_NODELIST": "no-such-node[3-4]"})
    assert launch.master_addr == "127.0.0.9"


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[3-5,9]", "n3"),
        ("rack[2-3]n[01-04,7],x", "rack2n01"),
        ("a-b[007]", "a-b007"),
    ],
)
def test_first_host_of_a_node_list(node_list: str, host: str) -> None:
    assert first_host(node_list) == host


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"MASTER_PORT": None}, "MASTER_PORT is not set"),
        ({"RANK": "x"}, "RANK='x' is not a whole number"),
        ({"RANK": "4"}, "rank 4"),
    ],
)
def test_broken_launch_is_refused(change: dict[str, str | None], words: str) -> None:
    environ = {name: value for name, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=words):
        detect_launch(environ)


def test_cpu_is_chosen_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "TORCH_GLOO_LAZY_INIT"):
        monkeypatch.setenv(name, "0")
    assert [prepare_environment(use_cpu=True), prepare_environment(use_cpu=False)] == ["cpu", "cpu"]
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    assert os.environ["TORCH_GLOO_LAZY_INIT"] == "0"


def test_bfloat16_products_of_ever_other_shapes_keep_no_memory():
    program = """
        from minimoe_dist.runtime import prepare_environment
        prepare_environment(use_cpu=True)
        import torch

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

        weight = torch.ones(256, 256, dtype=torch.bfloat16)
        rows = torch.ones(300, 256, dtype=torch.bfloat16)
        for count in range(1, 100):
            rows[:count] @ weight
        before = resident()
        for count in range(100, 300):
            rows[:count] @ weight
        print(resident() - before)
    """
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    environ = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 50  # MiB; some 100 where all code is kept


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpus_do_not_count(visible: str) -> None:
    assert not runtime._gpu_visible({"CUDA_VISIBLE_DEVICES": visible})


def test_torch_build_is_read_without_importing_torch() -> None:
    code = (
        "import sys; from minimoe_dist import runtime; has = runtime._torch_has_cuda();"
        "loaded = 'torch' in sys.modules; import torch;"
        "print(loaded, has == (torch.version.cuda is not None))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.split() == ["False", "True"], found.stderr


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_signal_asks_for_a_stop(number: signal.Signals) -> None:
    with _hangup(signal.SIG_DFL), StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert (stop.requested, stop.signal_name) == (True, number.name)


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    with _hangup(signal.SIG_IGN), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested


@contextlib.contextmanager
def _hangup(handler: signal.Handlers) -> Iterator[None]:
    """What SIGHUP does, whatever the tests themselves were started with."""
    former = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, former)


def test_second_signal_changes_nothing() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_name == "SIGUSR1"


def test_former_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("rank", "lines"), [(0, 2), (1, 1)])
def test_only_rank_zero_logs_below_errors(rank: int, lines: int) -> None:
    code = (
        "from minimoe_dist.runtime import Launch, logger, start_logging;"
        f"start_logging(Launch({rank}, 2, {rank}, 2, 'h', 1, 'slurm'));"
        "logger('train').info('step'); logger('train').error('gone')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert len(found.stderr.splitlines()) == lines
    assert f"ERROR rank {rank} minimoe_dist.train: gone" in found.stderr
