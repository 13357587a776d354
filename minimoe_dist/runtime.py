"""Sets up a process: its launch, device, signals and log.

One command runs alone, under ``torchrun``, under ``deepspeed`` and under ``srun``: `detect_launch`
reads which from the environment, and `prepare_environment` chooses the device before torch is
imported. Nothing here imports torch.
"""

import glob
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

from .errors import UserError

DeviceType = Literal["cpu", "cuda"]
Launcher = Literal["alone", "torchrun", "deepspeed", "slurm"]

_ALONE_PORT = 29500  # only announced: a process alone opens no port
_FIRST_SLURM_PORT, _SLURM_PORTS = 10_000, 20_000  # below Linux's ephemeral ports


@dataclass(frozen=True)
class Launch:
    """The place of this process among all, and the address where they meet.

    Attributes:
        rank: rank of this process among all, from 0.
        world_size: number of processes on all nodes.
        local_rank: rank of this process on its node, from 0.
        local_world_size: number of processes on this node.
        master_addr: host name or address of rank 0's node.
        master_port: TCP port of the rendezvous.
        launcher: who started the process.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int
    launcher: Launcher


def detect_launch(environ: Mapping[str, str]) -> Launch:
    """Reads the launch from environment variables; torchrun's win over Slurm's.

    Slurm's count only inside a step (``SLURM_STEP_ID``): the batch shell has ``SLURM_NTASKS`` too.

    Raises:
        UserError: a variable is missing, not a number, or contradicts another.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        launch = _torch_launch(environ)
    elif "SLURM_STEP_ID" in environ and "SLURM_PROCID" in environ:
        launch = _slurm_launch(environ)
    else:
        launch = Launch(0, 1, 0, 1, "127.0.0.1", _ALONE_PORT, "alone")
    if not 0 <= launch.rank < launch.world_size or launch.local_rank < 0:
        raise UserError(
            f"environment: rank {launch.rank} (local {launch.local_rank}) does not fit a world of "
            f"{launch.world_size}; start the processes with torchrun, deepspeed or srun"
        )
    return launch


def _integer(environ: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environ.get(name, default)
    if text is None:
        raise UserError(
            f"environment: {name} is not set beside RANK or WORLD_SIZE; start with torchrun, "
            "deepspeed or srun, or unset them all to run alone"
        )
    try:
        return int(text)
    except ValueError:
        raise UserError(f"environment: {name}={text!r} is not a whole number") from None


def _torch_launch(environ: Mapping[str, str]) -> Launch:
    world_size = _integer(environ, "WORLD_SIZE")
    local_size = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environ else "LOCAL_SIZE"
    return Launch(
        rank=_integer(environ, "RANK"),
        world_size=world_size,
        local_rank=_integer(environ, "LOCAL_RANK"),
        local_world_size=_integer(environ, local_size, str(world_size)),
        master_addr=environ.get("MASTER_ADDR", "127.0.0.1"),
        master_port=_integer(environ, "MASTER_PORT"),
        launcher="deepspeed" if "CROSS_SIZE" in environ else "torchrun",
    )


def _slurm_launch(environ: Mapping[str, str]) -> Launch:
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    world_size = _integer(environ, tasks, "1")
    per_node = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    counts = tasks_per_node(per_node)
    node = _integer(environ, "SLURM_NODEID", "0")
    node_list = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST", "localhost")
    # Two steps of one job may run at once, and an earlier start of it may not have ended yet.
    seed = _integer(environ, "SLURM_JOB_ID", "0") * 7 + _integer(environ, "SLURM_STEP_ID", "0")
    seed += _integer(environ, "SLURM_RESTART_COUNT", "0") * 1009
    port = environ.get("MASTER_PORT", str(_FIRST_SLURM_PORT + seed % _SLURM_PORTS))
    return Launch(
        rank=_integer(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_integer(environ, "SLURM_LOCALID", "0"),
        local_world_size=counts[node] if node < len(counts) else world_size,
        master_addr=environ.get("MASTER_ADDR") or _node_address(first_host(node_list)),
        master_port=_integer({"MASTER_PORT": port}, "MASTER_PORT"),
        launcher="slurm",
    )


def tasks_per_node(text: str) -> list[int]:
    """Expands Slurm's ``2(x3),1`` to one count per node: [2, 2, 2, 1]."""
    counts: list[int] = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(repeat or 1)
    return counts


def first_host(node_list: str) -> str:
    """Returns the first host of a Slurm node list: ``rack[2-3]n[01-04,7],x`` gives ``rack2n01``."""
    first = re.match(r"(?:[^,\[\]]|\[[^\]]*\])*", node_list)
    assert first is not None
    return re.sub(r"\[([^\]\-,]+)[^\]]*\]", r"\1", first.group())


def _node_address(host: str) -> str:
    """Returns `host` where it resolves, otherwise the address that Slurm knows it by."""
    try:
        socket.getaddrinfo(host, None)
        return host
    except OSError:
        command = ["scontrol", "show", "node", host]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return host
    match = re.search(r"\bNodeAddr=(\S+)", output)
    return match.group(1) if match else host


def prepare_environment(use_cpu: bool) -> DeviceType:
    """Chooses the device and tells DeepSpeed and gloo, before torch is imported. Idempotent.

    Without a usable GPU (none in the machine, none visible, or a torch built without CUDA), or with
    `use_cpu`, DeepSpeed gets its CPU accelerator, so that nobody has to set a variable.

    Returns:
        "cuda" or "cpu".
    """
    chosen = os.environ.get("DS_ACCELERATOR")
    if use_cpu or chosen == "cpu" or not _gpu_visible(os.environ) or not _torch_has_cuda():
        device_type: DeviceType = "cpu"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        device_type = "cuda"
    os.environ["DS_ACCELERATOR"] = device_type
    # With lazy connections a peer's early exit can hang a subgroup's first collective.
    os.environ["TORCH_GLOO_LAZY_INIT"] = "0"
    # oneDNN keeps the code made for each shape of a bfloat16 product, 1,024 of them in either of
    # two caches; the rows of experts have another shape each time, and 1,200 take 700 MiB.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
    # Data workers fork after tokenizers were used; it would warn at each fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # transformers' bars over the shards of a model; every rank would draw them into the log.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return device_type


def _gpu_visible(environ: Mapping[str, str]) -> bool:
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return False
    return bool(glob.glob("/dev/nvidia[0-9]*")) or os.path.exists("/dev/dxg")


def _torch_has_cuda() -> bool:
    """Reads the installed torch's version file: importing torch to ask would take seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version_file = Path(spec.origin).parent / "version.py"
    if not version_file.exists():
        return True
    return not re.search(r"^cuda\b[^=]*=\s*None", version_file.read_text("utf-8"), re.MULTILINE)


class StopRequest:
    """Notes signals that ask for an end, so that a run can save before it ends.

    SIGHUP, which a closed terminal sends, is among them unless it was ignored before, as by nohup.

    Use as a context manager in the main thread; leaving it restores the former handlers. Later
    signals change nothing: a save under way completes. Ranks agree on a stop in ``train/``.
    """

    SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.requested = False
        self.signal_name: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in self.SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def ignore_from_now_on(self) -> None:
        """Ignores all later signals: none of them must change the exit status."""
        self._previous = dict.fromkeys(self.SIGNALS, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.signal_name = signal.Signals(number).name
        self.requested = True


def logger(name: str) -> logging.Logger:
    """Returns the logger of one part of the package, for example ``logger("train")``."""
    return logging.getLogger(f"minimoe_dist.{name}")


def start_logging(launch: Launch) -> None:
    """Sends the package's log to stderr in one format: rank 0 from INFO, the others' errors."""
    root = logging.getLogger("minimoe_dist")
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if launch.world_size == 1 else f" rank {launch.rank}"
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s{prefix} %(name)s: %(message)s", "%H:%M:%S")
    )
    root.handlers = [handler]
    root.setLevel(logging.INFO if launch.rank == 0 else logging.ERROR)
    root.propagate = False
