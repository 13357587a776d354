"""Teachers whose linear maps have 8 bits."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, BertConfig, BertModel

from minimoe_dist.models import teacher as teacher_module
from minimoe_dist.models.float8 import Float8Linear, quantize_maps, quantize_rows
from minimoe_dist.models.teacher import load_teacher


def test_a_row_is_kept_to_the_precision_of_three_bits_behind_the_point() -> None:
    rows = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)) * 10 ** torch.arange(
        -10.0, 10.0
    )[:, None]  # fmt: skip
    bits, scale = quantize_rows(rows)
    back = bits.float() * scale
    assert bits.dtype == torch.float8_e4m3fn and scale.shape == (20, 1)
    largest = rows.abs().amax(-1, keepdim=True)
    # Half a step of 2**-3 relative; of the smallest numbers half a step of 2**-9 of the scale.
    allowed = torch.maximum(rows.abs() * 2.0**-4, largest / 448 * 2.0**-10)
    assert ((back - rows).abs() <= allowed * 1.001).all()


def test_rows_of_zeros_stay_zeros() -> None:
    bits, scale = quantize_rows(torch.zeros(2, 16))
    assert not (bits.float() * scale).any() and torch.isfinite(scale).all()


def test_a_map_is_the_exact_one_up_to_rounding() -> None:
    torch.manual_seed(0)
    exact = nn.Linear(256, 48)
    rows = torch.randn(3, 5, 256)
    made, wanted = Float8Linear(exact)(rows), exact(rows)
    assert made.shape == wanted.shape
    # Two roundings of 2**-4 at most, about 2**-5.6 on average, over 256 products.
    assert (made - wanted).norm() / wanted.norm() < 0.06
    # Rows depend on others by the order of sums alone, which some CPUs choose by their number.
    torch.testing.assert_close(Float8Linear(exact)(rows[:1]), made[:1], rtol=1e-6, atol=1e-6)


def test_what_the_hardware_cannot_multiply_stays() -> None:
    module = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 20), nn.LayerNorm(20))
    assert quantize_maps(module) == 1
    assert isinstance(module[0], Float8Linear) and type(module[1]) is nn.Linear


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_a_teachers_signals_move_little(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"vocab_size": 50, "intermediate_size": 128}
    config = AutoConfig.for_model(kind, **sizes, initializer_range=0.2)
    MODEL_MAPPING[type(config)](config).save_pretrained(tmp_path)
    ids = torch.randint(0, 50, (4, 12))
    exact = load_teacher(str(tmp_path), dtype="float32")(ids, torch.ones_like(ids))
    rounded = load_teacher(str(tmp_path), dtype="float8")
    maps = [one for one in rounded.modules() if isinstance(one, Float8Linear)]
    assert len(maps) == 2 * 4 + 1
    for one, other in zip(rounded(ids, torch.ones_like(ids)), exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other).norm() / other.norm() < 0.12


def test_a_gpu_without_such_products_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BertModel(
        BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path)
    monkeypatch.setattr(teacher_module, "multiplies_float8", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ValueError, match=r"float8 needs a GPU .* A100 does not; give auto"):
        load_teacher(str(tmp_path), dtype="float8", device="cuda")
