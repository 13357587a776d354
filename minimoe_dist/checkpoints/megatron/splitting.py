"""How tensors are shared among tensor-parallel ranks, and how queries, keys and values are fused.

Column-parallel maps and the vocabulary are cut by output (dimension 0), row-parallel ones by input
(dimension 1), all else every rank has whole. Fused projections are cut by heads; each rank fuses
its own heads in the order of the checkpoint's version.

Shapes: R ranks, N heads, D numbers a head, "…" a weight's input dimension or nothing of a bias.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ...errors import UserError
from .layout import LAYER, OUTPUT_BIAS, QKV, WORDS, WORDS_AGAIN

Kind = Literal["whole", "by_output", "by_input", "by_heads"]


def kind_of(name: str) -> Kind:
    """Returns how the tensor of a common name is shared among tensor-parallel ranks."""
    layer = LAYER.fullmatch(name)
    if layer is None:
        return "by_output" if name in (WORDS, WORDS_AGAIN, OUTPUT_BIAS) else "whole"
    _, part, kind = layer.groups()
    if part == QKV:
        return "by_heads"
    if part == "mlp.linear_fc1":
        return "by_output"
    is_row_parallel = part in ("self_attention.linear_proj", "mlp.linear_fc2")
    return "by_input" if is_row_parallel and kind == "weight" else "whole"


def check_version(version: float) -> None:
    """Refuses versions whose order is not known.

    Raises:
        UserError: it is neither 0 nor 1.0 nor at least 2.0.
    """
    if version not in (0, 1) and not 2 <= version < math.inf:
        raise UserError(
            f"checkpoint_version: {version:g} is not known; there are 0, 1.0 and 2.0 up"
        )


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
