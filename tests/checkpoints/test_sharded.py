"""Weights written in pieces, and folders of them read tensor by tensor."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, BertConfig, BertModel, MegatronBertConfig

from minimoe_dist.checkpoints.random_model import write_random_model
from minimoe_dist.checkpoints.sharded import write_pieces
from minimoe_dist.models.weights import FolderWeights

TENSORS = {f"layer.{n}": torch.full((8, 8), float(n)) for n in range(5)}
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def read(folder):
    weights = FolderWeights(str(folder), str(folder), pickles=True)
    return {name: weights.read(name) for name in weights}


@pytest.mark.parametrize(("max_bytes", "files"), [(10**6, 1), (512, 3), (1, 5)])
def test_pieces_are_read_back_exactly(tmp_path, max_bytes, files):
    write_pieces(TENSORS.items(), tmp_path, max_bytes)
    found = read(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert list(found) == list(TENSORS)
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_transformers_reads_the_pieces(tmp_path):
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES))
    model.config.save_pretrained(tmp_path)
    write_pieces(model.state_dict().items(), tmp_path, 5000)
    state = AutoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_pickle_of_tensors_is_read(tmp_path):
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert all(torch.equal(value, TENSORS[name]) for name, value in read(tmp_path).items())


def test_a_missing_piece_is_named(tmp_path):
    write_pieces(TENSORS.items(), tmp_path, 512)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"\(model-00002-of-00003\.safetensors: no such file"):
        read(tmp_path)


def test_a_missing_tensor_is_named(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no weight layer\.9"):
        FolderWeights("model", str(tmp_path)).read("layer.9")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no model\.safetensors; give a Hugging Face"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"weight_map": ["a"]}'])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_broken_index_is_refused_in_one_line(text, name, tmp_path):
    (tmp_path / f"{name}.index.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{name}\.index\.json: .*; give a complete") as refused:
        read(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": 3}, {"a": print}])
def test_a_pickle_of_more_than_tensors_is_refused_in_one_line(content, tmp_path):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"\(pytorch_model\.bin: .*; give a complete") as refused:
        read(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_random_model_loads_with_every_weight(tmp_path):
    folder = tmp_path / "random"
    write_random_model(MegatronBertConfig(**SIZES), folder, torch.bfloat16, max_bytes=10_000)
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert model.embeddings.word_embeddings.weight.std().isclose(
        torch.tensor(0.02, dtype=torch.bfloat16), rtol=0.1
    )
    assert model.encoder.ln.weight.eq(1).all() and model.encoder.ln.bias.eq(0).all()


def test_random_weights_do_not_depend_on_the_pieces(tmp_path):
    for name, max_bytes in (("a", 10**6), ("b", 1)):
        write_random_model(MegatronBertConfig(**SIZES), tmp_path / name, max_bytes=max_bytes)
    one, other = read(tmp_path / "a"), read(tmp_path / "b")
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_a_random_model_has_its_configuration(tmp_path):
    write_random_model(MegatronBertConfig(**SIZES), tmp_path / "a")
    values = json.loads((tmp_path / "a" / "config.json").read_text())
    assert values["architectures"] == ["MegatronBertModel"]
    assert SIZES.items() <= values.items()
