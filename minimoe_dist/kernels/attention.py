"""Attention over packed samples with hashed dropout; probabilities live in registers only.

The well-known two-level scheme (FlashAttention-2): a program takes a block of queries of one
(sample, head) and walks over its keys with a running maximum and sum; the backward pass makes
probabilities again from the log-sums that the forward pass left. What dropout drops is made again
too: it is a hash of (sample, position, head, key), the one of `models.noise`.

Shapes: T packed tokens, A = heads · d, L queries of a block, M keys of a block.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import dropout_numbers, hash_bits, keep_mask, power_of_two, product_precision

_LN_2 = tl.constexpr(0.6931471805599453)
_MASKED = tl.constexpr(-1e30)
_UNSPECIALIZED = ("site", "site_bits", "threshold")  # every layer has others: one kernel for all


@triton.jit
def _load_part(
    projected, start, positions, length, head, part,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Loads rows [L, TILE] of a head's queries (0), keys (1) or values (2); zeros outside."""
    columns = tl.arange(0, TILE)
    indices = (start + positions)[:, None] * (PARTS * HEADS * WIDTH)
    indices += (part * HEADS + head) * WIDTH + columns[None, :]
    in_bounds = (positions < length)[:, None] & (columns[None, :] < WIDTH)
    return tl.load(projected + indices, mask=in_bounds, other=0.0)


@triton.jit
def _store_part(
    projected, values, start, positions, length, head, part,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, TILE)
    indices = (start + positions)[:, None] * (PARTS * HEADS * WIDTH)
    indices += (part * HEADS + head) * WIDTH + columns[None, :]
    in_bounds = (positions < length)[:, None] & (columns[None, :] < WIDTH)
    tl.store(projected + indices, values.to(projected.dtype.element_ty), mask=in_bounds)


@triton.jit
def _row_bits(keys, start, positions, length, head, site_bits):
    """Hashes the keys, uint32 [L], of rows of attention probabilities."""
    token_keys = tl.load(keys + start + positions, mask=positions < length, other=0)
    head_bits = hash_bits(head.to(tl.uint32))
    return hash_bits(
        (token_keys.to(tl.uint32, bitcast=True) ^ head_bits) + site_bits.to(tl.uint32, bitcast=True)
    )


@triton.jit
def _kept_factors(row_bits, columns, site, threshold, factor):
    """Returns 0 or 1 / (1 − probability) for each of [L, M]."""
    column_bits = hash_bits((columns + site).to(tl.uint32))
    return tl.where(keep_mask(row_bits, column_bits, threshold), factor, 0.0)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _forward(
    projected, context, log_sums, starts, lengths, keys, num_tokens,
    site, site_bits, threshold, factor,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, DROPS: tl.constexpr,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Computes contexts [T, A], and log-sums of scores / ln 2, float32 [heads, T]."""
    sample, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    start, length = tl.load(starts + sample).to(tl.int64), tl.load(lengths + sample)
    first_query = tl.program_id(1) * QUERIES
    if first_query < length:
        scale: tl.constexpr = WIDTH**-0.5 / _LN_2
        rows = first_query + tl.arange(0, QUERIES)
        query = _load_part(projected, start, rows, length, head, 0, HEADS, WIDTH, TILE, 3)
        row_bits = tl.zeros((QUERIES,), tl.uint32)
        if DROPS:
            row_bits = _row_bits(keys, start, rows, length, head, site_bits)
        row_max = tl.full((QUERIES,), _MASKED, tl.float32)
        sums = tl.zeros((QUERIES,), tl.float32)
        result = tl.zeros((QUERIES, TILE), tl.float32)
        for first in range(0, length, KEYS):
            columns = first + tl.arange(0, KEYS)
            key = _load_part(projected, start, columns, length, head, 1, HEADS, WIDTH, TILE, 3)
            scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
            scores = tl.where((columns < length)[None, :], scores, _MASKED)
            new_max = tl.maximum(row_max, tl.max(scores, 1))
            powers, rescale = tl.exp2(scores - new_max[:, None]), tl.exp2(row_max - new_max)
            sums = sums * rescale + tl.sum(powers, 1)
            if DROPS:
                powers *= _kept_factors(row_bits, columns, site, threshold, factor)
            value = _load_part(projected, start, columns, length, head, 2, HEADS, WIDTH, TILE, 3)
            products = tl.dot(powers.to(value.dtype), value, input_precision=PRECISION)
            result = result * rescale[:, None] + products
            row_max = new_max
        result = result / sums[:, None]
        _store_part(context, result, start, rows, length, head, 0, HEADS, WIDTH, TILE, 1)
        indices = head.to(tl.int64) * num_tokens + start + rows
        tl.store(log_sums + indices, row_max + tl.log2(sums), mask=rows < length)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _backward_queries(
    projected, context, upstream, log_sums, gradient, starts, lengths, keys, num_tokens,
    site, site_bits, threshold, factor,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, DROPS: tl.constexpr,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Computes the gradient of queries; a program takes a block of queries."""
    sample, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    start, length = tl.load(starts + sample).to(tl.int64), tl.load(lengths + sample)
    first_query = tl.program_id(1) * QUERIES
    if first_query < length:
        scale: tl.constexpr = WIDTH**-0.5 / _LN_2
        rows = first_query + tl.arange(0, QUERIES)
        query = _load_part(projected, start, rows, length, head, 0, HEADS, WIDTH, TILE, 3)
        of_context = _load_part(upstream, start, rows, length, head, 0, HEADS, WIDTH, TILE, 1)
        context_rows = _load_part(context, start, rows, length, head, 0, HEADS, WIDTH, TILE, 1)
        mean = tl.sum(of_context.to(tl.float32) * context_rows.to(tl.float32), 1)
        indices = head.to(tl.int64) * num_tokens + start + rows
        log_sum = tl.load(log_sums + indices, mask=rows < length, other=0.0)
        row_bits = tl.zeros((QUERIES,), tl.uint32)
        if DROPS:
            row_bits = _row_bits(keys, start, rows, length, head, site_bits)
        result = tl.zeros((QUERIES, TILE), tl.float32)
        for first in range(0, length, KEYS):
            columns = first + tl.arange(0, KEYS)
            key = _load_part(projected, start, columns, length, head, 1, HEADS, WIDTH, TILE, 3)
            scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
            scores = tl.where((columns < length)[None, :], scores, _MASKED)
            probabilities = tl.exp2(scores - log_sum[:, None])
            value = _load_part(projected, start, columns, length, head, 2, HEADS, WIDTH, TILE, 3)
            slopes = tl.dot(of_context, tl.trans(value), input_precision=PRECISION)
            if DROPS:
                slopes *= _kept_factors(row_bits, columns, site, threshold, factor)
            slopes = (probabilities * (slopes - mean[:, None])).to(key.dtype)
            result += tl.dot(slopes, key, input_precision=PRECISION)
        result *= WIDTH**-0.5
        _store_part(gradient, result, start, rows, length, head, 0, HEADS, WIDTH, TILE, 3)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _backward_keys(
    projected, context, upstream, log_sums, gradient, starts, lengths, keys, num_tokens,
    site, site_bits, threshold, factor,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, DROPS: tl.constexpr,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Computes the gradients of keys and values, by blocks of keys; tiles are [keys, queries]."""
    sample, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    start, length = tl.load(starts + sample).to(tl.int64), tl.load(lengths + sample)
    first_key = tl.program_id(1) * KEYS
    if first_key < length:
        scale: tl.constexpr = WIDTH**-0.5 / _LN_2
        columns = first_key + tl.arange(0, KEYS)
        key = _load_part(projected, start, columns, length, head, 1, HEADS, WIDTH, TILE, 3)
        value = _load_part(projected, start, columns, length, head, 2, HEADS, WIDTH, TILE, 3)
        column_bits = hash_bits((columns + site).to(tl.uint32))
        of_keys = tl.zeros((KEYS, TILE), tl.float32)
        of_values = tl.zeros((KEYS, TILE), tl.float32)
        for first in range(0, length, QUERIES):
            rows = first + tl.arange(0, QUERIES)
            query = _load_part(projected, start, rows, length, head, 0, HEADS, WIDTH, TILE, 3)
            of_context = _load_part(upstream, start, rows, length, head, 0, HEADS, WIDTH, TILE, 1)
            context_rows = _load_part(context, start, rows, length, head, 0, HEADS, WIDTH, TILE, 1)
            mean = tl.sum(of_context.to(tl.float32) * context_rows.to(tl.float32), 1)
            indices = head.to(tl.int64) * num_tokens + start + rows
            log_sum = tl.load(log_sums + indices, mask=rows < length, other=0.0)
            scores = tl.dot(key, tl.trans(query), input_precision=PRECISION) * scale
            in_bounds = (columns < length)[:, None] & (rows < length)[None, :]
            probabilities = tl.where(in_bounds, tl.exp2(scores - log_sum[None, :]), 0.0)
            slopes = tl.dot(value, tl.trans(of_context), input_precision=PRECISION)
            dropped = probabilities
            if DROPS:
                row_bits = _row_bits(keys, start, rows, length, head, site_bits)
                factors = tl.where(keep_mask(column_bits, row_bits, threshold), factor, 0.0)
                dropped = probabilities * factors
                slopes *= factors
            of_values += tl.dot(dropped.to(of_context.dtype), of_context, input_precision=PRECISION)
            slopes = (probabilities * (slopes - mean[None, :])).to(query.dtype)
            of_keys += tl.dot(slopes, query, input_precision=PRECISION)
        of_keys *= WIDTH**-0.5
        _store_part(gradient, of_keys, start, columns, length, head, 1, HEADS, WIDTH, TILE, 3)
        _store_part(gradient, of_values, start, columns, length, head, 2, HEADS, WIDTH, TILE, 3)


class Dropout(NamedTuple):
    """Hashed dropout of probabilities.

    Attributes:
        keys: int32 [T], of `models.noise.sample_keys`.
        probability: in (0, 1).
        site: number of the place in the network.
    """

    keys: Tensor
    probability: float
    site: int


def attention(
    projected: Tensor,
    starts: Tensor,
    lengths: Tensor,
    heads: int,
    longest: int,
    dropout: Dropout | None,
) -> tuple[Tensor, Tensor]:
    """Computes contexts of packed samples, and what the backward pass needs beside them.

    Args:
        projected: [T, 3 A], queries, keys and values side by side, contiguous.
        starts: int32 [B], each sample's first token.
        lengths: int32 [B].
        heads: attention heads.
        longest: no length is greater.
        dropout: None outside training.

    Returns:
        [T, A], zeros at tokens of no sample; log-sums, float32 [heads, T].
    """
    width = projected.shape[1] // (3 * heads)
    context = projected.new_zeros(projected.shape[0], heads * width)
    log_sums = torch.empty(heads, projected.shape[0], device=projected.device)
    queries, keys = _block_sizes(projected, width, longest)
    grid = (starts.numel() * heads, triton.cdiv(longest, queries))
    _forward[grid](
        projected, context, log_sums, starts, lengths, *_dropout_arguments(projected, dropout),
        **_constants(projected, heads, width, dropout), QUERIES=queries, KEYS=keys, num_warps=4,
    )  # fmt: skip
    return context, log_sums


def attention_gradient(
    upstream: Tensor,
    projected: Tensor,
    context: Tensor,
    log_sums: Tensor,
    starts: Tensor,
    lengths: Tensor,
    heads: int,
    longest: int,
    dropout: Dropout | None,
) -> Tensor:
    """Computes the gradient of ``projected`` for ``upstream`` of contexts (:func:`attention`)."""
    width = projected.shape[1] // (3 * heads)
    gradient = torch.zeros_like(projected)
    queries, keys = _block_sizes(projected, width, longest)
    tensors = (projected, context, upstream, log_sums, gradient, starts, lengths)
    arguments = _dropout_arguments(projected, dropout)
    constants = _constants(projected, heads, width, dropout)
    programs = starts.numel() * heads
    _backward_queries[(programs, triton.cdiv(longest, queries))](
        *tensors, *arguments, **constants, QUERIES=queries, KEYS=keys, num_warps=4
    )
    _backward_keys[(programs, triton.cdiv(longest, keys))](
        *tensors, *arguments, **constants, QUERIES=queries, KEYS=keys, num_warps=4
    )
    return gradient


def _block_sizes(projected: Tensor, width: int, longest: int) -> tuple[int, int]:
    """Chooses queries and keys of a block; wide heads and float32 leave fewer registers."""
    largest = 64 if width <= 64 and projected.element_size() <= 2 else 32
    size = min(largest, power_of_two(longest))
    return size, size


def _dropout_arguments(projected: Tensor, dropout: Dropout | None) -> tuple[Any, ...]:
    tokens = projected.shape[0]
    if dropout is None:
        return projected, tokens, 0, 0, 0, 1.0
    return dropout.keys, tokens, dropout.site, *dropout_numbers(dropout.probability, dropout.site)


def _constants(
    projected: Tensor, heads: int, width: int, dropout: Dropout | None
) -> dict[str, int | bool | str]:
    return {
        "HEADS": heads,
        "WIDTH": width,
        "TILE": power_of_two(width),
        "DROPS": dropout is not None,
        "PRECISION": product_precision(projected.dtype),
    }
