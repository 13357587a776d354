"""Measures the relation loss of queries, keys and values head by head, without gradients."""

import torch
from torch import Tensor

from .relations import Signals


@torch.no_grad()
def relation_loss_by_head(
    student: Signals, teacher: Signals, attention_mask: Tensor, num_relation_heads: int
) -> Tensor:
    """Sums KL(teacher || student) of each relation's heads (MiniLMv2, eq. 4-5), without padding.

    The sum over all of them is :func:`.relations.relation_loss_sum`'s. Computed in float64, one
    sample at a time.

    Args:
        student: query, key and value projections, each [B, S, student width].
        teacher: the same, each [B, S, teacher width].
        attention_mask: [B, S], non-zero where a position is not padding.
        num_relation_heads: R; divides both widths.

    Returns:
        float64 [3, R]; each is over as many rows as there are positions without padding.
    """
    sums = torch.zeros(3, num_relation_heads, dtype=torch.float64)
    for sample, valid in enumerate(attention_mask.bool()):
        for signal in range(3):
            teacher_logs, student_logs = (
                _log_relations(side[signal][sample, valid], num_relation_heads)
                for side in (teacher, student)
            )
            sums[signal] += (teacher_logs.exp() * (teacher_logs - student_logs)).sum((1, 2)).cpu()
    return sums


def _log_relations(signal: Tensor, heads: int) -> Tensor:
    """Computes the logarithms of one sample's relations, [L, H] to float64 [R, L, L]."""
    rows = signal.double().unflatten(-1, (heads, -1)).transpose(0, 1)
    return (rows @ rows.transpose(1, 2) / rows.shape[-1] ** 0.5).log_softmax(-1)
