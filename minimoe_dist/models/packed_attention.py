"""Attention of packed samples, as an operator that compilers take as it is.

On a GPU it is a Triton kernel. Elsewhere it is plain PyTorch, sample by sample, for tests and
comparison: on CPUs padded attention is the faster one.

Shapes: B samples, T packed tokens, A = heads · head size.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.dispatch import runs_kernel
from .noise import NoiseKeys


def packed_attention(
    projected: Tensor,
    starts: Tensor,
    lengths: Tensor,
    heads: int,
    longest: int,
    keys: Tensor | None = None,
    probability: float = 0.0,
    site: int = 0,
) -> Tensor:
    """Scaled dot-product attention of each sample's tokens among themselves.

    Args:
        projected: [T, 3 A], queries, keys and values side by side.
        starts: int32 [B], each sample's first token.
        lengths: int32 [B]; may be 0.
        heads: attention heads.
        longest: no length is greater; decides what is launched.
        keys: int32 [T], the tokens' keys of :mod:`.noise`; None drops nothing.
        probability: of an attention probability to be dropped.
        site: number of the place in the network.

    Returns:
        [T, A], the heads' contexts side by side; zeros at tokens of no sample.
    """
    if probability == 0.0:
        keys = None
    context, _ = _attention(
        projected, starts, lengths, keys, heads, longest, float(probability), site
    )
    return context


@torch.library.custom_op("minimoe_dist::attention", mutates_args=())
def _attention(
    projected: Tensor,
    starts: Tensor,
    lengths: Tensor,
    keys: Tensor | None,
    heads: int,
    longest: int,
    probability: float,
    site: int,
) -> tuple[Tensor, Tensor]:
    if not runs_kernel(projected):
        context = projected.new_zeros(projected.shape[0], projected.shape[1] // 3)
        for sample in _samples(projected, starts, lengths, keys, heads, probability, site):
            context[sample.rows] = sample.context()
        return context, projected.new_empty(0, dtype=torch.float32)
    from ..kernels.attention import Dropout, attention

    dropout = None if keys is None else Dropout(keys, probability, site)
    return attention(projected.contiguous(), starts, lengths, heads, longest, dropout)


@_attention.register_fake
def _(
    projected: Tensor,
    starts: Tensor,
    lengths: Tensor,
    keys: Tensor | None,
    heads: int,
    longest: int,
    probability: float,
    site: int,
) -> tuple[Tensor, Tensor]:
    tokens, width = projected.shape
    logs = (heads, tokens) if runs_kernel(projected) else (0,)
    return projected.new_empty(tokens, width // 3), projected.new_empty(logs, dtype=torch.float32)


@torch.library.custom_op("minimoe_dist::attention_gradient", mutates_args=())
def _attention_gradient(
    upstream: Tensor,
    projected: Tensor,
    context: Tensor,
    logs: Tensor,
    starts: Tensor,
    lengths: Tensor,
    keys: Tensor | None,
    heads: int,
    longest: int,
    probability: float,
    site: int,
) -> Tensor:
    if not runs_kernel(projected):
        gradient = torch.zeros_like(projected, memory_format=torch.contiguous_format)
        for sample in _samples(projected, starts, lengths, keys, heads, probability, site):
            gradient[sample.rows] = sample.gradient(upstream[sample.rows])
        return gradient
    from ..kernels.attention import Dropout, attention_gradient

    dropout = None if keys is None else Dropout(keys, probability, site)
    tensors = (upstream.contiguous(), projected.contiguous(), context, logs, starts, lengths)
    return attention_gradient(*tensors, heads, longest, dropout)


@_attention_gradient.register_fake
def _(upstream: Tensor, projected: Tensor, *unused: Any) -> Tensor:
    return torch.empty_like(projected, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    projected, starts, lengths, keys, *ctx.numbers = inputs
    ctx.save_for_backward(projected, *output, starts, lengths, keys)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient = None
    if upstream is not None:
        gradient = _attention_gradient(upstream, *ctx.saved_tensors, *ctx.numbers)
    return (gradient, *[None] * 7)


_attention.register_autograd(_backward, setup_context=_keep)


class _Sample(NamedTuple):
    """One sample in plain PyTorch; ``parts`` are its queries, keys and values [heads, S, d]."""

    rows: slice
    parts: tuple[Tensor, Tensor, Tensor]
    shares: Tensor
    factors: Tensor | float

    def context(self) -> Tensor:
        """The heads' contexts side by side, [S, A]."""
        return (self.shares * self.factors @ self.parts[2]).transpose(0, 1).flatten(1)

    def gradient(self, upstream: Tensor) -> Tensor:
        """The gradient [S, 3 A] of the projections, for one [S, A] of the contexts."""
        query, key, value = self.parts
        arrived = upstream.unflatten(-1, (len(query), -1)).transpose(0, 1)
        slopes = arrived @ value.transpose(-1, -2) * self.factors
        mean = (slopes * self.shares).sum(-1, keepdim=True)
        slopes = self.shares * (slopes - mean) / math.sqrt(query.shape[-1])
        of_value = (self.shares * self.factors).transpose(-1, -2) @ arrived
        parts = torch.stack([slopes @ key, slopes.transpose(-1, -2) @ query, of_value])
        return parts.permute(2, 0, 1, 3).flatten(1)


def _samples(
    projected: Tensor,
    starts: Tensor,
    lengths: Tensor,
    keys: Tensor | None,
    heads: int,
    probability: float,
    site: int,
) -> Iterator[_Sample]:
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        rows = slice(start, start + length)
        parts = projected[rows].unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
        query, key, value = parts.unbind()
        shares = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        factors: Tensor | float = 1.0
        if keys is not None:
            noise = NoiseKeys(keys[None, rows], None)
            ones = torch.ones_like(shares)[None]
            factors = noise.dropout_attention(ones, probability, site)[0]
        yield _Sample(rows, (query, key, value), shares, factors)
