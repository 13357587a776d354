"""MegatronBert as a teacher: numbers of the published implementation, and transformers' model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import MegatronBertConfig, MegatronBertModel

from minimoe_dist.models.teacher import load_teacher
from tests.golden import TOLERANCE, load_golden, part

RELATION_HEADS = 8


def relations(signal, mask):
    """Softmax of scaled products per relation head, the rows of real queries."""
    heads = signal.unflatten(-1, (RELATION_HEADS, -1)).transpose(1, 2)
    scores = heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask[:, None, None, :], -10000.0)
    return scores.softmax(-1)[mask[:, None, :].expand(-1, RELATION_HEADS, -1)]


def test_relations_are_those_of_the_published_implementation(tmp_path):
    config, tensors = load_golden("megatronbert_minilm")
    own = {name: value.clone() for name, value in part(tensors, "w.").items()}
    save_file(own, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    inputs = part(tensors, "in.")
    mask = inputs["attention_mask"].bool()
    signals = load_teacher(str(tmp_path))(inputs["input_ids"], mask, inputs["token_type_ids"])
    for signal, key in zip(signals, ("qq", "kk", "vv"), strict=True):
        assert torch.allclose(relations(signal, mask), tensors[f"out.{key}"], **TOLERANCE)


def random_model(folder: Path, seed: int, **sizes: int) -> MegatronBertModel:
    torch.manual_seed(seed)
    common = {"vocab_size": 50, "max_position_embeddings": 20, "intermediate_size": 48}
    model = MegatronBertModel(
        MegatronBertConfig(**common | sizes, initializer_range=0.1), add_pooling_layer=False
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln" in name:
                weight.normal_(float("weight" in name), 0.3)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 4},
        {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1},
        # The heads of bert-xlarge-chinese: 8 of size 256.
        {"hidden_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 2},
    ],
)
def test_signals_are_those_of_the_uncut_model(tmp_path, sizes):
    model = random_model(tmp_path, sizes["hidden_size"], **sizes)
    ids = torch.randint(0, 50, (3, 17))
    segments, mask = (
        torch.randint(0, 2, ids.shape),
        torch.arange(17) < torch.tensor([[17], [4], [9]]),
    )
    seen = {}
    last = model.encoder.layer[-1].attention
    for name in ("query", "key", "value"):
        last.self.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)
        )
    with torch.no_grad():
        model(ids, attention_mask=mask, token_type_ids=segments)
    for found, wanted in zip(
        load_teacher(str(tmp_path))(ids, mask, segments), seen.values(), strict=True
    ):
        assert torch.equal(found[mask], wanted[mask])
