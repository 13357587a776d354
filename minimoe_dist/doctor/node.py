"""Collects the facts of one node: versions, devices, networks, disks. It knows no other rank."""

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import __version__
from ..runtime import Launch

PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "safetensors",
    "megatron-core",
    "numpy",
    "pydantic",
)
INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
_REAL_APEX = ("normalization", "optimizers")
_MEBIBYTE = 1 << 20


def within(seconds: float, action: Callable[[], Any]) -> Any:
    """Runs `action` with a time limit, as a dead disk can hang, and returns its result.

    Raises:
        TimeoutError: it did not end in time; its thread is left behind.
        Exception: an exception that the action itself raised.
    """
    outcome: list[Any] = []

    def body() -> None:
        try:
            outcome.append((True, action()))
        except Exception as error:
            outcome.append((False, error))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    done, value = outcome[0]
    if not done:
        raise value
    return value


def versions() -> dict[str, str]:
    """Returns the versions of Python, of the packages that must agree, and of this code."""
    versions_by_name = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions_by_name[name] = version(name)
        except PackageNotFoundError:
            versions_by_name[name] = "not installed"
    versions_by_name["minimoe-dist"] = __version__
    versions_by_name["code"] = code_hash()
    return versions_by_name


def code_hash() -> str:
    """Returns a short hash of this package's files, which is equal where the code is."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def apex() -> str:
    """Returns ``real``, ``other`` (the web toolkit of that name on PyPI), or ``none``."""
    spec = find_spec("apex")
    if spec is None:
        return "none"
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    offers = all(any((folder / part).is_dir() for folder in folders) for part in _REAL_APEX)
    return "real" if offers else "other"


def gpus() -> dict[str, Any]:
    """Returns the devices as torch sees them, the driver, and NCCL."""
    import torch

    if not torch.cuda.is_available():
        return {"devices": [], "driver": None, "nccl": None, "seen": _listed_gpus()}
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return {"devices": names, "driver": _driver(), "nccl": nccl, "seen": len(names)}


def _listed_gpus() -> int:
    """Returns the number of GPUs that the kernel knows, whether torch can use them or not."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return output.splitlines()[0].strip() if output.strip() else None


def network(launch: Launch) -> dict[str, Any]:
    """Returns the interface that leads to the rendezvous, all others, and those asked for."""
    import psutil

    addresses = {
        name: [entry.address for entry in entries if entry.family == socket.AF_INET]
        for name, entries in psutil.net_if_addrs().items()
    }
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Sends nothing; tells which of our addresses faces the rendezvous.
        probe.connect((launch.master_addr, launch.master_port))
        own_address = probe.getsockname()[0]
    leading = next((name for name, values in addresses.items() if own_address in values), None)
    requested = {name: os.environ[name] for name in INTERFACE_VARIABLES if os.environ.get(name)}
    return {
        "interface": leading,
        "address": own_address,
        "there": sorted(addresses),
        "asked": requested,
    }


def port_is_free(port: int) -> bool:
    """Tells whether this node could listen at a TCP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def disk(folder: Path, megabytes: int) -> dict[str, float]:
    """Returns free GiB, and MB/s of a file that is written (flushed to the disk) and read again.

    Raises:
        OSError: the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / (1 << 30)
    path = folder / f".doctor.{socket.gethostname()}.{os.getpid()}"
    block = os.urandom(_MEBIBYTE)
    try:
        started = time.perf_counter()
        with path.open("wb") as stream:
            for _ in range(megabytes):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
            # Reading again should ask the disk, not the memory of this node.
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        written = time.perf_counter()
        with path.open("rb") as stream:
            while stream.read(_MEBIBYTE):
                pass
        read = time.perf_counter()
    finally:
        path.unlink(missing_ok=True)
    size = megabytes * _MEBIBYTE / 1e6
    return {
        "free_gib": free,
        "write_mb_per_second": size / (written - started),
        "read_mb_per_second": size / (read - written),
    }


def compilers() -> dict[str, str | None]:
    """Returns the paths of the tools that build DeepSpeed's operators."""
    return {name: shutil.which(name) for name in ("c++", "ninja", "nvcc")}


def _operators() -> dict[str, str]:
    from ..train.operators import operators

    return operators()


def facts(launch: Launch, output_dir: str, megabytes: int, seconds: float) -> dict[str, Any]:
    """Collects all facts of this node within `seconds`; a check that failed gives its error."""
    checks: dict[str, Callable[[], Any]] = {
        "versions": versions,
        "apex": apex,
        "gpus": gpus,
        "network": lambda: network(launch),
        "compilers": compilers,
        "operators": _operators,
        "disk": lambda: disk(Path(output_dir), megabytes),
    }
    result: dict[str, Any] = {
        "rank": launch.rank,
        "local_rank": launch.local_rank,
        "node": os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        "executable": sys.executable,
        "failed": {},
    }
    try:
        # Packages that do not fit each other fail here. It may take long, but it does not hang.
        import_module("minimoe_dist.train.operators")
    except Exception as error:
        result["failed"]["import"] = " ".join(str(error).split())
        del checks["operators"]
    deadline = time.monotonic() + seconds
    for name, check in checks.items():
        if launch.local_rank > 0 and name in ("disk", "operators"):
            continue  # once a node
        try:
            result[name] = within(max(1.0, deadline - time.monotonic()), check)
        except Exception as error:
            result["failed"][name] = " ".join(str(error).split()) or type(error).__name__
    return result
