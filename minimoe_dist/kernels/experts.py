"""Products of rows with the weights of their experts, and the order that groups rows by expert.

Rows are gathered as they are read and scattered as they are written, so no sorted copy of the
tokens is ever made; groups may have any size, also none. Which expert a tile of rows belongs to is
found on the device: the host never learns how many tokens an expert has. All sums have a fixed
order, so that a step repeats bit for bit.

Shapes: T rows, E experts, K inputs, N outputs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import power_of_two, product_precision

_ORDER_BLOCK = 2048
_MANY_ROWS = 512  # rows an expert from which a tile of 128 is mostly full
_MULTIPROCESSORS = 128  # about as many as the devices have that this is for


@triton.jit
def _sort(expert, order, offsets, num_rows, BLOCK: tl.constexpr):
    """Sorts rows by expert; each one's program counts the rows before its own, then lists them."""
    this_expert = tl.program_id(0)
    begin = 0
    for first in range(0, num_rows, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        ids = tl.load(expert + rows, mask=rows < num_rows, other=2147483647)
        begin += tl.sum((ids < this_expert).to(tl.int32), 0)
    tl.store(offsets + this_expert, begin)
    for first in range(0, num_rows, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        ids = tl.load(expert + rows, mask=rows < num_rows, other=2147483647)
        matches = (ids == this_expert).to(tl.int32)
        tl.store(order + begin + tl.cumsum(matches, 0) - 1, rows, mask=matches != 0)
        begin += tl.sum(matches, 0)


@triton.jit
def _group_of(
    tile, offsets, num_rows, EXPERTS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr
):
    """Finds a tile's (expert, first row, end of its rows); behind the experts, rows of none."""
    slots = tl.arange(0, SLOTS)
    begins = tl.load(offsets + slots, mask=slots <= EXPERTS, other=0)
    ends = tl.load(offsets + slots + 1, mask=slots < EXPERTS, other=0)
    ends = tl.where(slots == EXPERTS, num_rows, ends)
    tiles = tl.where(slots <= EXPERTS, (ends - begins + ROWS - 1) // ROWS, 0)
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    tiles_before = tl.sum(tl.where(slots < expert, tiles, 0), 0)
    begin = tl.sum(tl.where(slots == expert, begins, 0), 0)
    end = tl.sum(tl.where(slots == expert, ends, 0), 0)
    return expert, begin + (tile - tiles_before) * ROWS, end


@triton.jit
def _products(
    rows, weight, bias, out, order, offsets, num_rows, output_stride, input_stride,
    K: tl.constexpr, N: tl.constexpr, EXPERTS: tl.constexpr, SLOTS: tl.constexpr,
    GATHERS: tl.constexpr, SCATTERS: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Sets out[r] = W[e(r)] · rows[r] + bias[e(r)]; W's strides say which axis is summed over."""
    blocks: tl.constexpr = (N + OUTPUTS - 1) // OUTPUTS
    tile, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    expert, first, end = _group_of(tile, offsets, num_rows, EXPERTS, SLOTS, ROWS)
    if expert <= EXPERTS:
        sorted_rows = first + tl.arange(0, ROWS)
        inside = sorted_rows < end
        token_rows = sorted_rows
        if GATHERS or SCATTERS:
            token_rows = tl.load(order + sorted_rows, mask=inside, other=0)
        source = (token_rows if GATHERS else sorted_rows).to(tl.int64)
        target = (token_rows if SCATTERS else sorted_rows).to(tl.int64)
        outputs = block * OUTPUTS + tl.arange(0, OUTPUTS)
        output_mask = outputs < N
        result = tl.zeros((ROWS, OUTPUTS), tl.float32)
        if expert < EXPERTS:
            matrix = weight + expert.to(tl.int64) * (K * N)
            for start in range(0, K, INPUTS):
                inputs = start + tl.arange(0, INPUTS)
                input_mask = inputs < K
                x = tl.load(
                    rows + source[:, None] * K + inputs[None, :],
                    mask=inside[:, None] & input_mask[None, :],
                    other=0.0,
                )
                w = tl.load(
                    matrix + inputs[:, None] * input_stride + outputs[None, :] * output_stride,
                    mask=input_mask[:, None] & output_mask[None, :],
                    other=0.0,
                )
                result = tl.dot(x, w, result, input_precision=PRECISION)
            if HAS_BIAS:
                expert_bias = tl.load(bias + expert * N + outputs, mask=output_mask, other=0.0)
                result += expert_bias.to(tl.float32)[None, :]
        indices = target[:, None] * N + outputs[None, :]
        result = result.to(out.dtype.element_ty)
        tl.store(out + indices, result, mask=inside[:, None] & output_mask[None, :])


@triton.jit
def _weight_gradients(
    upstream, rows, weight_gradient, bias_gradient, order, offsets,
    K: tl.constexpr, N: tl.constexpr, GATHERS: tl.constexpr, SCATTERS: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Sums upstream ⊗ row, and upstream, over an expert's rows."""
    expert = tl.program_id(0)
    begin, end = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    outputs = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    inputs = tl.program_id(2) * INPUTS + tl.arange(0, INPUTS)
    output_mask, input_mask = outputs < N, inputs < K
    of_weight = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    of_bias = tl.zeros((OUTPUTS,), tl.float32)
    for first in range(begin, end, ROWS):
        sorted_rows = first + tl.arange(0, ROWS)
        inside = sorted_rows < end
        token_rows = sorted_rows
        if GATHERS or SCATTERS:
            token_rows = tl.load(order + sorted_rows, mask=inside, other=0)
        source = (token_rows if GATHERS else sorted_rows).to(tl.int64)
        target = (token_rows if SCATTERS else sorted_rows).to(tl.int64)
        of_out = tl.load(
            upstream + target[:, None] * N + outputs[None, :],
            mask=inside[:, None] & output_mask[None, :],
            other=0.0,
        )
        x = tl.load(
            rows + source[:, None] * K + inputs[None, :],
            mask=inside[:, None] & input_mask[None, :],
            other=0.0,
        )
        of_weight = tl.dot(tl.trans(of_out), x, of_weight, input_precision=PRECISION)
        of_bias += tl.sum(of_out.to(tl.float32), 0)
    indices = (expert.to(tl.int64) * N + outputs)[:, None] * K + inputs[None, :]
    narrowed = of_weight.to(weight_gradient.dtype.element_ty)
    tl.store(weight_gradient + indices, narrowed, mask=output_mask[:, None] & input_mask[None, :])
    if tl.program_id(2) == 0:
        sums = of_bias.to(bias_gradient.dtype.element_ty)
        tl.store(bias_gradient + expert * N + outputs, sums, mask=output_mask)


def expert_order(expert: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Sorts rows by expert, in their own order within one.

    Args:
        expert: int32 [T]; ``num_experts`` for rows that go to none, which come last.
        num_experts: E.

    Returns:
        int32 [T], rows; int32 [E + 1], where each expert's begin, and the end of the last.
    """
    order = torch.empty_like(expert)
    offsets = torch.empty(num_experts + 1, dtype=torch.int32, device=expert.device)
    _sort[(num_experts + 1,)](
        expert, order, offsets, expert.numel(), BLOCK=_ORDER_BLOCK, num_warps=8
    )
    return order, offsets


def grouped_product(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor,
    offsets: Tensor,
    *,
    gathers: bool,
    scatters: bool,
    transposed: bool = False,
) -> Tensor:
    """Multiplies rows by the weights of their experts.

    Args:
        rows: [T, K], contiguous; in the tokens' order with ``gathers``, else sorted by expert.
        weight: [E, N, K], contiguous; with ``transposed`` [E, K, N].
        bias: [E, N] or None.
        order: int32 [T], of :func:`expert_order`.
        offsets: int32 [E + 1].
        gathers: row r of the sorted ones is ``rows[order[r]]``.
        scatters: the result of sorted row r belongs at ``order[r]``.
        transposed: multiply from the other side, as for the gradient of the rows.

    Returns:
        [T, N], zeros at rows that go to no expert.
    """
    experts, outputs, inputs = weight.shape
    strides = inputs, 1
    if transposed:
        outputs, inputs, strides = inputs, outputs, (1, inputs)
    num_rows = rows.shape[0]
    narrow = rows.element_size() <= 2
    tile = 128 if narrow and num_rows >= _MANY_ROWS * experts else 64
    block = 128 if narrow and outputs > 64 else 64
    tiles = triton.cdiv(num_rows, tile) + experts + 1
    out = rows.new_empty(num_rows, outputs)
    _products[(tiles * triton.cdiv(outputs, block),)](
        rows, weight, bias, out, order, offsets, num_rows, *strides,
        K=inputs, N=outputs, EXPERTS=experts, SLOTS=power_of_two(experts + 1, 2),
        GATHERS=gathers, SCATTERS=scatters, HAS_BIAS=bias is not None,
        PRECISION=product_precision(rows.dtype), ROWS=tile,
        INPUTS=64 if narrow else 32, OUTPUTS=block,
        num_warps=8 if tile * block == 128 * 128 else 4, num_stages=3,
    )  # fmt: skip
    return out


def grouped_weight_gradient(
    upstream: Tensor,
    rows: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    *,
    gathers: bool,
    scatters: bool,
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of weight [E, N, K] and bias [E, N] of :func:`grouped_product`.

    Args:
        upstream: [T, N], of the result, contiguous.
        rows: [T, K], those of the product.
        weight: [E, N, K], read for its shape and type.
        order: int32 [T], the product's.
        offsets: int32 [E + 1], the product's.
        gathers: the product's.
        scatters: the product's.
    """
    experts, outputs, inputs = weight.shape
    narrow = rows.element_size() <= 2
    size = 128 if narrow else 64
    programs = experts * triton.cdiv(outputs, size) * triton.cdiv(inputs, size)
    if programs < _MULTIPROCESSORS:
        size //= 2
    of_weight, of_bias = torch.empty_like(weight), weight.new_empty(experts, outputs)
    _weight_gradients[(experts, triton.cdiv(outputs, size), triton.cdiv(inputs, size))](
        upstream, rows, of_weight, of_bias, order, offsets,
        K=inputs, N=outputs, GATHERS=gathers, SCATTERS=scatters,
        PRECISION=product_precision(rows.dtype), ROWS=64 if narrow else 32,
        INPUTS=size, OUTPUTS=size, num_warps=8 if size == 128 else 4, num_stages=3,
    )  # fmt: skip
    return of_weight, of_bias
