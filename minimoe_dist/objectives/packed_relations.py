"""The relation loss of packed samples, as an operator that compilers take as it is.

On a GPU it is a Triton kernel that leaves loss and gradient in one pass. Elsewhere it is plain
PyTorch, sample by sample, for tests and comparison: :mod:`.relations` has what CPUs are good at.

Shapes: B samples, N rows of all samples, R relation heads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.dispatch import runs_kernel


def packed_relation_loss(
    student: tuple[Tensor, Tensor, Tensor],
    teacher: tuple[Tensor, Tensor, Tensor],
    starts: Tensor,
    lengths: Tensor,
    heads: int,
    longest: int,
    valid: Tensor | None = None,
) -> Tensor:
    """Sums KL(teacher ‖ student) of query, key and value relations (MiniLMv2, eq. 4-5).

    Args:
        student: queries, keys and values, each [N, student width].
        teacher: the same, each [N, teacher width]; they get no gradient.
        starts: int32 [B], each sample's first row.
        lengths: int32 [B], rows of each sample; rows outside of all samples may hold anything,
            finite or not.
        heads: R; divides both widths.
        longest: no length is greater; decides what is launched.
        valid: bool [N], which rows of samples are tokens; None: all.

    Returns:
        float32, summed in float32 and over programs in float64.
    """
    with_gradient = torch.is_grad_enabled() and any(signal.requires_grad for signal in student)
    losses = [
        _relation_loss(x, y.detach(), starts, lengths, valid, heads, longest, with_gradient)[0]
        for x, y in zip(student, teacher, strict=True)
    ]
    return torch.stack(losses).sum()


@torch.library.custom_op("minimoe_dist::relation_loss", mutates_args=())
def _relation_loss(
    student: Tensor,
    teacher: Tensor,
    starts: Tensor,
    lengths: Tensor,
    valid: Tensor | None,
    heads: int,
    longest: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    gradient = student.new_empty(0, dtype=torch.float32)
    if with_gradient:
        gradient = student.new_zeros(student.shape, dtype=torch.float32)
    if runs_kernel(student):
        from ..kernels.relations import relation_loss

        losses = relation_loss(
            _contiguous_rows(student), _contiguous_rows(teacher), starts, lengths, valid, heads,
            longest, gradient if with_gradient else None,
        )  # fmt: skip
        return losses.sum(dtype=torch.float64).float(), gradient
    return _plain_loss(student, teacher, starts, lengths, valid, heads, gradient), gradient


def _contiguous_rows(signal: Tensor) -> Tensor:
    """Returns the signal with the columns of a row side by side, whatever lies between rows."""
    return signal if signal.stride(-1) == 1 else signal.contiguous()


@_relation_loss.register_fake
def _(
    student: Tensor,
    teacher: Tensor,
    starts: Tensor,
    lengths: Tensor,
    valid: Tensor | None,
    heads: int,
    longest: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    shape = student.shape if with_gradient else (0,)
    return (
        student.new_empty((), dtype=torch.float32),
        student.new_empty(shape, dtype=torch.float32),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    # Scaled before the cast to the student's type: half precision may not hold the factor.
    scaled = None if upstream is None else (gradient * upstream).to(ctx.dtype)
    return (scaled, *[None] * 7)


_relation_loss.register_autograd(_backward, setup_context=_setup_context)


def _plain_loss(
    student: Tensor,
    teacher: Tensor,
    starts: Tensor,
    lengths: Tensor,
    valid: Tensor | None,
    heads: int,
    gradient: Tensor,
) -> Tensor:
    """Sums the loss of all samples; writes ``gradient`` unless it is empty."""
    total = torch.zeros((), dtype=torch.float64, device=student.device)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        rows = torch.arange(start, start + length, device=student.device)
        if valid is not None:
            rows = rows[valid[rows]]
        student_heads = student[rows].float().unflatten(-1, (heads, -1)).transpose(0, 1)
        teacher_heads = teacher[rows].float().unflatten(-1, (heads, -1)).transpose(0, 1)
        student_logs, teacher_logs = _log_relations(student_heads), _log_relations(teacher_heads)
        total += F.kl_div(student_logs, teacher_logs, reduction="sum", log_target=True)
        if gradient.numel():
            slope = student_logs.exp() - teacher_logs.exp()
            symmetric = slope + slope.transpose(-1, -2)
            head_gradient = symmetric @ student_heads / student_heads.shape[-1] ** 0.5
            gradient[rows] = head_gradient.transpose(0, 1).flatten(1)
    return total.float()


def _log_relations(rows: Tensor) -> Tensor:
    """Computes the logarithms of one sample's relations, [R, L, d] to [R, L, L]."""
    return (rows @ rows.transpose(-1, -2) / rows.shape[-1] ** 0.5).log_softmax(-1)
