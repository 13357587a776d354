"""What compilers are told of the operators: shapes, types, strides, gradients."""

import pytest
import torch

from minimoe_dist.models import packed, packed_attention, packed_experts
from minimoe_dist.objectives import packed_relations

STARTS, LENGTHS = torch.tensor([0, 5, 5], dtype=torch.int32), torch.tensor([5, 0, 4]).int()
TOKENS = 11
ORDER = torch.tensor([3, 0, 1, 2, 4, 5, 6, 7, 8, 10, 9], dtype=torch.int32)
OFFSETS = torch.tensor([0, 1, 9], dtype=torch.int32)


def draw(*shape: int, grad: bool = True) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    return values.requires_grad_(grad)


STUDENT, TEACHER = draw(TOKENS, 8), draw(TOKENS, 12, grad=False)
CALLS = {
    "attention": (
        packed_attention._attention,
        (draw(TOKENS, 24), STARTS, LENGTHS, None, 2, 5, 0.0, 0),
    ),
    "attention with dropout": (
        packed_attention._attention,
        (draw(TOKENS, 24), STARTS, LENGTHS, torch.arange(TOKENS).int(), 2, 5, 0.1, 3),
    ),
    "relation loss": (
        packed_relations._relation_loss,
        (STUDENT, TEACHER, STARTS, LENGTHS, None, 2, 5, True),
    ),
    "relation loss in evaluation": (
        packed_relations._relation_loss,
        (STUDENT.detach(), TEACHER, STARTS, LENGTHS, TEACHER[:, 0] > 0, 2, 5, False),
    ),
    "expert order": (packed_experts._expert_order, (torch.tensor([0, 2, 1, 1]).int(), 2)),
    "grouped linear": (
        packed_experts._grouped_linear,
        (draw(TOKENS, 8), draw(2, 4, 8), draw(2, 4), ORDER, OFFSETS, True, False),
    ),
    "grouped linear back": (
        packed_experts._grouped_linear,
        (draw(TOKENS, 8), draw(2, 4, 8), draw(2, 4), ORDER, OFFSETS, False, True),
    ),
    "embedding": (packed._embedding, (draw(7, 3), torch.tensor([1, 1, 0, 6]), 0)),
}


@pytest.mark.parametrize("name", CALLS)
def test_operator_is_what_it_is_registered_as(name: str) -> None:
    operator, arguments = CALLS[name]
    torch.library.opcheck(operator, arguments)
