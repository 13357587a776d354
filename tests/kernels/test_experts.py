"""Products of experts, and the order that groups rows by expert."""

import pytest
import torch
from torch import Tensor

from minimoe_dist.models.packed_experts import group_rows, grouped_linear
from tests.kernels.processes import Run


def make_experts(rows: int, experts: int, kind: str) -> Tensor:
    """The expert of each row; ``experts`` means none."""
    if kind == "one":
        return torch.full((rows,), experts - 1)
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(0, experts + (kind == "some none"), (rows,), generator=generator)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ordered(rows: int, experts: int, kind: str, device: str = "cpu") -> tuple[Tensor, Tensor]:
    order, offsets = group_rows(make_experts(rows, experts, kind).to(device), experts)
    return order.cpu(), offsets.cpu()


@pytest.mark.parametrize("kind", ["all", "some none", "one"])
@pytest.mark.parametrize(("rows", "experts"), [(1, 2), (50, 4), (2048, 3), (5000, 64)])
def test_rows_are_sorted_by_expert_in_their_own_order(
    interpreted: Run, rows: int, experts: int, kind: str
) -> None:
    order, offsets = interpreted(ordered, rows, experts, kind)
    expert = make_experts(rows, experts, kind)
    assert torch.equal(order, torch.argsort(expert, stable=True).int())
    counts = torch.bincount(expert, minlength=experts + 1)[:experts]
    assert offsets.tolist() == [0, *counts.cumsum(0).tolist()]


def mapped(
    rows: int,
    experts: int,
    sizes: tuple[int, int],
    kind: str,
    ways: tuple[bool, bool],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """The result, and the gradients of rows, weight and bias, through the operator."""
    inputs, outputs = sizes
    values = [
        draw(rows, inputs, seed=1),
        draw(experts, outputs, inputs, seed=2),
        draw(experts, outputs, seed=3),
    ]
    values = [value.to(device, dtype).requires_grad_() for value in values]
    groups = group_rows(make_experts(rows, experts, kind).to(device), experts)
    result = grouped_linear(*values, groups, gathers=ways[0], scatters=ways[1])
    result.backward(draw(rows, outputs, seed=4).to(device, dtype))
    return [one.cpu() for one in (result.detach(), *(value.grad for value in values))]


def expected(
    rows: int, experts: int, sizes: tuple[int, int], kind: str, ways: tuple[bool, bool]
) -> list[Tensor]:
    """Row by row in float64; what is not gathered or scattered lies sorted by expert."""
    inputs, outputs = sizes
    expert = make_experts(rows, experts, kind)
    order = torch.argsort(expert, stable=True)
    x, weight, bias = (
        draw(*shape, seed=seed).double().requires_grad_()
        for seed, shape in enumerate(
            [(rows, inputs), (experts, outputs, inputs), (experts, outputs)], 1
        )
    )
    in_order = (x[order] if ways[0] else x).unbind()
    made = [
        weight[e] @ row + bias[e] if e < experts else torch.zeros(outputs, dtype=torch.float64)
        for e, row in zip(expert[order].tolist(), in_order, strict=True)
    ]
    result = torch.stack(made)
    if ways[1]:
        result = result[torch.argsort(order)]
    result.backward(draw(rows, outputs, seed=4).double())
    return [result.detach(), x.grad, weight.grad, bias.grad]


SHAPES = [
    (10, 8, (16, 16), "one"),
    (50, 4, (24, 40), "some none"),
    (300, 3, (70, 130), "all"),
    (1700, 3, (16, 24), "some none"),
]
WAYS = [(True, False), (False, True), (True, True), (False, False)]


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for own, other in zip(found, wanted, strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(own.double(), other, rtol=1e-5, atol=2e-6 * scale)


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize(("rows", "experts", "sizes", "kind"), SHAPES)
def test_kernel_sends_each_row_through_its_expert(
    interpreted: Run,
    rows: int,
    experts: int,
    sizes: tuple[int, int],
    kind: str,
    ways: tuple[bool, bool],
) -> None:
    shape = (rows, experts, sizes, kind, ways)
    assert_equal(interpreted(mapped, *shape), expected(*shape))


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize(("rows", "experts", "sizes", "kind"), SHAPES)
def test_plain_operator_sends_each_row_through_its_expert(
    rows: int, experts: int, sizes: tuple[int, int], kind: str, ways: tuple[bool, bool]
) -> None:
    shape = (rows, experts, sizes, kind, ways)
    assert_equal(mapped(*shape), expected(*shape))
