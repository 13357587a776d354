"""The loss apart is the loss: heads of queries, keys and values, and nothing of padding."""

import pytest
import torch

from minimoe_dist.objectives.relations import relation_loss_sum
from minimoe_dist.objectives.relations_by_head import relation_loss_by_head

HEADS = 4
LENGTHS = torch.tensor([7, 1, 4])


def signals(width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 3, 7, width, generator=generator)
    return query, key, value


MASK = torch.arange(7) < LENGTHS[:, None]


def test_heads_sum_to_the_loss() -> None:
    student, teacher = signals(8, 0), signals(16, 1)
    apart = relation_loss_by_head(student, teacher, MASK, HEADS)
    whole, _ = relation_loss_sum(student, teacher, MASK, HEADS)
    assert apart.shape == (3, HEADS)
    assert float(apart.sum()) == pytest.approx(float(whole), rel=1e-5)


def test_each_relation_and_head_is_its_own() -> None:
    student, teacher = signals(8, 0), signals(16, 1)
    student[2][:, :, 2:4] = teacher[2][:, :, 4:6] = 0.0  # head 1 of values: no relation at all
    teacher[2][:, :, 6:8] = 0.0
    apart = relation_loss_by_head(student, teacher, MASK, HEADS)
    assert float(apart[2, 1]) == pytest.approx(0.0, abs=1e-12)
    assert (apart > 1e-3).sum() == 3 * HEADS - 1


def test_padding_is_not_read() -> None:
    student, teacher = signals(8, 0), signals(16, 1)
    wanted = relation_loss_by_head(student, teacher, MASK, HEADS)
    for signal in (*student, *teacher):
        signal[~MASK] = torch.nan
    assert torch.equal(relation_loss_by_head(student, teacher, MASK, HEADS), wanted)
