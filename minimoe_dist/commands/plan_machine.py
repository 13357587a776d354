"""The machine of a plan: described by name or file, changed by flags, or the one at hand."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from minimoe_dist.config.commands import PlanOptions
from minimoe_dist.planning.machine import GIB, Machine, load_machine

_CHANGES = (
    "nodes",
    "ranks_per_node",
    "memory_gib",
    "efficiency",
    "link_gb_per_second",
    "network_gb_per_second",
    "price_per_device_hour",
)
# A product of a step's sizes: 16 sequences of 128 tokens through BERT-base's feed-forward map.
_ROWS, _WIDTH = 2048, 768
_CPU_FRAMEWORK_GIB, _GPU_FRAMEWORK_GIB = 0.47, 1.0


def machine_folders() -> list[Path]:
    """Where machines are described: beside the package's source, or where it was installed."""
    root = Path(__file__).parents[2] / "configs" / "machines"
    return [root, Path(sys.prefix) / "share" / "minimoe_dist" / "machines"]


def described_machines() -> list[Machine]:
    """All of them."""
    names = {path.stem for folder in machine_folders() for path in folder.glob("*.yaml")}
    return [load_machine(name, machine_folders()) for name in sorted(names)]


def machine_of(options: PlanOptions) -> Machine:
    """The machine that options name; without a name the one at hand, measured.

    Raises:
        ConfigError: no such machine, or a wrong description.
    """
    given = {name: getattr(options, name) for name in _CHANGES}
    changes = {name: value for name, value in given.items() if value is not None}
    if options.machine is None:
        return _at_hand(changes)
    machine = load_machine(options.machine, machine_folders(), changes)
    if options.measure:
        rates = measure_rates(machine.device, _threads(machine.ranks_per_node))
        machine = machine.model_copy(update={"tflops": machine.tflops | rates})
    return machine


def _at_hand(changes: dict[str, Any]) -> Machine:
    import torch

    has_gpu = torch.cuda.is_available()
    ranks = changes.get("ranks_per_node", torch.cuda.device_count() if has_gpu else 1)
    if has_gpu:
        properties = torch.cuda.get_device_properties(0)
        memory, framework = properties.total_memory / GIB, _GPU_FRAMEWORK_GIB
    else:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory, framework = pages / GIB / ranks, _CPU_FRAMEWORK_GIB
    kind = "cuda" if has_gpu else "cpu"
    values: dict[str, Any] = {
        "name": properties.name if has_gpu else f"{os.cpu_count()} CPU cores",
        "device": kind,
        "ranks_per_node": ranks,
        "memory_gib": round(memory, 1),
        "framework_gib": framework,
        "tflops": measure_rates(kind, _threads(ranks)),
        "memory_gb_per_second": _measure_copies(kind),
        "link_gb_per_second": 16.0 if has_gpu else 1.0,
        "network_gb_per_second": 3.0 if has_gpu else 1.0,
        "efficiency": 0.5,
    }
    return Machine.model_validate(values | changes)


def _threads(ranks: int) -> int:
    return max(1, (os.cpu_count() or 1) // ranks)


def measure_rates(device: str, threads: int) -> dict[str, float]:
    """Rates of matrix products of a step's size by type, in 10^12 operations a second.

    Args:
        device: ``cuda`` or ``cpu``.
        threads: that a rank computes with on a CPU.
    """
    import torch

    former = torch.get_num_threads()
    torch.set_num_threads(threads)
    rates = {}
    try:
        for name in ("float32", "bfloat16", *(["float16"] if device == "cuda" else [])):
            dtype = getattr(torch, name)
            rows = torch.randn(_ROWS, _WIDTH).to(device, dtype)
            weight = torch.randn(4 * _WIDTH, _WIDTH).to(device, dtype)
            seconds = _fastest(lambda a=rows, b=weight: torch.nn.functional.linear(a, b), device)
            rates[name] = 8 * _ROWS * _WIDTH**2 / seconds / 1e12
    finally:
        torch.set_num_threads(former)
    if device == "cpu" and rates["bfloat16"] < rates["float32"]:
        del rates["bfloat16"]  # nothing there multiplies it itself
    return rates


def _measure_copies(device: str) -> float:
    """10^9 bytes a second that are read and written."""
    import torch

    source = torch.zeros(1 << 26 if device == "cuda" else 1 << 24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device) / 1e9


def _fastest(action: Any, device: str) -> float:
    """Seconds of the fastest of some runs after one that warms up."""
    import torch

    times = []
    for _ in range(4):
        started = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])
