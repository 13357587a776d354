"""Finds the machine of a plan: by name or file, changed by flags, or the one at hand."""

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..config.commands import PlanOptions
from ..planning.machine import GIB, Machine, load_machine

_FLAGS = (
    "nodes",
    "ranks_per_node",
    "memory_gib",
    "efficiency",
    "link_gb_per_second",
    "network_gb_per_second",
    "price_per_device_hour",
)
# A product of a step's sizes: 16 sequences of 128 tokens through BERT-base's feed-forward map.
_SHAPE = (2048, 768, 3072)
_SECONDS = 0.0  # of a measurement: three runs
_CPU_FRAMEWORK_GIB, _GPU_FRAMEWORK_GIB = 0.47, 1.0


def machine_folders() -> list[Path]:
    """Returns the folders of machines, beside the package's source and where it is installed."""
    root = Path(__file__).parents[2] / "configs" / "machines"
    return [root, Path(sys.prefix) / "share" / "minimoe_dist" / "machines"]


def described_machines() -> list[Machine]:
    """Loads the machines of all folders, sorted by name."""
    names = {path.stem for folder in machine_folders() for path in folder.glob("*.yaml")}
    return [load_machine(name, machine_folders()) for name in sorted(names)]


def machine_of(options: PlanOptions) -> Machine:
    """Returns the machine that options name, or the one at hand, measured.

    Raises:
        ConfigError: no such machine, or a wrong description.
    """
    flags = {name: getattr(options, name) for name in _FLAGS}
    changes = {name: value for name, value in flags.items() if value is not None}
    if options.machine is None:
        return _at_hand(changes, _fewest_ranks(options.stages))
    machine = load_machine(options.machine, machine_folders(), changes)
    if options.measure:
        rates = measure_rates(machine.device, _threads(machine.ranks_per_node))
        machine = machine.model_copy(update={"tflops": machine.tflops | rates})
    return machine


def _fewest_ranks(stages: Sequence[RunConfig]) -> int:
    """Returns the smallest number of processes that the layouts of a recipe divide."""
    return math.lcm(
        *(stage.parallel.expert_parallel_size for stage in stages),
        *(stage.teacher.parallel_size or 1 for stage in stages),
    )


def _at_hand(changes: dict[str, Any], fewest_ranks: int) -> Machine:
    """Describes this machine; without GPUs, which count, with as few ranks as a recipe takes."""
    import torch

    from .device import measure_copies

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    count = torch.cuda.device_count() if kind == "cuda" else fewest_ranks
    values = at_hand(kind, changes.get("ranks_per_node", count))
    values["tflops"] = measure_rates(kind, _threads(values["ranks_per_node"]))
    values["memory_gb_per_second"] = measure_copies(torch.device(kind), _SECONDS) / 1e9
    return Machine.model_validate(values | changes)


def at_hand(kind: str, ranks: int) -> dict[str, Any]:
    """Returns the fields of this machine that are known, or assumed, without measuring.

    Args:
        kind: device that ranks compute on, ``cuda`` or ``cpu``.
        ranks: number of ranks of this node.
    """
    import torch

    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name, memory = properties.name, properties.total_memory / GIB
    else:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        name, memory = f"{os.cpu_count()} CPU cores", pages / GIB / ranks
    return {
        "name": name,
        "device": kind,
        "ranks_per_node": ranks,
        "memory_gib": round(memory, 1),
        "framework_gib": _GPU_FRAMEWORK_GIB if kind == "cuda" else _CPU_FRAMEWORK_GIB,
        "link_gb_per_second": 16.0 if kind == "cuda" else 1.0,
        "network_gb_per_second": 3.0 if kind == "cuda" else 1.0,
        "efficiency": 0.5,
    }


def _threads(ranks: int) -> int:
    return max(1, (os.cpu_count() or 1) // ranks)


def measure_rates(device: str, threads: int) -> dict[str, float]:
    """Measures matrix products of a step's size by type, in 10^12 operations a second.

    Args:
        device: ``cuda`` or ``cpu``.
        threads: number of threads of a rank on a CPU.
    """
    import torch

    from .device import dtypes_of, measure_product

    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    kind = torch.device(device)
    try:
        products = {name: measure_product(kind, name, _SHAPE, _SECONDS) for name in dtypes_of(kind)}
    finally:
        torch.set_num_threads(previous)
    rates = {name: product.rate / 1e12 for name, product in products.items()}
    # A type that the device does not multiply is converted, and slower.
    return {name: rate for name, rate in rates.items() if rate >= rates["float32"]}
