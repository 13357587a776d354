"""Kernels compile for the cards that they are for, within their shared memory."""

import pytest
import torch

from tests.kernels import processes
from tests.kernels.processes import compiling

SHARED_BYTES = {80: 166_912, 90: 232_448}  # that a program may have on an A100, an H100
SAMPLES, LENGTH, HEADS = 2, 128, 12


def rows_of(tokens: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(tokens, width, dtype=dtype)


def launch_all(dtype: torch.dtype) -> dict[str, int]:
    """Every kernel at the sizes of BERT-base → 3L;384H 1,4E; most shared bytes by kernel."""
    from minimoe_dist.kernels.attention import Dropout, attention, attention_gradient
    from minimoe_dist.kernels.experts import (
        expert_order,
        grouped_product,
        grouped_weight_gradient,
    )
    from minimoe_dist.kernels.relations import relation_loss

    tokens, width, experts = SAMPLES * LENGTH, 384, 4
    starts, lengths = torch.zeros(2, SAMPLES, dtype=torch.int32).unbind()
    projected, teacher = torch.zeros(tokens, 3 * width, dtype=dtype), torch.zeros(tokens, 768)
    for dropout in (None, Dropout(torch.zeros(tokens, dtype=torch.int32), 0.1, 3)):
        context, logs = attention(projected, starts, lengths, HEADS, LENGTH, dropout)
        given = (context, projected, context, logs, starts, lengths, HEADS, LENGTH, dropout)
        attention_gradient(*given)
    for longest in (LENGTH, 4 * LENGTH):
        relation_loss(
            projected[:, :width], teacher.to(dtype), starts, lengths, None, 32, longest,
            torch.zeros(tokens, width),
        )  # fmt: skip
    valid = torch.ones(tokens, dtype=torch.bool)
    signals = (rows_of(tokens, width, dtype), teacher.to(dtype))
    relation_loss(*signals, starts, lengths, valid, 32, LENGTH, None)  # in evaluation
    order, offsets = expert_order(torch.zeros(tokens, dtype=torch.int32), experts)
    rows = rows_of(tokens, width, dtype)
    weight, bias = torch.zeros(experts, 4 * width, width, dtype=dtype), torch.zeros(experts, 1536)
    ways = {"gathers": True, "scatters": False}
    inner = grouped_product(rows, weight, bias.to(dtype), order, offsets, **ways)
    back = {"gathers": False, "scatters": True, "transposed": True}
    grouped_product(inner, weight, None, order, offsets, **back)
    grouped_weight_gradient(inner, rows, weight, order, offsets, **ways)
    return dict(sorted(processes.compiled, key=lambda one: one[1]))


@pytest.mark.parametrize(("architecture", "dtype"), [(80, torch.float32), (90, torch.bfloat16)])
def test_every_kernel_fits_the_card(architecture: int, dtype: torch.dtype) -> None:
    with compiling(architecture) as run:
        shared = run(launch_all, dtype)
    assert shared.keys() == {
        "_forward", "_backward_queries", "_backward_keys", "_in_one_pass", "_log_sums",
        "_gradients", "_sort", "_products", "_weight_gradients",
    }  # fmt: skip
    assert max(shared.values()) <= SHARED_BYTES[architecture], shared
