"""Chunked masked-LM cross entropy against PyTorch's, value and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from minimoe_dist.objectives.mlm import masked_lm_in_chunks, masked_lm_loss_sum, masked_rows

VOCABULARY, WIDTH = 53, 12


def draw(positions, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(positions, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)]
    rows, weight, bias = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
    labels = torch.randint(0, VOCABULARY, (positions,), generator=generator)
    return [x.requires_grad_() for x in (rows, weight, bias)], labels


def plain(rows, weight, bias, labels):
    return F.cross_entropy(F.linear(rows, weight, bias), labels, reduction="sum")


@pytest.mark.parametrize("chunk", [1, 5 * VOCABULARY, None], ids=["rows", "chunks", "whole"])
@pytest.mark.parametrize("positions", [0, 1, 5, 23])
def test_loss_and_gradients_are_pytorchs(positions, chunk) -> None:
    leaves, labels = draw(positions)
    loss, count = masked_lm_loss_sum(leaves[0], labels, *leaves[1:], chunk_elements=chunk)
    expected = plain(*leaves, labels)
    assert count == positions
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    ours, theirs = (torch.autograd.grad(3.0 * x, leaves) for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)


def test_gradients_are_exact_in_float64() -> None:
    leaves, labels = draw(7, torch.float64)
    labels[2] = -100

    def loss(rows, weight, bias):
        return masked_lm_loss_sum(rows, labels, weight, bias, chunk_elements=3 * VOCABULARY)[0]

    assert torch.autograd.gradcheck(loss, leaves)


def test_ignored_labels_count_nowhere() -> None:
    leaves, labels = draw(9)
    labels[::2] = -100
    loss, count = masked_lm_loss_sum(leaves[0], labels, *leaves[1:])
    assert count == 4
    gradient = torch.autograd.grad(loss, leaves[0])[0]
    assert torch.count_nonzero(gradient[::2]) == 0
    torch.testing.assert_close(loss, plain(*leaves, labels))


def test_half_precision_is_close_to_float32() -> None:
    leaves, labels = draw(23, torch.bfloat16)
    loss, _ = masked_lm_loss_sum(leaves[0], labels, *leaves[1:], chunk_elements=4 * VOCABULARY)
    wide = [x.detach().float().requires_grad_() for x in leaves]
    expected = plain(*wide, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0.0)
    for x, y in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, wide), strict=True
    ):
        assert x.dtype == torch.bfloat16
        assert (x.float() - y).norm() < 2e-2 * y.norm()


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_tensor_grows_with_positions_times_vocabulary() -> None:
    vocabulary, positions = 5000, 64
    rows, weight = torch.randn(positions, 4), torch.randn(vocabulary, 4)
    labels, bias = torch.arange(positions), torch.zeros(vocabulary)
    with _Largest() as largest:  # below the operator, into which no mode sees
        masked_lm_in_chunks(rows, weight, bias, labels, size=4, with_gradient=True)
    assert largest.elements <= 4 * vocabulary


def test_no_gradient_is_made_without_need() -> None:
    (rows, weight, bias), labels = draw(5)
    with torch.no_grad():
        loss, _ = masked_lm_loss_sum(rows, labels, weight, bias)
    assert not loss.requires_grad
    frozen, _ = masked_lm_loss_sum(rows.detach(), labels, weight.detach(), bias.detach())
    torch.testing.assert_close(frozen, plain(rows, weight, bias, labels))


def test_only_rows_to_be_predicted_are_gathered() -> None:
    hidden = torch.arange(24.0).view(2, 3, 4)
    labels = torch.tensor([[-100, 7, -100], [3, -100, -100]])
    rows, wanted = masked_rows(hidden, labels)
    assert wanted.tolist() == [7, 3]
    assert torch.equal(rows, torch.stack([hidden[0, 1], hidden[1, 0]]))


@pytest.mark.parametrize("label", [VOCABULARY, -1])
def test_a_label_outside_the_vocabulary_is_refused(label) -> None:
    leaves, labels = draw(3)
    labels[1] = label
    with pytest.raises(ValueError, match=f"labels: {label} is outside the vocabulary of 53: build"):
        masked_lm_loss_sum(leaves[0], labels, *leaves[1:])
