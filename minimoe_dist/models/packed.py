"""The layout of tokens that stay packed, as GPUs like it: no padding, no waiting for the device.

How many rows there are, and how long a sample may be, is known on the host; all else is known only
on the device. So rows may be more than tokens (a batch is filled up to one of a few sizes, for
which a pass can be compiled or captured once): the rest belongs to no sample and to no expert.

Shapes: B samples, T rows, H width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .experts import Plan
from .noise import NoiseKeys, token_keys
from .packed_attention import packed_attention
from .packed_experts import Groups, group_rows, grouped_linear


@dataclass
class PackedLayout:
    """The :class:`.packing.Layout` of a packed batch.

    Attributes:
        sample: int32 [T], a row's sample by its place in the batch; 0 for rows of none.
        position: int32 [T], a row's position in its sample; 0 for rows of none.
        starts: int32 [B], each sample's first row.
        lengths: int32 [B], rows of each sample.
        longest: no length is greater.
        real: bool [T], which rows are tokens.
    """

    sample: Tensor
    position: Tensor
    starts: Tensor
    lengths: Tensor
    longest: int

    def __post_init__(self) -> None:
        rows = torch.arange(self.sample.shape[0], device=self.sample.device)
        self.real: Tensor | None = rows < self.starts[-1] + self.lengths[-1]

    def padded(self, rows: Tensor) -> Tensor:
        """Pads rows [T, …] to [B, S, …] with zeros, S the longest length there may be."""
        num_cells = len(self.starts) * self.longest
        # Rows of no sample go to a cell behind all others.
        assert self.real is not None
        cells = torch.where(self.real, self.cells(), num_cells)
        flat = rows.new_zeros(num_cells + 1, *rows.shape[1:]).index_copy(0, cells, rows)
        return flat[:-1].unflatten(0, (-1, self.longest))

    def cells(self) -> Tensor:
        """Returns int64 [T], where each row of a sample lies in what :meth:`padded` gives."""
        return self.sample.long() * self.longest + self.position

    def pack(self, values: Tensor) -> Tensor:
        """Returns the rows [T, …] as they are, since they came packed."""
        return values

    def pad(self, packed: Tensor) -> Tensor:
        """Returns the rows [T, …] as they are, since they stay packed."""
        return packed

    def positions(self, input_ids: Tensor, padding_id: int | None) -> Tensor:
        if padding_id is None:
            return self.position
        assert self.real is not None
        counts = ((input_ids != padding_id) & self.real).int()
        total = counts.cumsum(0, dtype=torch.int32)
        before_sample = (total - counts).index_select(0, self.starts).index_select(0, self.sample)
        return (total - before_sample) * counts + padding_id

    def embed(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        return packed_embedding(table, ids)

    def attend(
        self, projected: Tensor, heads: int, noise: NoiseKeys | None, dropout: float, site: int
    ) -> Tensor:
        keys, probability = (None, 0.0) if noise is None else (noise.token_keys, dropout)
        return packed_attention(
            projected, self.starts, self.lengths, heads, self.longest, keys, probability, site
        )

    def noise(self, sample_ids: Tensor | None, seed: int) -> NoiseKeys:
        assert sample_ids is not None, "a packed batch knows its samples"
        return NoiseKeys(token_keys(seed, sample_ids, self.sample, self.position), None)

    def plan(self, expert: Tensor, num_experts: int) -> Plan:
        return _KernelPlan(group_rows(expert, num_experts))


class _KernelPlan(Plan):
    """Products that read tokens where they lie, and write results where they belong."""

    def __init__(self, groups: Groups) -> None:
        self._products = partial(grouped_linear, groups=groups)

    def into(self, linears: Sequence[nn.Module], tokens: Tensor) -> Tensor:
        return self._apply(linears, tokens, gathers=True, scatters=False)

    def out_of(self, linear: nn.Module, rows: Tensor) -> Tensor:
        return self._apply((linear,), rows, gathers=False, scatters=True)

    def across(self, linears: Sequence[nn.Module], tokens: Tensor) -> Tensor:
        return self._apply(linears, tokens, gathers=True, scatters=True)

    def _apply(
        self, linears: Sequence[nn.Module], rows: Tensor, gathers: bool, scatters: bool
    ) -> Tensor:
        products = partial(self._products, gathers=gathers, scatters=scatters)
        outputs = [linear(rows, products) for linear in linears]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


def packed_embedding(table: nn.Embedding, ids: Tensor) -> Tensor:
    """Looks up rows of an embedding table whose gradient is summed in a fixed order.

    A compiler would scatter the gradient with atomic additions, whose order, and hence whose last
    bits, differ from run to run; PyTorch's own operator sorts the tokens first.

    Args:
        table: V rows of width H; the padding id's row gets no gradient.
        ids: int64 [T].

    Returns:
        [T, H].
    """
    padding_idx = -1 if table.padding_idx is None else table.padding_idx
    return _embedding(table.weight, ids, padding_idx)


@torch.library.custom_op("minimoe_dist::embedding", mutates_args=())
def _embedding(weight: Tensor, ids: Tensor, padding_idx: int) -> Tensor:
    return F.embedding(ids, weight)


@_embedding.register_fake
def _(weight: Tensor, ids: Tensor, padding_idx: int) -> Tensor:
    return weight.new_empty(*ids.shape, weight.shape[1])


@torch.library.custom_op("minimoe_dist::embedding_gradient", mutates_args=())
def _embedding_gradient(upstream: Tensor, ids: Tensor, rows: int, padding_idx: int) -> Tensor:
    return torch.ops.aten.embedding_dense_backward(upstream, ids, rows, padding_idx, False)


@_embedding_gradient.register_fake
def _(upstream: Tensor, ids: Tensor, rows: int, padding_idx: int) -> Tensor:
    return upstream.new_empty(rows, upstream.shape[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, ids, ctx.padding_idx = inputs
    ctx.rows = weight.shape[0]
    ctx.save_for_backward(ids)


def _embedding_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    (ids,) = ctx.saved_tensors
    return _embedding_gradient(upstream, ids, ctx.rows, ctx.padding_idx), None, None


_embedding.register_autograd(_embedding_backward, setup_context=_setup_context)
