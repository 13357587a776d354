"""Kernels on a GPU, in all types and at the sizes that students have."""

import pytest
import torch

from minimoe_dist.models.packed import packed_embedding
from tests.kernels import test_attention as attention
from tests.kernels import test_experts as experts
from tests.kernels import test_relations as relations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

TYPES = [torch.float32, torch.float16, torch.bfloat16]
# A few roundings to the type's precision.
PRECISION = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(
    ("length", "widths", "heads"),
    [(7, (12, 20), 4), (64, (192, 384), 12), (128, (384, 768), 32), (300, (96, 256), 8),
     (512, (384, 1024), 16)],
)  # fmt: skip
def test_relation_loss(
    dtype: torch.dtype, holes: bool, length: int, widths: tuple[int, int], heads: int
) -> None:
    shape = (dtype, length, widths, heads, holes)
    found = relations.loss_and_gradients(*shape, strided=True, device="cuda")
    tolerances = (PRECISION[dtype], PRECISION[dtype] / 2)
    relations.assert_close(found, relations.expected(*shape), tolerances, 3 * heads * length)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("longest", "heads", "size", "dropout"),
    [(128, 12, 32, (0.1, 3)), (64, 12, 16, (0.1, 1)), (300, 4, 64, (0.3, 7)), (512, 2, 64, (0, 0)),
     (40, 2, 128, (0.1, 2))],
)  # fmt: skip
def test_attention(
    dtype: torch.dtype, longest: int, heads: int, size: int, dropout: tuple[float, int]
) -> None:
    shape = (longest, heads, size, dropout, dtype)
    found = attention.packed(*shape, device="cuda")
    attention.assert_equal(found, attention.padded(*shape), PRECISION[dtype])


@pytest.mark.parametrize("kind", ["all", "some none", "one"])
@pytest.mark.parametrize(("rows", "number"), [(1, 2), (16384, 4), (16000, 64)])
def test_order_of_rows(rows: int, number: int, kind: str) -> None:
    order, offsets = experts.ordered(rows, number, kind, "cuda")
    expert = experts.make_experts(rows, number, kind)
    assert torch.equal(order, torch.argsort(expert, stable=True).int())
    counts = torch.bincount(expert, minlength=number + 1)[:number]
    assert offsets.tolist() == [0, *counts.cumsum(0).tolist()]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("ways", experts.WAYS)
@pytest.mark.parametrize(
    ("rows", "number", "sizes", "kind"),
    [(50, 4, (24, 40), "some none"), (2000, 4, (384, 1536), "all"), (1500, 64, (192, 768), "one")],
)
def test_products(
    dtype: torch.dtype, ways: tuple[bool, bool], rows: int, number: int, sizes: tuple[int, int],
    kind: str,
) -> None:  # fmt: skip
    shape = (rows, number, sizes, kind, ways)
    found = experts.mapped(*shape, device="cuda", dtype=dtype)
    for own, other in zip(found, experts.expected(*shape), strict=True):
        scale = max(1.0, float(other.abs().max()))
        tolerance = PRECISION[dtype]
        torch.testing.assert_close(own.double(), other, rtol=tolerance, atol=tolerance * scale)


def test_the_same_inputs_give_the_same_bits() -> None:
    """What repeats bit for bit must sum in a fixed order."""

    def run() -> list[torch.Tensor]:
        found = relations.loss_and_gradients(
            torch.bfloat16, 300, (96, 256), 8, False, False, "cuda"
        )
        found += attention.packed(128, 12, 32, (0.1, 3), torch.bfloat16, "cuda")
        found += experts.mapped(4000, 4, (384, 1536), "all", (True, False), "cuda", torch.bfloat16)
        table = torch.nn.Embedding(40, 64, device="cuda", dtype=torch.bfloat16)
        table.weight.data.fill_(1.0)
        ids = experts.make_experts(20000, 40, "all").cuda()
        rows = packed_embedding(table, ids)
        rows.backward(experts.draw(20000, 64, seed=1).cuda().bfloat16())
        return [*found, table.weight.grad.cpu()]

    assert all(map(torch.equal, run(), run()))
