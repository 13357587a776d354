"""The relation loss's kernels against the tiles in float64."""

import pytest
import torch
from torch import Tensor

from minimoe_dist.objectives.packed_relations import packed_relation_loss
from minimoe_dist.objectives.relations import relation_loss_sum
from tests.kernels.processes import Run

FLOAT32 = (2e-6, 4e-6)
# One rounding of the slopes, and one of the gradient, to the type's precision.
FLOAT16, BFLOAT16 = (2e-3, 2e-3), (2e-2, 1e-2)


def draw(dtype: torch.dtype, length: int, width: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, length, width, generator=generator).to(dtype) for _ in range(3)]


def make_mask(length: int, holes: bool) -> Tensor:
    """Three samples: full, a third of it, and empty."""
    mask = torch.arange(length) < torch.tensor([length, max(1, length // 3), 0])[:, None]
    if holes:
        mask &= torch.rand(mask.shape, generator=torch.Generator().manual_seed(9)) > 0.2
    return mask


def loss_and_gradients(
    dtype: torch.dtype,
    length: int,
    widths: tuple[int, int],
    heads: int,
    holes: bool,
    strided: bool,
    device: str = "cpu",
) -> list[Tensor]:
    """Of padded rows, through the operator."""
    student, teacher = (
        [signal.to(device) for signal in draw(dtype, length, width, seed)]
        for seed, width in enumerate(widths)
    )
    mask = make_mask(length, holes).to(device)
    bounds = (mask * torch.arange(1, length + 1, device=device)).amax(1)
    own = [signal.flatten(0, 1).requires_grad_() for signal in student]
    given = list(own)
    if strided:
        given = list(torch.cat(own, 1).chunk(3, 1))
    loss = packed_relation_loss(
        tuple(given),
        tuple(signal.flatten(0, 1) for signal in teacher),
        torch.arange(3, dtype=torch.int32, device=device) * length,
        bounds.to(torch.int32),
        heads,
        length,
        mask.flatten() if holes else None,
    )
    (0.5 * loss).backward()
    return [one.cpu() for one in (loss.detach(), *(signal.grad for signal in own))]


def expected(
    dtype: torch.dtype, length: int, widths: tuple[int, int], heads: int, holes: bool
) -> list[Tensor]:
    student, teacher = (draw(dtype, length, width, seed) for seed, width in enumerate(widths))
    own = [signal.double().requires_grad_() for signal in student]
    loss, _ = relation_loss_sum(
        tuple(own), tuple(one.double() for one in teacher), make_mask(length, holes), heads
    )
    (0.5 * loss).backward()
    return [loss.detach(), *(signal.grad.flatten(0, 1) for signal in own)]


def assert_close(
    found: list[Tensor],
    wanted: list[Tensor],
    tolerances: tuple[float, float],
    rows: int,
) -> None:
    """The loss to float32's precision; gradients to the type's, relative to the largest one."""
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=2e-6, atol=1e-6 * rows)
    rtol, atol = tolerances
    for own, other in zip(found[1:], wanted[1:], strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(own.double(), other, rtol=rtol, atol=atol * scale + 1e-12)


@pytest.mark.parametrize(
    ("length", "widths", "heads"),
    [
        (1, (12, 24), 3),
        (7, (12, 20), 4),
        (64, (24, 40), 2),
        (65, (60, 36), 3),
        (128, (48, 32), 4),
        (129, (24, 40), 2),
        (193, (12, 24), 1),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "tolerances", "holes"),
    [
        (torch.float32, FLOAT32, False),
        (torch.float32, FLOAT32, True),
        (torch.float16, FLOAT16, False),
        (torch.bfloat16, BFLOAT16, False),
    ],
)
def test_kernel_gives_loss_and_gradients_of_float64(
    interpreted: Run,
    dtype: torch.dtype,
    tolerances: tuple[float, float],
    holes: bool,
    length: int,
    widths: tuple[int, int],
    heads: int,
) -> None:
    found = interpreted(loss_and_gradients, dtype, length, widths, heads, holes, False)
    wanted = expected(dtype, length, widths, heads, holes)
    assert_close(found, wanted, tolerances, 3 * heads * length)


def test_kernel_reads_the_columns_of_one_wide_projection(interpreted: Run) -> None:
    shape = (torch.float32, 20, (24, 48), 4, False)
    apart, together = (
        interpreted(loss_and_gradients, *shape, strided) for strided in (False, True)
    )
    assert all(map(torch.equal, apart, together))


def spoilt_rows() -> list[float]:
    """Losses with and without numbers that are none in rows of no sample."""
    losses = []
    for filling in (0.0, float("nan")):
        student, teacher = (draw(torch.float32, 10, width, width) for width in (8, 16))
        for signal in (*student, *teacher):
            signal[:, 6:] = filling
        starts, lengths = torch.arange(3, dtype=torch.int32) * 10, torch.tensor([6, 3, 0])
        own = tuple(signal.flatten(0, 1).requires_grad_() for signal in student)
        loss = packed_relation_loss(
            own, tuple(s.flatten(0, 1) for s in teacher), starts, lengths.int(), 2, 6
        )
        loss.backward()
        assert all(torch.isfinite(signal.grad).all() for signal in own)
        losses.append(loss.item())
    return losses


def test_rows_of_no_sample_are_not_read(interpreted: Run) -> None:
    clean, spoilt = interpreted(spoilt_rows)
    assert clean == spoilt > 0


def loss_without_gradient() -> tuple[float, float]:
    shape = (torch.float32, 20, (24, 48), 4, False, False)
    with_gradient = loss_and_gradients(*shape)[0].item()
    student, teacher = (draw(torch.float32, 20, width, seed) for seed, width in ((0, 24), (1, 48)))
    lengths = make_mask(20, False).sum(1).int()
    starts = torch.arange(3, dtype=torch.int32) * 20
    flat = [tuple(s.flatten(0, 1) for s in side) for side in (student, teacher)]
    return with_gradient, packed_relation_loss(*flat, starts, lengths, 4, 20).item()


def test_evaluation_gives_the_loss_of_training(interpreted: Run) -> None:
    training, evaluation = interpreted(loss_without_gradient)
    assert training == evaluation


@pytest.mark.parametrize("holes", [False, True])
def test_plain_operator_gives_what_the_tiles_give(holes: bool) -> None:
    shape = (torch.float32, 33, (24, 40), 2, holes)
    found, wanted = loss_and_gradients(*shape, False), expected(*shape)
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own.double(), other, rtol=1e-5, atol=1e-5)
