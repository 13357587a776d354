"""Task losses against values worked out by hand."""

import math

import pytest
import torch

from minimoe_dist.objectives.logits import label_loss_sum, logits_loss_sum


def test_cross_entropy_is_summed() -> None:
    logits = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    loss = label_loss_sum(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(math.log(4) + math.log(2))


def test_one_class_is_compared_by_squared_errors() -> None:
    loss = label_loss_sum(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 1.0]))
    assert loss.item() == pytest.approx(5.0)


def test_divergence_from_a_teacher() -> None:
    student = torch.log(torch.tensor([[0.5, 0.5]]))
    teacher = torch.log(torch.tensor([[0.25, 0.75]]))
    wanted = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert logits_loss_sum(student, teacher, 1.0).item() == pytest.approx(wanted)


def test_temperature_flattens_and_scales() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2 * math.log(3.0)]])
    # At T = 2 the teacher's shares are 1/4 and 3/4.
    wanted = 4 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert logits_loss_sum(student, teacher, 2.0).item() == pytest.approx(wanted)


def test_a_teachers_values_are_compared_by_squared_errors() -> None:
    loss = logits_loss_sum(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [1.0]]), 4.0)
    assert loss.item() == pytest.approx(5.0)


def test_the_teacher_gets_no_gradient_and_the_student_does() -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    logits_loss_sum(student, teacher, 2.0).backward()
    assert teacher.grad is None
    assert student.grad is not None
