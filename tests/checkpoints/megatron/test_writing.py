"""Hugging Face folders become checkpoints of every version, layout and split, and come back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertModel,
    MegatronBertForSequenceClassification,
    MegatronBertModel,
)

from minimoe_dist.checkpoints.megatron.converting import to_hugging_face, to_megatron
from minimoe_dist.checkpoints.megatron.writing import Target
from minimoe_dist.megatron_files.arguments import ModelOverrides
from minimoe_dist.models.megatron.unpickling import load_rank
from tests.checkpoints.megatron.maker import make_checkpoint, make_model, weights_of

LEGACY = [("legacy", version) for version in (0, 1.0, 2.0, 3.0)]
CORE = [("core", 3.0), ("transformer_engine", 3.0)]
SPLITS = [(tensor, pipeline) for tensor in (1, 2, 4) for pipeline in (1, 2)]
FILE = "model_optim_rng.pt"


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("hugging_face")
    model.save_pretrained(path)
    return path


def write(folder, root, compare=False, **form):
    return to_megatron(folder, root, Target(divisible_by=8, **form), compare=compare)


def flat(values, prefix=""):
    found = {}
    for name, value in values.items():
        is_inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if is_inner else {prefix + name: value}
    return found


def model_of(path):
    return {k: v for k, v in flat(load_rank(path)["model"]).items() if "_extra_state" not in k}


def assert_same_files(one, other):
    ours = sorted(path.relative_to(one) for path in Path(one).rglob(FILE))
    assert ours == sorted(path.relative_to(other) for path in Path(other).rglob(FILE))
    for path in ours:
        found, wanted = model_of(one / path), model_of(other / path)
        assert found.keys() == wanted.keys(), path
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == [], path


@pytest.mark.parametrize(("tensor", "pipeline"), SPLITS)
@pytest.mark.parametrize(("layout", "version"), LEGACY + CORE)
def test_files_are_bit_for_bit_those_that_megatron_would_hold(
    tmp_path, model, folder, layout, version, tensor, pipeline
):
    made = make_checkpoint(
        tmp_path / "m", model, layout=layout, version=version, tensor=tensor, pipeline=pipeline
    )
    write(
        folder, tmp_path / "w", layout=layout, version=version,
        tensor_parallel_size=tensor, pipeline_parallel_size=pipeline,
    )  # fmt: skip
    assert_same_files(tmp_path / "w", made)


@pytest.mark.parametrize(("layout", "version"), [*LEGACY, CORE[1]])
def test_megatron_and_back_and_forth_again_changes_nothing(tmp_path, model, layout, version):
    form = {"layout": layout, "version": version}
    made = make_checkpoint(
        tmp_path / "m", model, **form, tensor=2, pipeline=2, padded=144, fill=0.25
    )
    to_hugging_face(made, tmp_path / "h", ModelOverrides(vocab_size=120), compare=False)
    to_megatron(
        tmp_path / "h", tmp_path / "w",
        Target(**form, tensor_parallel_size=2, pipeline_parallel_size=2, divisible_by=72),
        compare=False,
    )  # fmt: skip
    assert_same_files(tmp_path / "w", made)


def test_another_split_comes_back_to_the_same_weights(tmp_path, model, folder):
    write(folder, tmp_path / "a", version=1.0, tensor_parallel_size=4, pipeline_parallel_size=2)
    to_hugging_face(tmp_path / "a", tmp_path / "h", ModelOverrides(), compare=False)
    found, wanted = load_file(tmp_path / "h" / "model.safetensors"), weights_of(model)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert found.keys() == wanted.keys()


@pytest.mark.parametrize(("layout", "version"), [*LEGACY, CORE[1]])
def test_the_comparison_of_outputs_finds_rounding_only(tmp_path, folder, layout, version):
    form = {"layout": layout, "version": version, "tensor_parallel_size": 2}
    report = write(folder, tmp_path / "w", compare=True, **form)
    assert report.differences.keys() >= {"hidden states", "masked-LM logits"}
    assert max(one.largest for one in report.differences.values()) < 1e-4


def test_the_vocabulary_is_padded_with_zeros(tmp_path, folder, model):
    report = to_megatron(folder, tmp_path / "w", Target(tensor_parallel_size=2), compare=False)
    assert (report.vocab_size, report.padded_vocab_size) == (120, 256)
    last = model_of(tmp_path / "w/release/mp_rank_01" / FILE)
    assert not last["language_model.embedding.word_embeddings.weight"].any()


@pytest.mark.parametrize(
    ("iteration", "name", "tracker"), [(None, "release", "release"), (100, "iter_0000100", "100")]
)
def test_the_tracker_names_the_iteration(tmp_path, folder, iteration, name, tracker):
    write(folder, tmp_path / "w", iteration=iteration)
    assert (tmp_path / "w/latest_checkpointed_iteration.txt").read_text() == tracker
    assert (tmp_path / "w" / name / "mp_rank_00" / FILE).is_file()


def test_the_arguments_are_those_that_megatron_compares(tmp_path, folder):
    write(folder, tmp_path / "w", tensor_parallel_size=2, pipeline_parallel_size=2)
    state = torch.load(tmp_path / "w/release/mp_rank_01_001" / FILE, weights_only=False)
    wanted = {
        "num_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "ffn_hidden_size": 64,
        "max_position_embeddings": 40,
        "padded_vocab_size": 128,
        "make_vocab_size_divisible_by": 8,
        "layernorm_epsilon": 1e-5,
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
    }
    assert wanted.items() <= vars(state["args"]).items()
    assert (state["checkpoint_version"], state["iteration"]) == (3.0, 0)


def test_a_rank_holds_its_own_rows_only(tmp_path, folder):
    write(folder, tmp_path / "whole")
    write(folder, tmp_path / "parts", tensor_parallel_size=4)
    whole, part = (
        (tmp_path / name / "release/mp_rank_00" / FILE).stat().st_size
        for name in ("whole", "parts")
    )
    assert part < 0.5 * whole


def test_the_type_of_the_weights_can_be_chosen(tmp_path, folder):
    report = write(folder, tmp_path / "w", dtype=torch.float16, compare=True)
    held = model_of(tmp_path / "w/release/mp_rank_00" / FILE)
    assert {value.dtype for value in held.values()} == {torch.float16}
    assert max(one.largest for one in report.differences.values()) < 1e-4


def test_an_encoder_alone_is_written(tmp_path, model):
    model.bert.save_pretrained(tmp_path / "h")
    write(tmp_path / "h", tmp_path / "w", compare=True)
    held = model_of(tmp_path / "w/release/mp_rank_00" / FILE)
    assert not [name for name in held if name.startswith(("lm_head", "binary_head"))]
    assert torch.equal(held["language_model.pooler.dense.bias"], model.bert.pooler.dense.bias)


def test_another_head_in_the_folder_is_left_behind(tmp_path):
    config = make_model().config
    model = MegatronBertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "h")
    report = write(tmp_path / "h", tmp_path / "w", compare=True)
    assert report.differences.keys() == {"hidden states"}
    held = model_of(tmp_path / "w/release/mp_rank_00" / FILE)
    assert not [name for name in held if "classifier" in name or name.startswith("lm_head")]


def test_a_pickle_of_tensors_is_read(tmp_path, model, folder):
    model.config.save_pretrained(tmp_path / "h")
    torch.save(model.state_dict(), tmp_path / "h" / "pytorch_model.bin")
    write(tmp_path / "h", tmp_path / "w", compare=True)
    assert_same_files(tmp_path / "w", make_checkpoint(tmp_path / "m", model))


def test_a_sharded_folder_is_read(tmp_path, model):
    model.save_pretrained(tmp_path / "h", max_shard_size="20KB")
    assert len(list((tmp_path / "h").glob("*.safetensors"))) > 3
    write(tmp_path / "h", tmp_path / "w")
    assert_same_files(tmp_path / "w", make_checkpoint(tmp_path / "m", model))


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"tensor_parallel_size": 3}, "tensor_parallel_size: 3 does not divide the heads of 4"),
        ({"pipeline_parallel_size": 3}, "pipeline_parallel_size: 3 does not divide the layers"),
        ({"version": 1.5}, "checkpoint_version: 1.5 is not known"),
        ({"version": 1.0, "layout": "core"}, "checkpoint_version: 1 is older than layout core"),
        ({"vocab_size": 121}, "vocab_size: 121 tokens, but .* has 120 rows"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, folder, form, words):
    with pytest.raises(ValueError, match=words):
        write(folder, tmp_path / "w", **form)
    assert not (tmp_path / "w").exists()


def test_a_bert_with_layernorms_behind_is_refused(tmp_path):
    sizes = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path / "h")
    with pytest.raises(ValueError, match=r"is of type bert; .* give such a model"):
        write(tmp_path / "h", tmp_path / "w")


def test_another_activation_is_refused(tmp_path):
    MegatronBertModel(make_model(hidden_act="relu").config).save_pretrained(tmp_path / "h")
    with pytest.raises(ValueError, match="hidden_act relu is none of Megatron's BERT"):
        write(tmp_path / "h", tmp_path / "w")
