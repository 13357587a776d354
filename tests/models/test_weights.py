"""Weights read in pieces: where they are found, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from minimoe_dist.models.teacher import load_teacher, unfilled_teacher

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


def save(folder: Path, model_class: Any = BertModel, shard: str = "1GB") -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(BertConfig(**SIZES)).save_pretrained(folder, max_shard_size=shard)
    return folder


def filled(folder: Path, dtype: str = "float32") -> dict[str, torch.Tensor]:
    """A teacher's parameters as they are read from disk."""
    unfilled = unfilled_teacher(str(folder), dtype=dtype)
    found = {}
    for name, parameter in unfilled.teacher.named_parameters():
        found[name] = torch.empty_like(parameter, device="cpu")
        unfilled.weights.copy_into(found[name], unfilled.names[name])
    return found


def assert_loaded_as_whole(folder: Path, dtype: str = "float32") -> None:
    found = filled(folder, dtype)
    expected = dict(load_teacher(str(folder), dtype=dtype).named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces_are_the_weights_of_the_whole(dtype: str, tmp_path: Path) -> None:
    assert_loaded_as_whole(save(tmp_path), dtype)


def test_an_encoder_is_found_under_a_head_in_several_files(tmp_path: Path) -> None:
    assert_loaded_as_whole(save(tmp_path, BertForMaskedLM, shard="5KB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 3


def test_layer_norms_are_found_under_their_old_names(tmp_path: Path) -> None:
    path = save(tmp_path) / "model.safetensors"
    weights = load_file(path)
    for name in list(weights):
        for new, old in (
            ("LayerNorm.weight", "LayerNorm.gamma"),
            ("LayerNorm.bias", "LayerNorm.beta"),
        ):
            if name.endswith(new):
                weights[name.replace(new, old)] = weights.pop(name) + 1
    save_file(weights, path, metadata={"format": "pt"})
    assert_loaded_as_whole(tmp_path)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_slice_is_cut_along_its_dimension(dim: int, tmp_path: Path) -> None:
    weights = unfilled_teacher(str(save(tmp_path))).weights
    name = "encoder.layer.0.intermediate.dense.weight"
    whole = load_file(tmp_path / "model.safetensors")[name]
    target = torch.empty_like(whole.narrow(dim, 6, 5))
    weights.copy_into(target, name, dim, 6)
    assert torch.equal(target, whole.narrow(dim, 6, 5))


def test_buffers_that_no_checkpoint_holds_have_their_values(tmp_path: Path) -> None:
    unfilled = unfilled_teacher(str(save(tmp_path))).teacher
    expected = dict(load_teacher(str(tmp_path)).named_buffers())
    assert expected
    for name, buffer in unfilled.named_buffers():
        assert torch.equal(buffer, expected[name])


def keep_only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def claim_a_layer_more(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=4)


def claim_another_width(folder: Path) -> None:
    edit_config(folder, hidden_size=32)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def lose_a_part(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    save(folder, shard="5KB")
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def mix_up_the_index(folder: Path) -> None:
    save(folder, shard="5KB")
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    parts = values["weight_map"]
    last = max(parts.values())
    values["weight_map"] = dict.fromkeys(parts, last)
    index.write_text(json.dumps(values))


def break_the_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (keep_only_a_pickle, "convert it with transformers' save_pretrained"),
        (claim_a_layer_more, "6 weights of a bert encoder are missing"),
        (claim_another_width, "have another shape than config.json says"),
        (truncate, r"has no weights that can be loaded \(model.safetensors: "),
        (lose_a_part, r"loaded \(model-00001-of-\d+.safetensors: no such file\)"),
        (mix_up_the_index, r"has no weights that can be loaded \(model-"),
        (break_the_index, r"loaded \(model.safetensors.index.json: "),
    ],
)
def test_weights_that_are_not_the_teachers_are_refused_in_one_line(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    damage(save(tmp_path))
    with pytest.raises(ValueError, match=words) as refused:
        unfilled_teacher(str(tmp_path))
    assert "\n" not in str(refused.value)
