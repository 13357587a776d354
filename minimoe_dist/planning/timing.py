"""How long the parts of a step take on a machine."""

from .machine import Machine
from .rates import UPDATE
from .work import Work


def product_seconds(machine: Machine, work: Work) -> float:
    """Of a part's matrix products alone: its matmul-bound limit."""
    return sum(one.operations / machine.product_rate(work.dtype, one.size) for one in work.products)


def part_seconds(machine: Machine, part: str, work: Work) -> float:
    """Of one part: products, launches and what is read and written, times what was measured.

    On a machine whose products were not measured by size, ``efficiency`` stands for all that is
    not counted: then only products, and what an update moves, take time.
    """
    moved = work.moved_bytes / (1e9 * machine.memory_gb_per_second)
    if not machine.products:
        return product_seconds(machine, work) + (moved if part == UPDATE else 0.0)
    launch = 1e-6 * (
        machine.recorded_launch_microseconds if work.recorded else machine.launch_microseconds
    )
    return machine.parts.get(part, 1.0) * (
        product_seconds(machine, work) + launch * work.launches + moved
    )
