"""How tensors are shared among tensor-parallel ranks, and how queries, keys and values are fused.

Column-parallel maps and the vocabulary are cut by output (dimension 0), row-parallel ones by input
(dimension 1), all else every rank has whole. Fused projections are cut by heads; each rank fuses
its own heads in the order of the checkpoint's version.

Shapes: R ranks, N heads, D numbers a head, "…" a weight's input dimension or nothing of a bias.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...megatron_files.naming import Kind


def unfuse(fused: Tensor, heads: int, version: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values, each [N·D, …], of a rank's fused tensor [3·N·D, …]."""
    size, inputs = fused.shape[0] // (3 * heads), fused.shape[1:]
    if version == 0:
        ordered = fused.view(3, heads, size, *inputs)
    elif version == 1:
        ordered = fused.view(heads, size, 3, *inputs).movedim(2, 0)
    else:
        ordered = fused.view(heads, 3, size, *inputs).movedim(1, 0)
    query, key, value = (part.reshape(heads * size, *inputs) for part in ordered)
    return query, key, value


def fuse(parts: Sequence[Tensor], heads: int, version: float) -> Tensor:
    """Fuses queries, keys and values: the inverse of :func:`unfuse`."""
    ordered = torch.stack([part.unflatten(0, (heads, -1)) for part in parts])
    if version == 1:
        ordered = ordered.movedim(0, 2)
    elif version >= 2:
        ordered = ordered.movedim(0, 1)
    return ordered.flatten(0, 2).contiguous()


def merge(parts: Sequence[Tensor], kind: Kind) -> Tensor:
    """Returns the whole of a tensor, of the R parts that the ranks have."""
    if kind == "whole":
        return parts[0]
    return torch.cat(list(parts), 1 if kind == "by_input" else 0)


def part_of(whole: Tensor, kind: Kind, rank: int, ranks: int) -> Tensor:
    """Returns one rank's part of a tensor, which shares no memory with it where it is smaller."""
    if kind == "whole" or ranks == 1:
        return whole
    return whole.chunk(ranks, 1 if kind == "by_input" else 0)[rank].clone()
