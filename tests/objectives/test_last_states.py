"""The error of last states, against its definition spelled out."""

import pytest
import torch

from minimoe_dist.objectives.last_states import last_states_loss_sum


def test_it_is_the_squared_error_of_states_that_have_mean_0_and_variance_1() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 8), 5 * torch.randn(2, 3, 8) + 2
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    total = 0.0
    for sample, position in mask.nonzero().tolist():
        row = teacher[sample, position].double()
        row = (row - row.mean()) / row.var(correction=0).sqrt()
        total += float((student[sample, position].double() - row).square().mean())
    assert float(last_states_loss_sum(student, teacher, mask)) == pytest.approx(total, rel=1e-5)


def test_it_takes_any_size_of_the_teachers_states_and_half_precision() -> None:
    torch.manual_seed(0)
    student, teacher, mask = torch.randn(5, 8), torch.randn(5, 8), torch.ones(5)
    loss = last_states_loss_sum(student, teacher, mask)
    larger = last_states_loss_sum(student, 100 * teacher, mask)
    torch.testing.assert_close(larger, loss, rtol=1e-4, atol=0.0)
    halved = last_states_loss_sum(student.bfloat16(), teacher.bfloat16(), mask)
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, loss, rtol=0.02, atol=0.0)


def test_of_zeros_it_is_one_a_token() -> None:
    teacher = torch.randn(7, 16, generator=torch.Generator().manual_seed(1))
    loss = last_states_loss_sum(torch.zeros(7, 16), teacher, torch.ones(7))
    assert float(loss) == pytest.approx(7.0, rel=1e-4)


@pytest.mark.parametrize("nothing", [float("nan"), float("inf")])
def test_what_is_no_token_has_no_part_and_no_gradient(nothing: float) -> None:
    student = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    teacher = student.flip(0).clone()
    mask = torch.tensor([True, False, True, False])
    wanted = last_states_loss_sum(student[mask], teacher[mask], torch.ones(2))
    student[~mask], teacher[~mask] = nothing, nothing
    student.requires_grad_()
    loss = last_states_loss_sum(student, teacher.requires_grad_(), mask)
    loss.backward()
    assert torch.equal(loss, wanted)
    assert teacher.grad is None
    assert student.grad[mask].abs().min() > 0 and not student.grad[~mask].any()
