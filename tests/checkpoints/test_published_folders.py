"""The published layout, both ways: bitwise round trips, and foreign files that are refused."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minimoe_dist.checkpoints.published import (
    config_from_published,
    config_to_published,
    load_published,
    save_published,
)
from minimoe_dist.models.build import build_student
from minimoe_dist.models.configuration import MiniMoeConfig

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
NAMES = ["bert_minilm", "moebert_minilm_1_4", "moebert_minilm_4_4", "moebert_minilm_2_1"]
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"{GOLDEN} is missing: it comes with the source, not the package"
)


def write_golden(name, folder):
    """A file's model as a published folder; returns its weights and configuration."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        keys = [key for key in file.keys() if key.startswith("w.")]  # noqa: SIM118
        weights = {key.removeprefix("w."): file.get_tensor(key) for key in keys}
        config = json.loads(file.metadata()["meta"])["config"]
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return weights, config


def tiny_config(moe=(1, 4), **changes):
    options = {
        "vocab_size": 30,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "intermediate_size": 96,
        "attention_experts": moe[0],
        "feedforward_experts": moe[1],
        "max_position_embeddings": 20,
        "num_relation_heads": 8,
        "relation_projections": moe != (1, 1),
    }
    return MiniMoeConfig(**{**options, **changes})


@pytest.fixture
def published(tmp_path):
    """A small student's folder."""
    save_published(build_student(tiny_config(), seed=0), tmp_path / "student")
    return tmp_path / "student"


def edit_config(folder, remove=None, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    config.pop(remove, None)
    path.write_text(json.dumps(config))


def refusal(folder) -> str:
    """The one line that a folder is refused with."""
    with pytest.raises(ValueError) as caught:
        load_published(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


@needs_golden
@pytest.mark.parametrize("name", NAMES)
def test_reading_and_writing_gives_the_same_keys_and_bits(name, tmp_path) -> None:
    weights, _ = write_golden(name, tmp_path / "theirs")
    save_published(load_published(tmp_path / "theirs"), tmp_path / "ours")
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert written.keys() == weights.keys()
    for key, value in weights.items():
        assert written[key].dtype == value.dtype and torch.equal(written[key], value), key


@needs_golden
@pytest.mark.parametrize("name", NAMES)
def test_reading_and_writing_keeps_the_configuration(name, tmp_path) -> None:
    _, config = write_golden(name, tmp_path)
    written = config_to_published(load_published(tmp_path).config)
    assert {key: written.get(key) for key in config} == config


@needs_golden
@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_student_is_written_with_the_published_key_set(name, tmp_path) -> None:
    weights, config = write_golden(name, tmp_path / "theirs")
    ours = config_from_published(config)
    save_published(build_student(ours, seed=0), tmp_path / "ours")
    written = load_file(tmp_path / "ours" / "model.safetensors")
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    assert {key: tuple(value.shape) for key, value in written.items()} == shapes


@pytest.mark.parametrize("moe", [(1, 1), (1, 4), (4, 1), (2, 4)])
def test_writing_and_reading_gives_the_same_student(moe, tmp_path) -> None:
    student = build_student(tiny_config(moe, with_pooler=True), seed=0)
    save_published(student, tmp_path)
    again = load_published(tmp_path).state_dict()
    assert again.keys() == student.state_dict().keys()
    for name, value in student.state_dict().items():
        assert torch.equal(again[name], value), name


def test_published_sizes_count_all_experts() -> None:
    config = config_to_published(tiny_config((2, 4)))
    assert config["num_attention_heads"] == 2 * 12
    assert config["intermediate_size"] == 4 * 96
    assert config["attention_head_size"] == 24 // 12
    assert config["moe"] == "2,4"
    assert config["num_relation_heads"] == 8
    assert config["model_type"] == "bert"


def test_ours_count_one_expert() -> None:
    config = config_from_published(config_to_published(tiny_config((2, 4))))
    assert (config.attention_experts, config.feedforward_experts) == (2, 4)
    assert (config.num_attention_heads, config.intermediate_size) == (12, 96)
    assert config.relation_projections and config.route_padding


def test_a_dense_configuration_is_berts_own() -> None:
    config = config_to_published(tiny_config((1, 1)))
    assert "moe" not in config and "attention_head_size" not in config
    ours = config_from_published(config)
    assert ours.is_dense and not ours.relation_projections and not ours.route_padding


def test_a_published_students_router_noise_is_its_dropout() -> None:
    config = config_to_published(tiny_config(hidden_dropout_prob=0.25))
    assert config_from_published(config).router_noise == 0.25


def test_a_pytorch_file_is_read_as_the_safetensors_file_is(published) -> None:
    wanted = load_published(published).state_dict()
    torch.save(load_file(published / "model.safetensors"), published / "pytorch_model.bin")
    (published / "model.safetensors").unlink()
    given = load_published(published).state_dict()
    assert all(torch.equal(given[name], value) for name, value in wanted.items())


def test_the_safetensors_file_goes_first(published) -> None:
    (published / "pytorch_model.bin").write_bytes(b"never looked at")
    load_published(published)


class _Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch's zip", "a bare pickle"])
def test_a_malicious_pickle_is_refused_and_never_run(zipped, published, tmp_path) -> None:
    trace = tmp_path / "executed"
    (published / "model.safetensors").unlink()
    path = published / "pytorch_model.bin"
    content = {"bert.embeddings.word_embeddings.weight": _Malicious(trace)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    assert "never run" in refusal(published)
    assert not trace.exists()


def test_the_malicious_pickle_would_have_worked(tmp_path) -> None:
    pickle.loads(pickle.dumps(_Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_pytorch_file_of_something_else_is_refused(published) -> None:
    (published / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], published / "pytorch_model.bin")
    assert "is not a dictionary of tensors" in refusal(published)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_is_refused(name, published) -> None:
    if name.endswith("bin"):
        torch.save(load_file(published / "model.safetensors"), published / name)
        (published / "model.safetensors").unlink()
    path = published / name
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: unreadable" in refusal(published)


def test_a_folder_without_weights_is_refused(published) -> None:
    (published / "model.safetensors").unlink()
    assert "no model.safetensors or pytorch_model.bin: check" in refusal(published)


def test_a_folder_without_a_configuration_is_refused(published) -> None:
    (published / "config.json").unlink()
    assert "config.json: missing; give a model's folder" in refusal(published)


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"], ids=["cut off", "no object", "no text"])
def test_a_configuration_that_is_no_json_object_is_refused(text, published) -> None:
    (published / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "JSON" in refusal(published) and "give the config.json" in refusal(published)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"remove": "num_attention_heads"}, "config.json: num_attention_heads: is missing"),
        ({"hidden_size": "x"}, "config.json: hidden_size: must be a whole number, not 'x'"),
        ({"moe": "1;4"}, "config.json: moe: must be two counts of experts, as 1,4, not '1;4'"),
        ({"moe": "1,5"}, "config.json: intermediate_size: 384 is no multiple of the 5 experts"),
        ({"moe": "5,4"}, "config.json: num_attention_heads: 12 is no multiple of the 5 experts"),
        ({"num_attention_heads": 7}, "config.json: hidden_size: 24 is no multiple of its 7 heads"),
        ({"num_hidden_layers": 3}, "do not fit config.json: .*Missing key"),
        ({"num_hidden_layers": 1}, "do not fit config.json: .*Unexpected key"),
        ({"vocab_size": 31}, "do not fit config.json: .*size mismatch"),
        ({"moe": "1,2"}, "do not fit config.json: .*size mismatch"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(changes, words, published) -> None:
    edit_config(published, **changes)
    message = refusal(published)
    position = 0
    for word in words.split(".*"):
        position = message.index(word, position)


@pytest.mark.parametrize(
    "key",
    ["self.query.weight", "bert.encoder.layer.1.ffn_gate.bias", "bert.embeddings.LayerNorm.weight"],
)
def test_a_missing_key_is_named(key, published) -> None:
    weights = load_file(published / "model.safetensors")
    del weights[key]
    save_file(weights, published / "model.safetensors")
    assert key.replace("self.", "relation.") in refusal(published)


def test_idle_routers_and_position_ids_may_be_missing(published) -> None:
    weights = load_file(published / "model.safetensors")
    idle = [key for key in weights if "attn_gate" in key or "position_ids" in key]
    assert len(idle) == 2 * 2 + 1
    save_file({k: v for k, v in weights.items() if k not in idle}, published / "model.safetensors")
    load_published(published)


def test_files_beside_the_student_stay(published) -> None:
    (published / "vocab.txt").write_text("[PAD]")
    save_published(load_published(published), published)
    assert sorted(p.name for p in published.iterdir()) == [
        "config.json",
        "model.safetensors",
        "vocab.txt",
    ]


def test_written_files_can_be_read_by_whom_the_folder_lets_in(published) -> None:
    reference = published / "reference"
    reference.touch()
    for path in published.iterdir():
        assert path.stat().st_mode == reference.stat().st_mode, path.name


def test_a_copied_folder_is_the_same_student(published, tmp_path) -> None:
    shutil.copytree(published, tmp_path / "copy")
    first, second = load_published(published), load_published(tmp_path / "copy")
    ids = torch.arange(10)[None]
    assert torch.equal(first(ids).signals[0], second(ids).signals[0])
