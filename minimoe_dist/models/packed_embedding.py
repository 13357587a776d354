"""Rows of an embedding table whose gradient is summed in a fixed order.

A compiler would scatter the gradient with atomic additions, whose order, and hence whose last bits,
differ from run to run; PyTorch's own operator sorts the tokens first.

Shapes: T tokens, V rows of the table, H width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def packed_embedding(table: nn.Embedding, ids: Tensor) -> Tensor:
    """Rows [T, H] of a table, for ids int64 [T]; the padding id's row gets no gradient."""
    padding = -1 if table.padding_idx is None else table.padding_idx
    return _embedding(table.weight, ids, padding)


@torch.library.custom_op("minimoe_dist::embedding", mutates_args=())
def _embedding(weight: Tensor, ids: Tensor, padding: int) -> Tensor:
    return F.embedding(ids, weight)


@_embedding.register_fake
def _(weight: Tensor, ids: Tensor, padding: int) -> Tensor:
    return weight.new_empty(*ids.shape, weight.shape[1])


@torch.library.custom_op("minimoe_dist::embedding_gradient", mutates_args=())
def _gradient(upstream: Tensor, ids: Tensor, rows: int, padding: int) -> Tensor:
    return torch.ops.aten.embedding_dense_backward(upstream, ids, rows, padding, False)


@_gradient.register_fake
def _(upstream: Tensor, ids: Tensor, rows: int, padding: int) -> Tensor:
    return upstream.new_empty(rows, upstream.shape[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, ids, ctx.padding = inputs
    ctx.rows = weight.shape[0]
    ctx.save_for_backward(ids)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    (ids,) = ctx.saved_tensors
    return _gradient(upstream, ids, ctx.rows, ctx.padding), None, None


_embedding.register_autograd(_backward, setup_context=_keep)
