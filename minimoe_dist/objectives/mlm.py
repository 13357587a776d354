"""Masked-LM cross entropy whose logits are never whole (Devlin et al. 2019, section 3.1).

Logits exist for masked positions only, and for a few of those at a time: while a chunk's are
there, they yield the loss and the gradients of the rows, the decoder and its bias. What stays is
one gradient of each, so memory does not grow with the number of masked positions.

Shapes: N masked positions, H hidden size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError

IGNORED_LABEL = -100

# Logits of a chunk: enough rows to keep the products dense, small beside the model.
_CPU_CHUNK_ELEMENTS = 2**22
_GPU_CHUNK_ELEMENTS = 2**26


def masked_rows(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Selects the rows to be predicted, [B, S, H] to [N, H], and their labels, int64 [N]."""
    labels = labels.reshape(-1)
    indices = (labels != IGNORED_LABEL).nonzero().squeeze(-1)
    return hidden.flatten(0, 1).index_select(0, indices), labels[indices]


def masked_lm_loss_sum(
    rows: Tensor,
    labels: Tensor,
    decoder_weight: Tensor,
    decoder_bias: Tensor,
    *,
    chunk_elements: int | None = None,
) -> tuple[Tensor, int]:
    """Sums the cross entropy of softmax(rows · weightᵀ + bias) against ``labels``.

    Products are in the inputs' precision, everything else in float32 (float64 if ``rows`` are).

    Args:
        rows: [N, H], what the decoder reads; N may be 0.
        labels: int64 [N]; positions with -100 do not count.
        decoder_weight: [V, H], the word embeddings where the two are tied.
        decoder_bias: [V].
        chunk_elements: logits made at a time; by default what suits the device.

    Returns:
        The sum as a scalar, and how many positions it is over.

    Raises:
        UserError: a label outside the vocabulary.
    """
    vocabulary = decoder_weight.shape[0]
    counted = labels != IGNORED_LABEL
    outside = labels[counted & ((labels < 0) | (labels >= vocabulary))]
    if outside.numel():
        raise UserError(
            f"labels: {int(outside[0])} is outside the vocabulary of {vocabulary}: build the "
            "corpus with the model's tokenizer"
        )
    # Autocast would turn products of float32 into half precision.
    with torch.autocast(labels.device.type, enabled=False):
        loss = _loss_sum(rows, labels, decoder_weight, decoder_bias, chunk_elements)
    return loss, int(counted.sum())


def packed_masked_lm_loss_sum(
    rows: Tensor, labels: Tensor, decoder_weight: Tensor, decoder_bias: Tensor
) -> Tensor:
    """Sums the cross entropy by an operator that can be compiled and never waits for the device.

    Args:
        rows: [N, H].
        labels: int32 [N], inside the vocabulary, or -100 at rows that do not count.
        decoder_weight: [V, H].
        decoder_bias: [V].

    Returns:
        The sum as a scalar, float32.
    """
    return _loss_sum(rows, labels, decoder_weight, decoder_bias, None)


def _loss_sum(
    rows: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, chunk_elements: int | None
) -> Tensor:
    if chunk_elements is None:
        chunk_elements = _GPU_CHUNK_ELEMENTS if rows.is_cuda else _CPU_CHUNK_ELEMENTS
    size = max(1, chunk_elements // weight.shape[0])
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (rows, weight, bias))
    return _masked_lm(rows, weight.to(rows.dtype), bias, labels, size, with_gradient)[0]


class MaskedLmSums(NamedTuple):
    """A summed loss with its gradients of rows, weight and bias, of which all or none are there."""

    loss: Tensor
    rows: Tensor
    weight: Tensor
    bias: Tensor


def masked_lm_in_chunks(
    rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, size: int, with_gradient: bool
) -> MaskedLmSums:
    """Sums the loss, and the gradients on the way if they are wanted, `size` rows at a time."""
    sum_dtype = torch.promote_types(rows.dtype, torch.float32)
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    shapes = [operand.shape if with_gradient else (0,) for operand in (rows, weight, bias)]
    of_rows, of_weight, of_bias = (
        torch.zeros(shape, dtype=sum_dtype, device=rows.device) for shape in shapes
    )
    for start in range(0, rows.shape[0], size):
        chunk, label = rows[start : start + size], labels[start : start + size].long()
        counted = (label != IGNORED_LABEL)[:, None]
        target = label.clamp_min(0)[:, None]
        logits = (chunk @ weight.t()).to(sum_dtype).add_(bias)
        logits.sub_(logits.amax(-1, keepdim=True))
        label_scores = logits.gather(1, target)
        sums = logits.exp_().sum(-1, keepdim=True)
        losses = (sums.log() - label_scores) * counted
        total += losses.sum(dtype=torch.float64)
        if not with_gradient:
            continue
        slope = logits.div_(sums)
        slope.scatter_add_(1, target, torch.full_like(sums, -1.0))
        slope.mul_(counted)
        of_bias += slope.sum(0)
        slope = slope.to(rows.dtype)
        of_rows[start : start + size] = slope @ weight
        if sum_dtype == rows.dtype:
            of_weight.addmm_(slope.t(), chunk)
        else:
            of_weight += slope.t() @ chunk
    return MaskedLmSums(total.to(sum_dtype), of_rows, of_weight, of_bias)


@torch.library.custom_op("minimoe_dist::masked_lm", mutates_args=())
def _masked_lm(
    rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, size: int, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(masked_lm_in_chunks(rows, weight, bias, labels, size, with_gradient))  # type: ignore[return-value]


@_masked_lm.register_fake
def _(
    rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, size: int, with_gradient: bool
) -> tuple[Tensor, ...]:
    shapes = [(), *(x.shape if with_gradient else (0,) for x in (rows, weight, bias))]
    sum_dtype = torch.promote_types(rows.dtype, torch.float32)
    return tuple(rows.new_empty(shape, dtype=sum_dtype) for shape in shapes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.dtypes = [operand.dtype for operand in inputs[:3]]
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 6
    gradients = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    return (*((gradient * upstream).to(dtype) for gradient, dtype in gradients), *[None] * 3)


_masked_lm.register_autograd(_backward, setup_context=_setup_context)
