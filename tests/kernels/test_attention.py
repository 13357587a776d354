"""Attention over packed samples against the padded one that trains on CPUs."""

import pytest
import torch
from torch import Tensor

from minimoe_dist.models.noise import NoiseKeys, sample_keys
from minimoe_dist.models.packed_attention import packed_attention
from minimoe_dist.models.packing import Packing
from tests.kernels.processes import Run

SAMPLE_IDS = torch.tensor([7, 2**40 + 3, 9, 11])
SEED = 5
OUTSIDE = 5  # tokens of no sample at the end


def make_lengths(longest: int) -> Tensor:
    return torch.tensor([longest, longest // 2, 0, 1])


def draw(longest: int, columns: int, dtype: torch.dtype, seed: int) -> Tensor:
    tokens = int(make_lengths(longest).sum())
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, columns, generator=generator).to(dtype)


def packed(
    longest: int,
    heads: int,
    size: int,
    dropout: tuple[float, int],
    dtype: torch.dtype,
    device: str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Contexts and the gradient of projections, through the operator."""
    lengths = make_lengths(longest)
    starts = lengths.cumsum(0) - lengths
    rows = draw(longest, 3 * heads * size, dtype, 0)
    projected = torch.cat([rows, rows.new_ones(OUTSIDE, rows.shape[1])]).to(device)
    projected.requires_grad_()
    mask = torch.arange(longest) < lengths[:, None]
    keys = sample_keys(SEED, SAMPLE_IDS, longest)[mask]
    keys = torch.cat([keys, keys.new_zeros(OUTSIDE)]).to(device)
    where = (starts.int().to(device), lengths.int().to(device))
    context = packed_attention(projected, *where, heads, longest, keys, *dropout)
    upstream = draw(longest, heads * size, dtype, 1)
    upstream = torch.cat([upstream, upstream.new_ones(OUTSIDE, upstream.shape[1])])
    context.backward(upstream.to(device))
    return context.detach().cpu(), projected.grad.cpu()


def padded(
    longest: int, heads: int, size: int, dropout: tuple[float, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same by the padded attention in float64, of the same rounded numbers."""
    mask = torch.arange(longest) < make_lengths(longest)[:, None]
    packing = Packing(mask, keep_padding=False)
    projected = draw(longest, 3 * heads * size, dtype, 0).double().requires_grad_()
    noise = NoiseKeys(sample_keys(SEED, SAMPLE_IDS, longest), packing.rows)
    context = packing.attend(projected, heads, noise, *dropout)
    context.backward(draw(longest, heads * size, dtype, 1).double())
    return context.detach(), projected.grad


SHAPES = [
    (1, 1, 16, (0.0, 0)),
    (20, 3, 16, (0.1, 1)),
    (70, 2, 32, (0.3, 7)),
    (130, 2, 24, (0.1, 16)),
    (33, 2, 64, (0.5, 2)),
    (40, 1, 80, (0.1, 3)),
]


def assert_equal(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], atol: float) -> None:
    for own, other in zip(found, wanted, strict=True):
        assert not own[len(other) :].any()
        torch.testing.assert_close(own[: len(other)].double(), other, rtol=atol, atol=atol)


@pytest.mark.parametrize(("longest", "heads", "size", "dropout"), SHAPES)
def test_kernel_is_the_padded_attention(
    interpreted: Run, longest: int, heads: int, size: int, dropout: tuple[float, int]
) -> None:
    found = interpreted(packed, longest, heads, size, dropout, torch.float32)
    assert_equal(found, padded(longest, heads, size, dropout, torch.float32), 5e-6)


# A rounding of probabilities, of slopes and of the results, each to the type's precision.
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_kernel_in_half_precision_is_the_padded_attention(
    interpreted: Run, dtype: torch.dtype, atol: float
) -> None:
    shape = (70, 2, 32, (0.1, 4), dtype)
    assert_equal(interpreted(packed, *shape), padded(*shape), atol)


@pytest.mark.parametrize(("longest", "heads", "size", "dropout"), SHAPES)
def test_plain_operator_is_the_padded_attention(
    longest: int, heads: int, size: int, dropout: tuple[float, int]
) -> None:
    shape = (longest, heads, size, dropout, torch.float32)
    assert_equal(packed(*shape), padded(*shape), 5e-6)
