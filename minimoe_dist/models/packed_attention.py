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
    """Computes scaled dot-product attention of each sample's tokens among themselves.

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
        for sample in _iterate_samples(projected, starts, lengths, keys, heads, probability, site):
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
    log_sums = (heads, tokens) if runs_kernel(projected) else (0,)
    return projected.new_empty(tokens, width // 3), projected.new_empty(
        log_sums, dtype=torch.float32
    )


@torch.library.custom_op("minimoe_dist::attention_gradient", mutates_args=())
def _attention_gradient(
    upstream: Tensor,
    projected: Tensor,
    context: Tensor,
    log_sums: Tensor,
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
        for sample in _iterate_samples(projected, starts, lengths, keys, heads, probability, site):
            gradient[sample.rows] = sample.gradient(upstream[sample.rows])
        return gradient
    from ..kernels.attention import Dropout, attention_gradient

    dropout = None if keys is None else Dropout(keys, probability, site)
    tensors = (upstream.contiguous(), projected.contiguous(), context, log_sums, starts, lengths)
    return attention_gradient(*tensors, heads, longest, dropout)


@_attention_gradient.register_fake
def _(upstream: Tensor, projected: Tensor, *unused: Any) -> Tensor:
    return torch.empty_like(projected, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    projected, starts, lengths, keys, *ctx.options = inputs
    ctx.save_for_backward(projected, *output, starts, lengths, keys)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient = None
    if upstream is not None:
        gradient = _attention_gradient(upstream, *ctx.saved_tensors, *ctx.options)
    return (gradient, *[None] * 7)


_attention.register_autograd(_backward, setup_context=_setup_context)


class _Sample(NamedTuple):
    """One sample in plain PyTorch.

    Attributes:
        rows: its tokens among the packed ones.
        query: [heads, S, d].
        key: [heads, S, d].
        value: [heads, S, d].
        probabilities: [heads, S, S], before dropout.
        factors: of dropout, [heads, S, S], or 1.
    """

    rows: slice
    query: Tensor
    key: Tensor
    value: Tensor
    probabilities: Tensor
    factors: Tensor | float

    def context(self) -> Tensor:
        """Computes the heads' contexts side by side, [S, A]."""
        return (self.probabilities * self.factors @ self.value).transpose(0, 1).flatten(1)

    def gradient(self, upstream: Tensor) -> Tensor:
        """Computes the gradient [S, 3 A] of the projections, for one [S, A] of the contexts."""
        upstream = upstream.unflatten(-1, (len(self.query), -1)).transpose(0, 1)
        slope = upstream @ self.value.transpose(-1, -2) * self.factors
        mean = (slope * self.probabilities).sum(-1, keepdim=True)
        slope = self.probabilities * (slope - mean) / math.sqrt(self.query.shape[-1])
        of_value = (self.probabilities * self.factors).transpose(-1, -2) @ upstream
        gradients = (slope @ self.key, slope.transpose(-1, -2) @ self.query, of_value)
        return torch.stack(gradients).permute(2, 0, 1, 3).flatten(1)


def _iterate_samples(
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
        by_head = projected[rows].unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
        query, key, value = by_head.unbind()
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        probabilities = scores.softmax(-1)
        factors: Tensor | float = 1.0
        if keys is not None:
            noise = NoiseKeys(keys[None, rows], None)
            ones = torch.ones_like(probabilities)[None]
            factors = noise.dropout_attention(ones, probability, site)[0]
        yield _Sample(rows, query, key, value, probabilities, factors)
