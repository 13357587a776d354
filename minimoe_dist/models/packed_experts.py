"""Products of packed tokens with their experts' weights, as operators that compilers take.

On a GPU they are Triton kernels that read tokens where they lie and write results where they
belong. Elsewhere they are loops of products, for tests and comparison.

Shapes: T rows, E experts, K inputs, N outputs.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.dispatch import runs_kernel


class Groups(NamedTuple):
    """Rows sorted by their experts.

    Attributes:
        order: int32 [T], rows sorted by expert, those of none last.
        offsets: int32 [E + 1], where each expert's begin in that order, and the last one's end.
    """

    order: Tensor
    offsets: Tensor


def group_rows(expert: Tensor, num_experts: int) -> Groups:
    """Sorts rows by expert, stably.

    Args:
        expert: integers [T]; ``num_experts`` for rows that go to none.
        num_experts: E.
    """
    return Groups(*_expert_order(expert.to(torch.int32), num_experts))


def grouped_linear(
    rows: Tensor, weight: Tensor, bias: Tensor, groups: Groups, *, gathers: bool, scatters: bool
) -> Tensor:
    """Applies to each row its expert's linear map.

    Args:
        rows: [T, K], in tokens' order with ``gathers``, else sorted by expert.
        weight: [E, N, K].
        bias: [E, N].
        groups: of the tokens.
        gathers: whether rows are in tokens' order.
        scatters: whether the result is to be in tokens' order, else sorted by expert.

    Returns:
        [T, N]; zeros for rows of no expert.
    """
    return _grouped_linear(rows, weight, bias, *groups, gathers, scatters)


@torch.library.custom_op("minimoe_dist::expert_order", mutates_args=())
def _expert_order(expert: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    if runs_kernel(expert):
        from ..kernels.experts import expert_order

        return expert_order(expert.contiguous(), num_experts)
    counts = torch.bincount(expert, minlength=num_experts + 1)
    offsets = F.pad(counts.cumsum(0)[:num_experts], (1, 0))
    return torch.argsort(expert, stable=True).to(torch.int32), offsets.to(torch.int32)


@_expert_order.register_fake
def _(expert: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(expert), expert.new_empty(num_experts + 1)


@torch.library.custom_op("minimoe_dist::grouped_linear", mutates_args=())
def _grouped_linear(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    order: Tensor,
    offsets: Tensor,
    gathers: bool,
    scatters: bool,
) -> Tensor:
    if runs_kernel(rows):
        from ..kernels.experts import grouped_product

        tensors = (rows.contiguous(), weight, bias, order, offsets)
        return grouped_product(*tensors, gathers=gathers, scatters=scatters)
    return _plain_product(rows, weight, bias, order, offsets, gathers, scatters)


@_grouped_linear.register_fake
def _(rows: Tensor, weight: Tensor, *unused: Any) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[1])


@torch.library.custom_op("minimoe_dist::grouped_linear_gradient", mutates_args=())
def _gradient(
    upstream: Tensor,
    rows: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    gathers: bool,
    scatters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    upstream, rows = upstream.contiguous(), rows.contiguous()
    if runs_kernel(rows):
        from ..kernels.experts import grouped_product, grouped_weight_gradient

        # What was gathered is scattered on the way back.
        of_rows = grouped_product(
            upstream, weight, None, order, offsets,
            gathers=scatters, scatters=gathers, transposed=True,
        )  # fmt: skip
        of_weight_and_bias = grouped_weight_gradient(
            upstream, rows, weight, order, offsets, gathers=gathers, scatters=scatters
        )
        return of_rows, *of_weight_and_bias
    return _plain_gradient(upstream, rows, weight, order, offsets, gathers, scatters)


@_gradient.register_fake
def _(upstream: Tensor, rows: Tensor, weight: Tensor, *unused: Any) -> tuple[Tensor, ...]:
    return rows.new_empty(rows.shape), torch.empty_like(weight), weight.new_empty(weight.shape[:2])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, weight, _, order, offsets, *ctx.directions = inputs
    ctx.save_for_backward(rows, weight, order, offsets)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradient(upstream, *ctx.saved_tensors, *ctx.directions), None, None, None, None)


_grouped_linear.register_autograd(_backward, setup_context=_setup_context)


def _plain_product(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    order: Tensor,
    offsets: Tensor,
    gathers: bool,
    scatters: bool,
) -> Tensor:
    result = rows.new_zeros(rows.shape[0], weight.shape[1])
    for expert, (source, target) in enumerate(_rows_by_expert(order, offsets, gathers, scatters)):
        result[target] = F.linear(rows[source], weight[expert], bias[expert])
    return result


def _plain_gradient(
    upstream: Tensor,
    rows: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    gathers: bool,
    scatters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    of_rows, of_weight = torch.zeros_like(rows), torch.empty_like(weight)
    of_bias = weight.new_empty(weight.shape[:2])
    for expert, (source, target) in enumerate(_rows_by_expert(order, offsets, gathers, scatters)):
        of_rows[source] = upstream[target] @ weight[expert]
        of_weight[expert] = upstream[target].t() @ rows[source]
        of_bias[expert] = upstream[target].sum(0)
    return of_rows, of_weight, of_bias


def _rows_by_expert(
    order: Tensor, offsets: Tensor, gathers: bool, scatters: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields for each expert where its rows are read and where they are written."""
    for begin, end in pairwise(offsets.tolist()):
        sorted_rows = torch.arange(begin, end, device=order.device)
        token_rows = order[begin:end].long()
        yield token_rows if gathers else sorted_rows, token_rows if scatters else sorted_rows
