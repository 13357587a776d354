"""Relation distillation loss (MiniLMv2) computed in tiles that are never kept.

For X in {query, key, value}, viewed as R relation heads of size H/R, the relations of one
head are softmax(X_h X_h^T / sqrt(H/R)) over the keys that are not padding. The loss is
KL(teacher || student) of the relations, over rows (sample, head, query that is not padding).

Teacher and student may differ in width: only the number of relation heads is shared.

The relations of a whole batch, [batch, heads, length, length], never exist. A tile holds
those of a few (sample, head) pairs; while it is in cache, it yields both its part of the loss
and the student's gradient, so that neither storage nor recomputation is left to the backward
pass. Extra peak memory is three tiles and one gradient of each of the student's signals.

Shapes in this file: B samples, S positions, H width, R relation heads, d = H/R; in a tile: n
(sample, head) pairs, L positions of its longest sample. `heads` are [n, L, d], tiles [n, L, L].
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .packed_relations import packed_relation_loss

Signals = tuple[Tensor, Tensor, Tensor]


class Dropout(Protocol):
    """Decides what is dropped of the student's relations."""

    def factors(self, signal: int, samples: slice, heads: slice, length: int) -> Tensor:
        """Returns the factors of a tile's relations, float32 [samples x heads, length, length].

        The signals are counted from 0; they must not depend on how a batch is cut into tiles.
        """


# Added to both sides' probabilities under `compat_seed`, as in the published implementation.
SEED_EPSILON = 1e-7

# On a CPU three tiles of float32 should stay in the last-level cache; a GPU wants large kernels.
_CPU_TILE_ELEMENTS = 2**19
_GPU_TILE_ELEMENTS = 2**24

# Finite, so that differences of two masked scores stay finite as well.
_MASKED_SCORE = -1e30


def relation_loss_sum(
    student: Signals,
    teacher: Signals,
    attention_mask: Tensor,
    num_relation_heads: int,
    *,
    compat_seed: bool = False,
    dropout: Dropout | None = None,
    tile_elements: int | None = None,
) -> tuple[Tensor, int | Tensor]:
    """Sums KL(teacher || student) of the query, key and value relations (MiniLMv2, eq. 4-5).

    The mean loss of the seed is ``sum / (3 * rows)``. Computation is in float32 (float64 if the
    student is float64) whatever the inputs' types, also under autocast. Padding positions of the
    inputs are never read into a sum: they may hold anything, and their gradient is zero. On GPUs
    a kernel (:mod:`.packed_relations`) takes the place of tiles, which are many times as slow
    there, but for float64 and `compat_seed`.

    Args:
        student: Query, key and value projections, each [B, S, student width].
        teacher: The same of the teacher, each [B, S, teacher width]; they get no gradient.
        attention_mask: [B, S], true (non-zero) where a position is not padding.
        num_relation_heads: R; divides both widths.
        compat_seed: Add 1e-7 to the probabilities of both sides, inside and outside of the
            logarithm, as the published implementation does.
        dropout: Dropout of the student's relations, a habit of the published implementation and
            hence only with `compat_seed`; none in evaluation.
        tile_elements: Size of a tile in elements; by default what suits the device.

    Returns:
        The sum as a scalar, and the rows of each of the three: R x positions not padding; on a
        GPU a scalar tensor, for which nobody has to wait.
    """
    _check(student, teacher, attention_mask, num_relation_heads)
    assert dropout is None or compat_seed, "a dropped relation has an infinite divergence"
    device, valid = attention_mask.device, attention_mask.bool()
    takes_kernel = student[0].is_cuda and student[0].dtype != torch.float64
    if takes_kernel and not compat_seed and tile_elements is None:
        loss = _by_kernel(student, teacher, valid, num_relation_heads)
        return loss, num_relation_heads * valid.sum()
    default_elements = _CPU_TILE_ELEMENTS if device.type == "cpu" else _GPU_TILE_ELEMENTS
    valid_on_host = valid.cpu()
    plan = _Plan(
        tiles=_tiles(valid_on_host, num_relation_heads, tile_elements or default_elements),
        num_relation_heads=num_relation_heads,
        compat_seed=compat_seed,
        dropout=dropout,
        wants_gradient=torch.is_grad_enabled(),
    )
    rows = num_relation_heads * int(valid_on_host.sum())
    total = _TiledRelationLoss.apply(plan, valid, *student, *(x.detach() for x in teacher))
    return total, rows


def _by_kernel(student: Signals, teacher: Signals, valid: Tensor, heads: int) -> Tensor:
    """Sums the loss by a kernel, for a mask bool [B, S], which may have holes."""
    samples, length = valid.shape
    positions = torch.arange(1, length + 1, device=valid.device)
    bounds = (valid * positions).amax(1).to(torch.int32)
    starts = torch.arange(samples, device=valid.device, dtype=torch.int32) * length
    student, teacher = (_rows_of(signals) for signals in (student, teacher))
    return packed_relation_loss(student, teacher, starts, bounds, heads, length, valid.flatten())


def _rows_of(signals: Signals) -> Signals:
    """Flattens the three signals from [B, S, H] to [B · S, H]."""
    query, key, value = (signal.flatten(0, 1) for signal in signals)
    return query, key, value


def _check(student: Signals, teacher: Signals, mask: Tensor, num_relation_heads: int) -> None:
    for side, signals in (("student", student), ("teacher", teacher)):
        for signal in signals:
            assert signal.shape[-1] % num_relation_heads == 0, (side, signal.shape)
            assert signal.shape[:2] == mask.shape, (side, signal.shape, mask.shape)


@dataclass(frozen=True)
class _Tile:
    """A run of samples and a run of heads; positions from `length` on are padding in all."""

    samples: slice
    heads: slice
    length: int
    is_ragged: bool

    @property
    def elements(self) -> int:
        """Number of relations in the tile: samples x heads x length squared."""
        return _length(self.samples) * _length(self.heads) * self.length**2


@dataclass(frozen=True)
class _Plan:
    """The tiles of a batch, and what is computed on them."""

    tiles: list[_Tile]
    num_relation_heads: int
    compat_seed: bool
    dropout: Dropout | None
    wants_gradient: bool

    @property
    def buffer_elements(self) -> int:
        """Elements of the largest tile."""
        return max((tile.elements for tile in self.tiles), default=0)


def _length(run: slice) -> int:
    return run.stop - run.start


def _tiles(valid: Tensor, heads: int, tile_elements: int) -> list[_Tile]:
    """Cuts the batch into tiles of at most `tile_elements` (or one sample's one head).

    A tile of a single sample, or of samples of one length, is cropped to it and needs no mask.
    """
    tokens = valid.sum(dim=1).tolist()
    positions = torch.arange(1, valid.shape[1] + 1)
    lengths = (valid * positions).amax(dim=1).tolist() if valid.numel() else []
    tiles = []
    start, batch = 0, len(lengths)
    while start < batch:
        stop, longest = start + 1, lengths[start]
        while stop < batch:
            new_longest = max(longest, lengths[stop])
            if (stop + 1 - start) * heads * new_longest**2 > tile_elements:
                break
            stop, longest = stop + 1, new_longest
        if longest:
            is_ragged = any(tokens[b] != longest for b in range(start, stop))
            step = min(heads, max(1, tile_elements // longest**2))
            for head in range(0, heads, step):
                head_run = slice(head, min(head + step, heads))
                tiles.append(_Tile(slice(start, stop), head_run, longest, is_ragged))
        start = stop
    return tiles


class _TiledRelationLoss(torch.autograd.Function):
    """Sums the loss over tiles; the student's gradients are made on the way forward."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, valid: Tensor, *signals: Tensor) -> Tensor:
        students, teachers = signals[:3], signals[3:]
        dtype = torch.promote_types(students[0].dtype, torch.float32)
        device = valid.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        buffers = torch.empty(3, plan.buffer_elements, dtype=dtype, device=device)
        gradients: list[Tensor | None] = []
        # Autocast would turn the products of float32 tiles into half precision.
        with torch.autocast(device.type, enabled=False):
            for i, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
                needs_gradient = plan.wants_gradient and ctx.needs_input_grad[2 + i]
                gradient = torch.zeros_like(student, dtype=dtype) if needs_gradient else None
                for tile in plan.tiles:
                    total += _tile_loss(plan, tile, i, student, teacher, valid, buffers, gradient)
                gradients.append(gradient)
        ctx.save_for_backward(*gradients)
        return total.to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_output,) = grad_outputs
        # Scaled before the cast to the student's type: half precision may not hold the factor.
        scaled = (None if g is None else g * grad_output for g in ctx.saved_tensors)
        return (None, None, *scaled, None, None, None)


def _tile_loss(
    plan: _Plan,
    tile: _Tile,
    signal: int,
    student: Tensor,
    teacher: Tensor,
    valid: Tensor,
    buffers: Tensor,
    gradient: Tensor | None,
) -> Tensor:
    """Returns a tile's part of a signal's loss and writes its part of `gradient` [B, S, H]."""
    mask = valid[tile.samples, : tile.length] if tile.is_ragged else None
    student_heads = _heads_of(student, tile, plan.num_relation_heads, mask, buffers.dtype)
    teacher_heads = _heads_of(teacher, tile, plan.num_relation_heads, mask, buffers.dtype)
    shape = (student_heads.shape[0], tile.length, tile.length)
    student_tile, teacher_tile, scratch = (b[: math.prod(shape)].view(shape) for b in buffers)
    _shifted_scores(student_heads, mask, out=student_tile)
    _shifted_scores(teacher_heads, mask, out=teacher_tile)
    rows = mask.repeat_interleave(_length(tile.heads), dim=0) if mask is not None else None
    needs_gradient = gradient is not None
    if plan.compat_seed:
        _softmax(student_tile, rows)
        _softmax(teacher_tile, rows)
        dropout_factors = None
        if plan.dropout is not None:
            dropout_factors = plan.dropout.factors(signal, tile.samples, tile.heads, tile.length)
        loss = _seed_divergence(student_tile, teacher_tile, dropout_factors, needs_gradient)
    else:
        loss = _divergence(student_tile, teacher_tile, scratch, rows, needs_gradient)
    if gradient is not None:
        _write_gradient(student_heads, student_tile, tile, plan.num_relation_heads, gradient)
    return loss


def _heads_of(
    signal: Tensor, tile: _Tile, num_heads: int, mask: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Returns the tile's part of a [B, S, H] signal as [n, L, d] (a view where it can be one)."""
    heads = _tile_view(signal, tile, num_heads).to(dtype)
    if mask is not None:
        heads = heads.masked_fill(~mask[:, None, :, None], 0.0)
    return heads.flatten(0, 1)


def _tile_view(signal: Tensor, tile: _Tile, num_heads: int) -> Tensor:
    """Views the tile's part of a [B, S, H] signal as [samples, heads, L, d]."""
    head_size = signal.shape[-1] // num_heads
    columns = slice(tile.heads.start * head_size, tile.heads.stop * head_size)
    part = signal[tile.samples, : tile.length, columns]
    return part.unflatten(-1, (_length(tile.heads), head_size)).transpose(1, 2)


def _shifted_scores(heads: Tensor, mask: Tensor | None, *, out: Tensor) -> None:
    """Writes scores / ln 2, less each row's maximum, with masked keys far below.

    Powers of two are both the faster and the more accurate exponential on a CPU.
    """
    factor = heads.shape[-1] ** -0.5 / math.log(2.0)
    torch.baddbmm(out, heads, heads.transpose(1, 2), beta=0.0, alpha=factor, out=out)
    if mask is not None:
        by_sample = out.view(mask.shape[0], -1, *out.shape[1:])
        by_sample.masked_fill_(~mask[:, None, None, :], _MASKED_SCORE)
    out.sub_(out.amax(dim=-1, keepdim=True))


def _softmax(shifted: Tensor, rows: Tensor | None) -> Tensor:
    """Turns shifted scores into probabilities in place; rows of padding become zero.

    Returns the base-2 logarithm of each row's sum of powers, [n, L, 1]; zero for padding.
    """
    sums = shifted.exp2_().sum(dim=-1, keepdim=True)
    weights = sums.reciprocal()
    logarithms = sums.log2_()
    if rows is not None:
        weights *= rows[:, :, None]
        logarithms *= rows[:, :, None]
    shifted.mul_(weights)
    return logarithms


def _divergence(
    student_tile: Tensor,
    teacher_tile: Tensor,
    scratch: Tensor,
    rows: Tensor | None,
    needs_gradient: bool,
) -> Tensor:
    """Computes the KL of two tiles of shifted scores; leaves d loss / d scores in the student's.

    With log p = score - log sum, KL = sum p_t (score_t - score_s) - log sum_t + log sum_s.
    """
    torch.sub(teacher_tile, student_tile, out=scratch)
    teacher_logarithms = _softmax(teacher_tile, rows)
    student_logarithms = _softmax(student_tile, rows)
    bits = scratch.mul_(teacher_tile).sum(dim=-1).sum(dtype=torch.float64)
    bits += (student_logarithms - teacher_logarithms).sum(dtype=torch.float64)
    if needs_gradient:
        student_tile.sub_(teacher_tile)
    return bits * math.log(2.0)


def _seed_divergence(
    student_tile: Tensor, teacher_tile: Tensor, dropout_factors: Tensor | None, needs_gradient: bool
) -> Tensor:
    """Computes the published loss, Σ (p_t + e)(log(p_t + e) - log(p_s + e)), p_s after dropout.

    Rows and keys of padding are zero on both sides and add nothing. Leaves d loss / d scores in
    the student's tile.
    """
    dropped = student_tile if dropout_factors is None else student_tile * dropout_factors
    ratio = (teacher_tile + SEED_EPSILON).div_(dropped + SEED_EPSILON)
    loss = ratio.log().mul_(teacher_tile + SEED_EPSILON).sum(dtype=torch.float64)
    if needs_gradient:
        slope = ratio.neg_() if dropout_factors is None else ratio.neg_().mul_(dropout_factors)
        mean = (slope * student_tile).sum(dim=-1, keepdim=True)
        student_tile.mul_(slope.sub_(mean))
    return loss


def _write_gradient(
    student_heads: Tensor, slope: Tensor, tile: _Tile, num_heads: int, gradient: Tensor
) -> None:
    """Writes (D + D^T) X / sqrt(d) of each head, D being d loss / d scores, into `gradient`.

    The products are made transposed, X^T D^T and X^T D: twice as fast for narrow heads.
    """
    factor = student_heads.shape[-1] ** -0.5
    transposed = student_heads.transpose(1, 2)
    result = torch.bmm(transposed, slope).mul_(factor)
    result.baddbmm_(transposed, slope.transpose(1, 2), alpha=factor)
    part = _tile_view(gradient, tile, num_heads)
    part.copy_(result.transpose(1, 2).unflatten(0, part.shape[:2]))
