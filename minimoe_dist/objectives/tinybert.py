"""TinyBERT's general distillation: hidden states and attention scores, by squared error.

Two errors are averaged (Jiao et al. 2020, equations 7 and 8): that of the embeddings' output and
the last hidden states, and that of the last layer's attention scores before the softmax. Only what
belongs to real tokens counts: states of padding and scores from or to padding are left out.

The scores of a batch, [batch, heads, length, length], are never stored: they are made from queries
and keys for a few samples at a time, and yield their gradient while they are in cache.

Shapes: B samples, S positions, H the teacher's width, A the width of one side's attention.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

# As for relations: what stays in a CPU's cache, and what fills a GPU.
_CPU_TILE_ELEMENTS = 2**19
_GPU_TILE_ELEMENTS = 2**24


class States(NamedTuple):
    """The states that TinyBERT compares.

    Attributes:
        embeddings: [B, S, H], output of the embeddings; the student's as mapped to H.
        hidden: [B, S, H], last hidden states; the student's as mapped to H.
        queries: [B, S, A] of the last layer's attention.
        keys: [B, S, A] of the same.
    """

    embeddings: Tensor
    hidden: Tensor
    queries: Tensor
    keys: Tensor


class TinyBertCounts(NamedTuple):
    """Counts of the elements that each squared error is a sum over."""

    states: int
    scores: int


class TinyBertSums(NamedTuple):
    """Summed squared errors, scalars, and the counts that make them means.

    The loss of a whole step is (states / states' count + scores / scores' count) / 2, sums and
    counts each over all micro-batches and ranks.
    """

    states: Tensor
    scores: Tensor
    counts: TinyBertCounts

    def mean(self) -> Tensor:
        """Computes the loss of these samples alone."""
        states = self.states / max(1, self.counts.states)
        return (states + self.scores / max(1, self.counts.scores)) / 2


def tinybert_counts(
    attention_mask: Tensor, teacher_width: int, num_heads: int, *, padded_length: int | None = None
) -> TinyBertCounts:
    """Counts what a batch's squared errors are sums over, before its loss is known.

    Args:
        attention_mask: [B, S], true (non-zero) where a position is not padding.
        teacher_width: H.
        num_heads: attention heads of either side.
        padded_length: with compat seed, the length that the published implementation pads to: it
            divides by the scores to padding as well, whose error is zero.
    """
    lengths = attention_mask.bool().sum(1).cpu()
    tokens = int(lengths.sum())
    pairs = int((lengths**2).sum()) if padded_length is None else tokens * padded_length
    return TinyBertCounts(states=2 * tokens * teacher_width, scores=num_heads * pairs)


def tinybert_loss_sums(
    student: States,
    teacher: States,
    attention_mask: Tensor,
    num_heads: int,
    *,
    padded_length: int | None = None,
    tile_elements: int | None = None,
) -> TinyBertSums:
    """Sums the squared errors of the student's states and attention scores.

    Computation is in float32 (float64 if the student is float64) whatever the inputs' types, also
    under autocast. Padding positions of the inputs may hold anything; their gradient is zero.

    Args:
        student: mapped to the teacher's width.
        teacher: gets no gradient.
        attention_mask: [B, S], true (non-zero) where a position is not padding.
        num_heads: attention heads, the same number on both sides; their sizes may differ.
        padded_length: see :func:`tinybert_counts`.
        tile_elements: scores made at a time; by default what suits the device.
    """
    width = teacher.hidden.shape[-1]
    _check(student, teacher, num_heads)
    valid = attention_mask.bool()
    device = valid.device.type
    if tile_elements is None:
        tile_elements = _CPU_TILE_ELEMENTS if device == "cpu" else _GPU_TILE_ELEMENTS
    # Autocast would turn products of float32 into half precision.
    with torch.autocast(device, enabled=False):
        states = _squared_error(student.embeddings, teacher.embeddings, valid)
        states = states + _squared_error(student.hidden, teacher.hidden, valid)
        samples = max(1, tile_elements // max(1, num_heads * valid.shape[1] ** 2))
        scores = _ScoreError.apply(
            valid,
            num_heads,
            samples,
            student.queries,
            student.keys,
            teacher.queries.detach(),
            teacher.keys.detach(),
        )
    counts = tinybert_counts(valid, width, num_heads, padded_length=padded_length)
    return TinyBertSums(states, scores, counts)


def _check(student: States, teacher: States, num_heads: int) -> None:
    for student_shape, teacher_shape in (
        (student.embeddings.shape, teacher.embeddings.shape),
        (student.hidden.shape, teacher.hidden.shape),
    ):
        assert student_shape == teacher_shape, (student_shape, teacher_shape)
    for states in (student, teacher):
        assert states.queries.shape[-1] % num_heads == 0, (states.queries.shape, num_heads)


def _squared_error(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    dtype = torch.promote_types(student.dtype, torch.float32)
    difference = student.to(dtype) - teacher.detach().to(dtype)
    return difference.masked_fill(~valid[:, :, None], 0.0).square().sum()


class _ScoreError(torch.autograd.Function):
    """Sums (Q K'/√d − Q' K''/√d')², a few samples at a time; gradients are made on the way."""

    @staticmethod
    def forward(
        ctx: Any, valid: Tensor, num_heads: int, samples: int, *projections: Tensor
    ) -> Tensor:
        dtype = torch.promote_types(projections[0].dtype, torch.float32)
        total = torch.zeros((), dtype=torch.float64, device=valid.device)
        needs_gradient = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(p, dtype=dtype) for p in projections[:2] if needs_gradient]
        for start in range(0, valid.shape[0], samples):
            tile = slice(start, start + samples)
            query, key, *teacher = (
                _heads_of(p[tile], valid[tile], num_heads, dtype) for p in projections
            )
            error = _scores(query, key) - _scores(*teacher)
            total += error.square().sum(-1).sum(dtype=torch.float64)
            if needs_gradient:
                error *= 2.0 * query.shape[-1] ** -0.5
                gradients[0][tile] = (error @ key).transpose(1, 2).flatten(2)
                gradients[1][tile] = (error.transpose(-1, -2) @ query).transpose(1, 2).flatten(2)
        ctx.save_for_backward(*gradients)
        return total.to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *(g * grad_outputs[0] for g in ctx.saved_tensors), None, None)


def _heads_of(projection: Tensor, valid: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
    """Views [b, S, A] as [b, heads, S, A / heads], with zeros at padding: its scores agree."""
    clean = projection.to(dtype).masked_fill(~valid[:, :, None], 0.0)
    return clean.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
