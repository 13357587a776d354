"""Tells a teacher from which nothing can be learnt by what it gives."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# Of the largest number: what differs less is the same but for rounding.
_SAME = 1e-5


class SignalFault(NamedTuple):
    """What is wrong with a signal of a teacher.

    Attributes:
        signal: its name.
        finite_share: the share of its rows that are finite; 1 where it is constant.
    """

    signal: str
    finite_share: float


@torch.no_grad()
def find_faults(signals: Iterable[Mapping[str, Tensor]], device: torch.device) -> list[SignalFault]:
    """Finds signals that are not finite, or the same in all rows; a collective that waits.

    Args:
        signals: by name, of each micro-batch of this rank: [rows, …] of any type, a row a token
            or a sample, without padding. All ranks give the same names in the same order.
        device: of this rank.

    Returns:
        The same on every rank.
    """
    sums: dict[str, Tensor] = {}
    most: dict[str, Tensor] = {}
    for batch in signals:
        for name, rows in batch.items():
            counts, extent = _measure(rows.flatten(1) if rows.ndim > 1 else rows[:, None])
            sums[name] = sums.get(name, torch.zeros_like(counts)) + counts
            most[name] = torch.maximum(most.get(name, extent), extent)
    if not sums:
        return []
    all_sums, all_most = (torch.stack(list(values.values())).to(device) for values in (sums, most))
    if dist.get_world_size() > 1:
        dist.all_reduce(all_sums)
        dist.all_reduce(all_most, dist.ReduceOp.MAX)
    faults = []
    for name, (rows_sum, finite), (spread, largest, compared) in zip(
        sums, all_sums.tolist(), all_most.tolist(), strict=True
    ):
        is_constant = compared > 1 and spread <= _SAME * largest
        if rows_sum and (finite < rows_sum or is_constant):
            faults.append(SignalFault(name, finite / rows_sum))
    return faults


def _measure(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Measures rows [N, H]; float64, two tensors.

    Returns:
        The number of rows and of finite ones; of the latter the largest distance to the first, the
        largest absolute value, and their number.
    """
    finite = rows[rows.isfinite().all(1)].float()
    spread = largest = rows.new_zeros((), dtype=torch.float32)
    if len(finite):
        spread, largest = (finite - finite[0]).abs().max(), finite.abs().max()
    counts = torch.tensor([len(rows), len(finite)], dtype=torch.float64)
    return counts, torch.stack([spread, largest, spread.new_tensor(len(finite))]).double()
