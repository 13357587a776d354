"""Checkpoints of every version, layout and split become the model that they were made of."""

import functools
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, MegatronBertForPreTraining

from minimoe_dist.checkpoints.megatron import folders
from minimoe_dist.checkpoints.megatron.converting import to_hugging_face
from minimoe_dist.checkpoints.megatron.folders import PADDING_FILE
from minimoe_dist.errors import UserError
from minimoe_dist.megatron_files.arguments import ModelOverrides
from minimoe_dist.models.megatron import reading
from tests.checkpoints.megatron.maker import (
    edit_rank,
    make_checkpoint,
    make_model,
    weights_of,
)

VOCABULARY = 120
LEGACY = [("legacy", version) for version in (0, 1.0, 2.0, 3.0)]
CORE = [("core", 3.0), ("transformer_engine", 3.0)]
SPLITS = [(tensor, pipeline) for tensor in (1, 2, 4) for pipeline in (1, 2)]
FILE = "release/mp_rank_00/model_optim_rng.pt"


@pytest.fixture(scope="module")
def model():
    return make_model()


def convert(source, folder, compare=False, vocab_size=VOCABULARY, **given):
    return to_hugging_face(
        source, folder, ModelOverrides(vocab_size=vocab_size, **given), compare=compare
    )


def assert_same_weights(folder, model):
    found, wanted = load_file(folder / "model.safetensors"), weights_of(model)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize(("tensor", "pipeline"), SPLITS)
@pytest.mark.parametrize(("layout", "version"), LEGACY + CORE)
def test_weights_are_bit_for_bit_the_models(tmp_path, model, layout, version, tensor, pipeline):
    split = {"tensor": tensor, "pipeline": pipeline}
    source = make_checkpoint(tmp_path / "m", model, layout=layout, version=version, **split)
    convert(source, tmp_path / "h")
    assert_same_weights(tmp_path / "h", model)


@pytest.mark.parametrize(("layout", "version"), [*LEGACY, CORE[0]])
def test_the_comparison_of_outputs_finds_rounding_only(tmp_path, model, layout, version):
    source = make_checkpoint(
        tmp_path / "m", model, layout=layout, version=version, tensor=2, pipeline=2
    )
    found = convert(source, tmp_path / "h", compare=True).differences
    assert found.keys() == {"hidden states", "masked-LM logits", "next-sentence logits"}
    assert max(one.largest for one in found.values()) < 1e-4


def test_a_fault_of_the_converter_is_found_and_nothing_is_left(tmp_path, model, monkeypatch):
    unfuse = reading.unfuse
    monkeypatch.setattr(reading, "unfuse", lambda *given: unfuse(*given)[::-1])
    source = make_checkpoint(tmp_path / "m", model)
    with pytest.raises(RuntimeError, match=r"hidden states differ by .* nothing was written"):
        convert(source, tmp_path / "h", compare=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_transformers_loads_the_folder_with_every_weight(tmp_path, model):
    convert(make_checkpoint(tmp_path / "m", model), tmp_path / "h")
    loaded, report = MegatronBertForPreTraining.from_pretrained(
        tmp_path / "h", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.arange(3, 20)[None]
    assert torch.equal(loaded(ids).prediction_logits, model(ids).prediction_logits)


def test_the_configuration_is_the_models(tmp_path, model):
    convert(make_checkpoint(tmp_path / "m", model), tmp_path / "h")
    config = AutoConfig.from_pretrained(tmp_path / "h")
    for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
        "hidden_act",
    ):  # fmt: skip
        assert getattr(config, name) == getattr(model.config, name), name


@pytest.mark.parametrize("padded", [128, 256])
def test_rows_behind_the_vocabulary_are_cut_off_and_kept_apart(tmp_path, model, padded):
    source = make_checkpoint(tmp_path / "m", model, padded=padded, fill=0.5, tensor=2)
    report = convert(source, tmp_path / "h")
    assert (report.vocab_size, report.padded_vocab_size) == (VOCABULARY, padded)
    assert_same_weights(tmp_path / "h", model)
    kept = load_file(tmp_path / "h" / PADDING_FILE)
    assert {len(rows) for rows in kept.values()} == {padded - VOCABULARY}


def test_all_rows_stay_where_nobody_knows_the_vocabulary(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, padded=128)
    assert convert(source, tmp_path / "h", vocab_size=None).vocab_size == 128


@pytest.mark.parametrize("norm", ["layernorm", "norm"])
@pytest.mark.parametrize("old_names", [True, False])
def test_names_of_all_years_are_read(tmp_path, model, old_names, norm):
    source = make_checkpoint(tmp_path / "m", model, version=2.0, old_names=old_names, norm=norm)
    convert(source, tmp_path / "h")
    assert_same_weights(tmp_path / "h", model)


def interleave(state):
    """A stage of two layers as two chunks of one, which Megatron calls virtual stages."""
    model = state.pop("model")
    for chunk in (0, 1):
        one = {}
        for name, value in model.items():
            if name.startswith("encoder.layers."):
                if name.startswith(f"encoder.layers.{chunk}."):
                    one[name.replace(f"layers.{chunk}.", "layers.0.")] = value
            elif name.startswith("embedding.") == (chunk == 0):
                one[name] = value
        state[f"model{chunk}"] = one


def test_an_interleaved_pipeline_is_read_in_order(tmp_path):
    # Ranks hold layers 0, 2 and 1, 3; the maker lays out a model with 1 and 2 swapped.
    model, swapped = make_model(), make_model()
    layers = swapped.bert.encoder.layer
    layers[1], layers[2] = layers[2], layers[1]
    source = make_checkpoint(tmp_path / "m", swapped, layout="core", pipeline=2)
    for rank in (0, 1):
        edit_rank(source / f"release/mp_rank_00_00{rank}/model_optim_rng.pt", interleave)
    convert(source, tmp_path / "h")
    assert_same_weights(tmp_path / "h", model)


def test_an_iterations_folder_and_the_only_ranks_file_are_taken(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, folder="iter_0000100")
    folder = source / "iter_0000100"
    for number, path in enumerate([source, folder, folder / "mp_rank_00/model_optim_rng.pt"]):
        convert(path, tmp_path / str(number))
        assert_same_weights(tmp_path / str(number), model)


def test_a_checkpoint_without_arguments_needs_the_heads(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, arguments=False)
    with pytest.raises(ValueError, match="give --num_attention_heads"):
        convert(source, tmp_path / "h")
    convert(source, tmp_path / "h", num_attention_heads=4)
    assert_same_weights(tmp_path / "h", model)


def test_files_from_before_archives_are_read(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, version=0)
    state = torch.load(source / FILE, weights_only=False)
    torch.save(state, source / FILE, _use_new_zipfile_serialization=False)
    convert(source, tmp_path / "h")
    assert_same_weights(tmp_path / "h", model)


def test_without_heads_an_encoder_is_written(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model)

    def behead(state):
        state["model"].pop("lm_head")
        state["model"].pop("binary_head")

    edit_rank(source / FILE, behead)
    convert(source, tmp_path / "h", compare=True)
    loaded, report = AutoModel.from_pretrained(tmp_path / "h", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(loaded.encoder.ln.weight, model.bert.encoder.ln.weight)


def test_the_type_of_the_weights_can_be_chosen(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, tensor=2)
    report = to_hugging_face(
        source, tmp_path / "h", ModelOverrides(vocab_size=VOCABULARY), dtype=torch.bfloat16
    )
    types = {value.dtype for value in load_file(tmp_path / "h" / "model.safetensors").values()}
    assert types == {torch.bfloat16}
    assert max(one.largest for one in report.differences.values()) < 1e-4


def config_of(folder):
    return AutoConfig.from_pretrained(folder)


def test_without_arguments_the_epsilon_is_megatrons_default(tmp_path, model, caplog):
    source = make_checkpoint(tmp_path / "m", model, arguments=False)
    with caplog.at_level(logging.WARNING, "minimoe_dist.convert"):
        convert(source, tmp_path / "h", num_attention_heads=4)
    assert config_of(tmp_path / "h").layer_norm_eps == 1e-5
    assert "does not say its LayerNorm epsilon" in caplog.text


@pytest.mark.parametrize("given", [{}, {"layer_norm_eps": 3e-6}])
def test_the_epsilon_is_the_arguments(tmp_path, model, given):
    source = make_checkpoint(tmp_path / "m", model)
    edit_rank(source / FILE, lambda state: setattr(state["args"], "layernorm_epsilon", 3e-6))
    convert(source, tmp_path / "h", **given)
    assert config_of(tmp_path / "h").layer_norm_eps == 3e-6


def test_without_arguments_the_epsilon_is_the_users(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, arguments=False)
    convert(source, tmp_path / "h", num_attention_heads=4, layer_norm_eps=1e-12)
    assert config_of(tmp_path / "h").layer_norm_eps == 1e-12


@pytest.mark.parametrize(
    ("arguments", "given", "said"),
    [
        ({}, {"num_attention_heads": 8}, "num_attention_heads: 8 was given, .* arguments say 4;"),
        ({}, {"layer_norm_eps": 1e-12}, "layer_norm_eps: 1e-12 was given, .* say 1e-05;"),
        ({"openai_gelu": True}, {"hidden_act": "gelu"}, "hidden_act: gelu .* gelu_new or gelu_pyt"),
        ({"openai_gelu": False}, {"hidden_act": "gelu_new"}, "hidden_act: gelu_new .* say gelu;"),
        ({"vocab_size": 90}, {"vocab_size": 60}, "vocab_size: 60 was given, .* say 90 or 120;"),
    ],
)
def test_what_contradicts_the_arguments_is_refused(tmp_path, model, arguments, given, said):
    source = make_checkpoint(tmp_path / "m", model)
    edit_rank(source / FILE, lambda state: vars(state["args"]).update(arguments))
    with pytest.raises(UserError, match=said):
        convert(source, tmp_path / "h", **given)
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize(
    ("argument", "given", "wanted"),
    [
        ("openai_gelu", {}, "gelu_new"),
        ("bias_gelu_fusion", {}, "gelu"),
        ("bias_gelu_fusion", {"hidden_act": "gelu_pytorch_tanh"}, "gelu_pytorch_tanh"),
    ],
)
def test_the_activation_is_the_arguments_or_the_users(tmp_path, model, argument, given, wanted):
    source = make_checkpoint(tmp_path / "m", model)
    edit_rank(source / FILE, lambda state: setattr(state["args"], argument, True))
    found = convert(source, tmp_path / "h", compare=True, **given).differences
    assert config_of(tmp_path / "h").hidden_act == wanted
    assert max(one.largest for one in found.values()) < 1e-4


def test_without_token_types_zeros_are_written(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, layout="core")
    name = "embedding.tokentype_embeddings.weight"
    edit_rank(source / FILE, lambda state: state["model"].pop(name))
    found = convert(source, tmp_path / "h", compare=True).differences
    weights = load_file(tmp_path / "h" / "model.safetensors")
    assert weights["bert.embeddings.token_type_embeddings.weight"].eq(0).all()
    assert max(one.largest for one in found.values()) < 1e-4


def test_where_ranks_differ_the_first_ones_is_taken_and_it_is_said(tmp_path, model, caplog):
    source = make_checkpoint(tmp_path / "m", model, layout="core", tensor=2)
    other = source / "release/mp_rank_01/model_optim_rng.pt"
    edit_rank(other, lambda state: state["model"]["encoder.final_layernorm.bias"].add_(1))
    with caplog.at_level(logging.WARNING, "minimoe_dist.convert"):
        convert(source, tmp_path / "h")
    assert "1 weights that all tensor ranks hold differ" in caplog.text
    assert_same_weights(tmp_path / "h", model)


def test_large_weights_are_written_in_pieces_that_transformers_reads(tmp_path, model, monkeypatch):
    pieces = functools.partial(folders.write_pieces, max_bytes=20_000)
    monkeypatch.setattr(folders, "write_pieces", pieces)
    convert(make_checkpoint(tmp_path / "m", model, tensor=2), tmp_path / "h")
    assert len(list((tmp_path / "h").glob("model-*.safetensors"))) > 3
    loaded = MegatronBertForPreTraining.from_pretrained(tmp_path / "h")
    wanted = weights_of(model)
    assert [n for n, value in weights_of(loaded).items() if not torch.equal(value, wanted[n])] == []
