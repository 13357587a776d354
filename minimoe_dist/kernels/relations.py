"""The relation loss of one signal with its gradient; relations live in registers only.

A program takes one (sample, head). Where no sample has more than 128 positions, it is one tile:
scores, loss and gradient in one pass. Longer ones take two: log-sums of rows with the loss, then
the gradient, over blocks. Scores are in units of ln 2: powers of two are the hardware's.

With scores s (student), t (teacher) and p = softmax, KL = Σ p_t (t − s) − lse_t + lse_s for each
row, and dKL/ds = p_s − p_t =: D. Scores are X Xᵀ / √d, so dKL/dX = (D + Dᵀ) X / √d.

Shapes: B samples, N rows of all samples, R heads, d width of a head, L positions of a tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import power_of_two, product_precision

_LN_2 = tl.constexpr(0.6931471805599453)
_MASKED = tl.constexpr(-1e30)  # finite, so that differences of masked scores are too
_ONE_TILE = 128
_BLOCK = 64


@triton.jit
def _inside(positions, length, valid, start, HAS_VALID: tl.constexpr):
    """Tells which positions are tokens of the sample."""
    inside = positions < length
    if HAS_VALID:
        inside = inside & (tl.load(valid + start + positions, mask=inside, other=0) != 0)
    return inside


@triton.jit
def _load(signal, start, stride, positions, inside, head, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Loads rows [L, TILE] of one head; zeros outside of the sample and beside the head."""
    columns = tl.arange(0, TILE)
    indices = (start + positions)[:, None] * stride + head * WIDTH + columns[None, :]
    return tl.load(signal + indices, mask=inside[:, None] & (columns[None, :] < WIDTH), other=0.0)


@triton.jit
def _scores(rows, keys, inside, WIDTH: tl.constexpr, PRECISION: tl.constexpr):
    """Computes scores / ln 2 of rows [L, TILE] for keys [M, TILE], far below at padding."""
    scale: tl.constexpr = WIDTH**-0.5 / _LN_2
    scores = tl.dot(rows, tl.trans(keys), input_precision=PRECISION) * scale
    return tl.where(inside[None, :], scores, _MASKED)


@triton.jit
def _store_gradient(
    gradient, result, start, positions, inside, head,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, TILE)
    indices = (start + positions)[:, None] * (HEADS * WIDTH) + head * WIDTH + columns[None, :]
    mask = inside[:, None] & (columns[None, :] < WIDTH)
    tl.store(gradient + indices, result * WIDTH**-0.5, mask=mask)


@triton.jit
def _tile(
    student, teacher, gradient, valid, student_stride, teacher_stride, start, length, head,
    HEADS: tl.constexpr, STUDENT: tl.constexpr, STUDENT_TILE: tl.constexpr,
    TEACHER: tl.constexpr, TEACHER_TILE: tl.constexpr, HAS_VALID: tl.constexpr,
    WITH_GRADIENT: tl.constexpr, PRECISION: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Returns the loss of one head of a sample of at most L positions; writes its gradient."""
    positions = tl.arange(0, L)
    inside = _inside(positions, length, valid, start, HAS_VALID)
    y = _load(teacher, start, teacher_stride, positions, inside, head, TEACHER, TEACHER_TILE)
    t = _scores(y, y, inside, TEACHER, PRECISION)
    t -= tl.max(t, 1)[:, None]
    x = _load(student, start, student_stride, positions, inside, head, STUDENT, STUDENT_TILE)
    s = _scores(x, x, inside, STUDENT, PRECISION)
    s -= tl.max(s, 1)[:, None]
    t_powers, s_powers = tl.exp2(t), tl.exp2(s)
    t_sums, s_sums = tl.sum(t_powers, 1), tl.sum(s_powers, 1)
    t_probabilities = t_powers / t_sums[:, None]
    losses = tl.sum(t_probabilities * (t - s), 1) - tl.log2(t_sums) + tl.log2(s_sums)
    if WITH_GRADIENT:
        in_sample = inside[:, None] & inside[None, :]
        slopes = tl.where(in_sample, s_powers / s_sums[:, None] - t_probabilities, 0.0)
        slopes = (slopes + tl.trans(slopes)).to(x.dtype)
        result = tl.dot(slopes, x, input_precision=PRECISION)
        _store_gradient(
            gradient, result, start, positions, inside, head, HEADS, STUDENT, STUDENT_TILE
        )
    return tl.sum(tl.where(inside, losses, 0.0), 0) * _LN_2


@triton.jit
def _in_one_pass(
    student, teacher, gradient, losses, starts, lengths, valid, student_stride, teacher_stride,
    HEADS: tl.constexpr, STUDENT: tl.constexpr, STUDENT_TILE: tl.constexpr,
    TEACHER: tl.constexpr, TEACHER_TILE: tl.constexpr, HAS_VALID: tl.constexpr,
    WITH_GRADIENT: tl.constexpr, PRECISION: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Computes ``losses`` [B · R] and the gradient; a program takes a (sample, head)."""
    program = tl.program_id(0)
    sample, head = program // HEADS, program % HEADS
    start, length = tl.load(starts + sample).to(tl.int64), tl.load(lengths + sample)
    # A short sample takes a small tile, so the work follows the tokens.
    if length * 2 > LARGEST:
        loss = _tile(
            student, teacher, gradient, valid, student_stride, teacher_stride, start, length, head,
            HEADS, STUDENT, STUDENT_TILE, TEACHER, TEACHER_TILE, HAS_VALID, WITH_GRADIENT,
            PRECISION, LARGEST,
        )  # fmt: skip
    else:
        loss = _tile(
            student, teacher, gradient, valid, student_stride, teacher_stride, start, length, head,
            HEADS, STUDENT, STUDENT_TILE, TEACHER, TEACHER_TILE, HAS_VALID, WITH_GRADIENT,
            PRECISION, LARGEST // 2,
        )  # fmt: skip
    tl.store(losses + program, loss)


@triton.jit
def _log_sums(
    student, teacher, s_logs, t_logs, losses, starts, lengths, valid,
    student_stride, teacher_stride, num_rows,
    HEADS: tl.constexpr, STUDENT: tl.constexpr, STUDENT_TILE: tl.constexpr,
    TEACHER: tl.constexpr, TEACHER_TILE: tl.constexpr, HAS_VALID: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Computes log-sums [R, N] of rows and ``losses`` [B · R, blocks], by blocks of rows."""
    program, block = tl.program_id(0), tl.program_id(1)
    sample, head = program // HEADS, program % HEADS
    start, length = tl.load(starts + sample).to(tl.int64), tl.load(lengths + sample)
    loss = tl.zeros((), tl.float32)
    if block * BLOCK < length:
        positions = block * BLOCK + tl.arange(0, BLOCK)
        inside = _inside(positions, length, valid, start, HAS_VALID)
        x = _load(student, start, student_stride, positions, inside, head, STUDENT, STUDENT_TILE)
        y = _load(teacher, start, teacher_stride, positions, inside, head, TEACHER, TEACHER_TILE)
        s_max = tl.full((BLOCK,), _MASKED, tl.float32)
        t_max = tl.full((BLOCK,), _MASKED, tl.float32)
        s_sums = tl.zeros((BLOCK,), tl.float32)
        t_sums = tl.zeros((BLOCK,), tl.float32)
        differences = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, length, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            mask = _inside(columns, length, valid, start, HAS_VALID)
            keys = _load(student, start, student_stride, columns, mask, head, STUDENT, STUDENT_TILE)
            s = _scores(x, keys, mask, STUDENT, PRECISION)
            keys = _load(teacher, start, teacher_stride, columns, mask, head, TEACHER, TEACHER_TILE)
            t = _scores(y, keys, mask, TEACHER, PRECISION)
            new_max = tl.maximum(s_max, tl.max(s, 1))
            s_sums = s_sums * tl.exp2(s_max - new_max) + tl.sum(tl.exp2(s - new_max[:, None]), 1)
            s_max = new_max
            new_max = tl.maximum(t_max, tl.max(t, 1))
            powers, rescale = tl.exp2(t - new_max[:, None]), tl.exp2(t_max - new_max)
            t_sums = t_sums * rescale + tl.sum(powers, 1)
            differences = differences * rescale + tl.sum(powers * (t - s), 1)
            t_max = new_max
        s_log, t_log = s_max + tl.log2(s_sums), t_max + tl.log2(t_sums)
        tl.store(s_logs + head * num_rows + start + positions, s_log, mask=inside)
        tl.store(t_logs + head * num_rows + start + positions, t_log, mask=inside)
        loss = tl.sum(tl.where(inside, differences / t_sums - t_log + s_log, 0.0), 0) * _LN_2
    tl.store(losses + program * tl.num_programs(1) + block, loss)


@triton.jit
def _gradients(
    student, teacher, gradient, s_logs, t_logs, starts, lengths, valid,
    student_stride, teacher_stride, num_rows,
    HEADS: tl.constexpr, STUDENT: tl.constexpr, STUDENT_TILE: tl.constexpr,
    TEACHER: tl.constexpr, TEACHER_TILE: tl.constexpr, HAS_VALID: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Computes the gradient by blocks of rows; scores are symmetric: one product gives D and Dᵀ."""
    program, block = tl.program_id(0), tl.program_id(1)
    sample, head = program // HEADS, program % HEADS
    start, length = tl.load(starts + sample).to(tl.int64), tl.load(lengths + sample)
    if block * BLOCK < length:
        positions = block * BLOCK + tl.arange(0, BLOCK)
        inside = _inside(positions, length, valid, start, HAS_VALID)
        x = _load(student, start, student_stride, positions, inside, head, STUDENT, STUDENT_TILE)
        y = _load(teacher, start, teacher_stride, positions, inside, head, TEACHER, TEACHER_TILE)
        logs = head * num_rows + start
        s_log = tl.load(s_logs + logs + positions, mask=inside, other=0.0)[:, None]
        t_log = tl.load(t_logs + logs + positions, mask=inside, other=0.0)[:, None]
        result = tl.zeros((BLOCK, STUDENT_TILE), tl.float32)
        for first in range(0, length, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            mask = _inside(columns, length, valid, start, HAS_VALID)
            keys = _load(teacher, start, teacher_stride, columns, mask, head, TEACHER, TEACHER_TILE)
            t = _scores(y, keys, mask, TEACHER, PRECISION)
            keys = _load(student, start, student_stride, columns, mask, head, STUDENT, STUDENT_TILE)
            s = _scores(x, keys, mask, STUDENT, PRECISION)
            s_column_log = tl.load(s_logs + logs + columns, mask=mask, other=0.0)[None, :]
            t_column_log = tl.load(t_logs + logs + columns, mask=mask, other=0.0)[None, :]
            slopes = tl.exp2(s - s_log) - tl.exp2(t - t_log)
            slopes += tl.exp2(s - s_column_log) - tl.exp2(t - t_column_log)
            slopes = tl.where(inside[:, None] & mask[None, :], slopes, 0.0).to(keys.dtype)
            result += tl.dot(slopes, keys, input_precision=PRECISION)
        _store_gradient(
            gradient, result, start, positions, inside, head, HEADS, STUDENT, STUDENT_TILE
        )


def relation_loss(
    student: Tensor,
    teacher: Tensor,
    starts: Tensor,
    lengths: Tensor,
    valid: Tensor | None,
    heads: int,
    longest: int,
    gradient: Tensor | None,
) -> Tensor:
    """Sums KL(teacher ‖ student) of the relations of one signal.

    Args:
        student: [N, H], rows in any stride, columns contiguous.
        teacher: [N, H'].
        starts: int32 [B], the first row of each sample.
        lengths: int32 [B], up to where a sample has tokens; the others' rows are not read.
        valid: bool [N], tokens among these; None: all.
        heads: R, divides both widths.
        longest: no length is greater.
        gradient: float32 [N, H], takes the gradient of tokens; None: not wanted.

    Returns:
        float32, partial sums of the loss.
    """
    samples, rows = starts.numel(), student.shape[0]
    widths = student.shape[1] // heads, teacher.shape[1] // heads
    strides = student.stride(0), teacher.stride(0)
    constants = {
        "HEADS": heads,
        "STUDENT": widths[0],
        "STUDENT_TILE": power_of_two(widths[0]),
        "TEACHER": widths[1],
        "TEACHER_TILE": power_of_two(widths[1]),
        "HAS_VALID": valid is not None,
        "PRECISION": product_precision(student.dtype),
    }
    if longest <= _ONE_TILE:
        largest = power_of_two(longest, at_least=32)
        losses = torch.empty(samples * heads, device=student.device)
        _in_one_pass[(samples * heads,)](
            student, teacher, gradient, losses, starts, lengths, valid, *strides,
            **constants, WITH_GRADIENT=gradient is not None, LARGEST=largest,
            num_warps=8 if largest == _ONE_TILE else 4,
        )  # fmt: skip
        return losses
    grid = (samples * heads, triton.cdiv(longest, _BLOCK))
    losses = torch.empty(grid, device=student.device)
    logs = torch.empty(2, heads, rows, device=student.device)
    _log_sums[grid](
        student, teacher, logs[0], logs[1], losses, starts, lengths, valid, *strides, rows,
        **constants, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    if gradient is not None:
        _gradients[grid](
            student, teacher, gradient, logs[0], logs[1], starts, lengths, valid, *strides, rows,
            **constants, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return losses
