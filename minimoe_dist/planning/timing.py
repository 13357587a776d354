"""Predicts how long the parts of a step take on a machine."""

from .machine import Machine
from .rates import UPDATE
from .work import Work


def product_seconds(machine: Machine, work: Work) -> float:
    """Returns the seconds of a part's matrix products alone: its matmul-bound limit."""
    return sum(
        product.operations / machine.product_rate(work.dtype, product.size)
        for product in work.products
    )


def part_seconds(machine: Machine, part: str, work: Work) -> float:
    """Returns the seconds of one part: those of its products, launches and moved bytes.

    The sum is scaled by the part's measured factor. On a machine whose products were not measured
    by size, ``efficiency`` stands for all that is not counted: only products, and what an update
    moves, take time there.
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
