"""Checkpoints that are damaged, incomplete, of another model or unsafe are refused by name."""

import pickle
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from minimoe_dist.checkpoints.megatron.converting import to_hugging_face
from minimoe_dist.megatron_files.arguments import ModelOverrides
from minimoe_dist.megatron_files.finding import find_rank_files, is_megatron_checkpoint
from minimoe_dist.models.megatron.unpickling import load_rank
from tests.checkpoints.megatron.maker import edit_rank, make_checkpoint, make_model

FILE = "model_optim_rng.pt"


@pytest.fixture(scope="module")
def model():
    return make_model(num_hidden_layers=2)


def refused(source, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        to_hugging_face(source, tmp_path / "out", ModelOverrides(vocab_size=120), compare=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


class Trap:
    """Touches a file when it is unpickled without restriction."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


class Foreign:
    """A harmless class that nobody allowed."""


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_runs_code_is_refused_without_running_it(tmp_path, model, archive):
    source = make_checkpoint(tmp_path / "m", model)
    path, trace = source / "release/mp_rank_00" / FILE, tmp_path / "trap-was-sprung"
    state = torch.load(path, weights_only=False)
    state["optimizer"] = Trap(trace)
    torch.save(state, path, _use_new_zipfile_serialization=archive)
    refused(source, "could run any code and is not read", tmp_path)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_that_runs_code_is_refused_without_running_it(tmp_path):
    trace = tmp_path / "trap-was-sprung"
    (tmp_path / FILE).write_bytes(pickle.dumps({"model": Trap(trace)}))
    refused(tmp_path / FILE, r"model_optim_rng\.pt: (holds more|cannot be read)", tmp_path)
    assert not trace.exists()


def test_a_trap_among_the_arguments_is_not_sprung(tmp_path, model):
    source, trace = make_checkpoint(tmp_path / "m", model), tmp_path / "trap-was-sprung"
    path = source / "release/mp_rank_00" / FILE
    edit_rank(path, lambda state: setattr(state["args"], "trap", Trap(trace)))
    refused(source, "could run any code", tmp_path)
    assert not trace.exists()


def test_a_class_that_nobody_allowed_is_named(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, scheduler=Foreign())
    refused(source, r"GLOBAL tests\.checkpoints\.megatron\.test_refusals\.Foreign", tmp_path)


@pytest.mark.parametrize("added", [[], [np.ndarray, np.zeros(1).__reduce__()[0]]])
def test_megatrons_own_company_of_the_weights_is_read_without_its_code(tmp_path, added):
    state = {"random": np.random.RandomState(0).get_state(), "args": Namespace(seed=1)}
    torch.save({"model": {}, **state}, tmp_path / FILE)
    with torch.serialization.safe_globals(added):  # as other libraries do on import
        found = load_rank(tmp_path / FILE)
    assert found["args"].seed == 1
    assert not isinstance(found["random"][1], np.ndarray)


def test_the_allowed_names_do_not_outlive_the_call_and_others_do(tmp_path):
    torch.save({"model": {}}, tmp_path / FILE)
    with torch.serialization.safe_globals([Foreign]):  # as an import of megatron-core does
        before = torch.serialization.get_safe_globals()
        load_rank(tmp_path / FILE)
        assert set(torch.serialization.get_safe_globals()) == set(before)


def test_a_class_that_another_library_allowed_is_still_refused(tmp_path):
    torch.save({"model": {}, "scheduler": Foreign()}, tmp_path / FILE)
    with torch.serialization.safe_globals([Foreign]), pytest.raises(ValueError, match="Foreign"):
        load_rank(tmp_path / FILE)


@pytest.mark.parametrize("bytes_kept", [0, 5000])
def test_a_truncated_file_is_refused(tmp_path, model, bytes_kept):
    source = make_checkpoint(tmp_path / "m", model)
    path = source / "release/mp_rank_00" / FILE
    path.write_bytes(path.read_bytes()[:bytes_kept])
    refused(source, "model_optim_rng.pt: .*copy the file again|holds more", tmp_path)


@pytest.mark.parametrize("rank", ["00_000", "01_000", "00_001", "01_001"])
def test_a_missing_rank_is_named(tmp_path, model, rank):
    source = make_checkpoint(tmp_path / "m", model, tensor=2, pipeline=2)
    shutil.rmtree(source / "release" / f"mp_rank_{rank}")
    refused(source, f"mp_rank_{rank} is missing; copy the folders of all ranks", tmp_path)


@pytest.mark.parametrize("ranks", [["01_000", "01_001"], ["00_001", "01_001"]])
def test_missing_last_ranks_are_known_from_the_arguments(tmp_path, model, ranks):
    source = make_checkpoint(tmp_path / "m", model, tensor=2, pipeline=2)
    for rank in ranks:
        shutil.rmtree(source / "release" / f"mp_rank_{rank}")
    refused(source, "mp_rank_.* is missing; copy the folders of all ranks", tmp_path)


def test_a_missing_last_tensor_rank_shows_in_the_shapes(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, tensor=2, arguments=False)
    shutil.rmtree(source / "release/mp_rank_01")
    with pytest.raises(ValueError, match=r"linear_qkv.weight of all ranks is \[48, 32\]"):
        to_hugging_face(
            source, tmp_path / "o", ModelOverrides(num_attention_heads=4), compare=False
        )


def test_a_rank_of_another_width_is_refused(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, tensor=2)
    other = make_checkpoint(
        tmp_path / "n", make_model(num_hidden_layers=2, intermediate_size=32), tensor=2
    )
    path = source / "release/mp_rank_01" / FILE
    shutil.copy(other / "release/mp_rank_01" / FILE, path)
    edit_rank(path, lambda state: setattr(state["args"], "ffn_hidden_size", 64))
    refused(source, "linear_fc1.weight is .* which do not belong together", tmp_path)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda state: state.update(iteration=200), "is of iteration 200, the first rank of 100; "),
        (
            lambda state: setattr(state["args"], "num_attention_heads", 8),
            "its arguments say num_attention_heads 8, those of the first rank 4; ",
        ),
        (
            lambda state: setattr(state["args"], "layernorm_epsilon", 1e-6),
            "its arguments say layernorm_epsilon 1e-06, those of the first rank 1e-05; ",
        ),
    ],
)
def test_a_rank_of_another_moment_or_model_is_refused(tmp_path, model, edit, words):
    source = make_checkpoint(tmp_path / "m", model, tensor=2, pipeline=2)
    edit_rank(source / "release/mp_rank_01_001" / FILE, edit)
    refused(source, f"mp_rank_01_001.*: {words}give the ranks of one checkpoint", tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layernorm_epsilon", "tiny"),
        ("layernorm_epsilon", -1.0),
        ("layernorm_epsilon", 0),
        ("layernorm_epsilon", 5.0),
        ("layernorm_epsilon", float("nan")),
        ("hidden_dropout", "none"),
        ("num_attention_heads", "four"),
        ("vocab_size", 90.5),
        ("tensor_model_parallel_size", "two"),
    ],
)
def test_an_argument_that_no_model_can_have_is_refused(tmp_path, model, name, value):
    source = make_checkpoint(tmp_path / "m", model)
    path = source / "release/mp_rank_00" / FILE
    edit_rank(path, lambda state: setattr(state["args"], name, value))
    refused(source, f"release: its arguments say {name} .*, which no model can have; ", tmp_path)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda weight: weight.fill_(float("nan")), "has numbers that are not finite"),
        (lambda weight: weight.fill_(float("inf")), "has numbers that are not finite"),
        (lambda weight: weight.int(), "is of int32, which no weight is"),
    ],
)
def test_a_weight_that_is_none_is_named(tmp_path, model, edit, words):
    source, name = make_checkpoint(tmp_path / "m", model), "layers.1.mlp.dense_h_to_4h.weight"

    def change(state):
        encoder = state["model"]["language_model"]["encoder"]
        encoder[name] = edit(encoder[name])

    edit_rank(source / "release/mp_rank_00" / FILE, change)
    refused(source, f"release: bert.encoder.layer.1.intermediate.dense.weight {words}", tmp_path)


def test_a_weight_that_the_type_cannot_hold_is_named(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model)

    def change(state):
        state["model"]["language_model"]["embedding"]["word_embeddings"]["weight"][3, 3] = 1e6

    edit_rank(source / "release/mp_rank_00" / FILE, change)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"word_embeddings\.weight has numbers that float16 c"):
        to_hugging_face(source, out, ModelOverrides(), dtype=torch.float16, compare=False)
    assert not out.exists()
    to_hugging_face(source, out, ModelOverrides(), dtype=torch.bfloat16, compare=False)


@pytest.mark.parametrize("version", [float("nan"), float("inf"), 1.5, -1.0])
def test_a_version_that_is_not_known_is_refused(tmp_path, model, version):
    source = make_checkpoint(tmp_path / "m", model)
    path = source / "release/mp_rank_00" / FILE
    edit_rank(path, lambda state: state.update(checkpoint_version=version))
    refused(source, "checkpoint_version: .* is not known", tmp_path)


def test_a_rank_of_another_version_is_refused(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, tensor=2)
    path = source / "release/mp_rank_01" / FILE
    edit_rank(path, lambda state: state.update(checkpoint_version=1.0))
    refused(source, "checkpoint version 1, the first rank of 3", tmp_path)


def test_heads_that_do_not_divide_are_refused(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, arguments=False)
    with pytest.raises(ValueError, match="num_attention_heads: 5 does not divide the hidden size"):
        to_hugging_face(
            source, tmp_path / "o", ModelOverrides(num_attention_heads=5), compare=False
        )


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("position_embedding_type", "rope"),
        ("swiglu", True),
        ("normalization", "RMSNorm"),
        ("untie_embeddings_and_output_weights", True),
        ("apply_residual_connection_post_layernorm", True),
    ],
)
def test_another_architecture_is_refused(tmp_path, model, argument, value):
    source = make_checkpoint(tmp_path / "m", model)
    path = source / "release/mp_rank_00" / FILE
    edit_rank(path, lambda state: setattr(state["args"], argument, value))
    refused(source, f"was trained with {argument}={value}", tmp_path)


def test_another_models_weight_is_named(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, layout="core")
    path = source / "release/mp_rank_00" / FILE
    more = {"decoder.layers.0.mlp.linear_fc1.weight": torch.zeros(2, 2)}
    edit_rank(path, lambda state: state["model"].update(more))
    refused(source, r"decoder\.layers\.0\.mlp\.linear_fc1\.weight is no weight", tmp_path)


def test_a_missing_weight_is_named(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, layout="core")
    path = source / "release/mp_rank_00" / FILE
    edit_rank(path, lambda state: state["model"].pop("encoder.layers.1.mlp.linear_fc2.bias"))
    refused(source, r"has no encoder\.layers\.1\.mlp\.linear_fc2\.bias", tmp_path)


def test_untied_output_weights_are_refused(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model, layout="core", pipeline=2)
    path = source / "release/mp_rank_00_001" / FILE
    edit_rank(path, lambda state: state["model"]["output_layer.weight"].add_(1))
    refused(source, "output weights are not its word embeddings", tmp_path)


def test_more_tokens_than_rows_are_refused(tmp_path, model):
    source = make_checkpoint(tmp_path / "m", model)
    with pytest.raises(ValueError, match="vocab_size: 121 tokens, but the checkpoint has 120"):
        to_hugging_face(source, tmp_path / "o", ModelOverrides(vocab_size=121), compare=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "has no latest_checkpointed_iteration.txt and no mp_rank_00"),
        (lambda root: (root / "release/.metadata").touch(), "is a distributed checkpoint"),
        (lambda root: (root / "release/mp_rank_00").mkdir(), "has no model_optim_rng.pt"),
        (lambda root: (root / "iter_0000001").mkdir(), "give the folder of one"),
    ],
)
def test_folders_that_are_no_checkpoint_are_refused(tmp_path, make, words):
    (tmp_path / "release").mkdir()
    make(tmp_path)
    if "no mp_rank_00" in words:
        (tmp_path / "release").rmdir()
    with pytest.raises(ValueError, match=words):
        find_rank_files(tmp_path)


@pytest.mark.parametrize(("text", "words"), [("7", "names iter_0000007"), ("x\ny", "says 'x")])
def test_a_tracker_that_leads_nowhere_is_refused(tmp_path, text, words):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        find_rank_files(tmp_path)


def test_a_checkpoint_is_known_from_a_hugging_face_folder(tmp_path, model):
    make_checkpoint(tmp_path / "m", model, pipeline=2, tracker=False)
    model.save_pretrained(tmp_path / "h")
    assert is_megatron_checkpoint(tmp_path / "m")
    assert is_megatron_checkpoint(tmp_path / "m/release")
    assert not is_megatron_checkpoint(tmp_path / "h")
    assert not is_megatron_checkpoint(tmp_path / "nothing")
