"""``minimoe-dist convert``: both ways, what it prints, and what it refuses before torch."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from minimoe_dist.commands import convert
from minimoe_dist.config import ConfigError
from minimoe_dist.config.command_line import read_options
from minimoe_dist.config.commands import ConvertOptions
from minimoe_dist.corpus.tokenizing import load_tokenizer
from minimoe_dist.errors import UserError
from minimoe_dist.preflight.convert import check
from minimoe_dist.runtime import detect_launch
from tests.checkpoints.megatron.maker import make_checkpoint, make_model, weights_of

ALONE = detect_launch({})
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(115))]


@pytest.fixture(scope="module")
def model():
    return make_model(num_hidden_layers=2)


@pytest.fixture
def megatron(tmp_path, model):
    return make_checkpoint(tmp_path / "m", model, version=1.0, tensor=2, padded=128, fill=0.5)


@pytest.fixture
def huggingface(tmp_path, model):
    model.save_pretrained(tmp_path / "h")
    return tmp_path / "h"


def options_of(*words):
    return read_options("convert", ConvertOptions, [str(word) for word in words])


def run(*words):
    options = options_of(*words)
    check(options, ALONE)
    return convert.run(options, ALONE)


def test_there_and_back_again(tmp_path, megatron, model, capsys):
    assert run("--input", megatron, "--output", tmp_path / "a", "--vocab_size", 120) == 0
    assert run("--input", tmp_path / "a", "--output", tmp_path / "b", "--layout", "core") == 0
    assert run("--input", tmp_path / "b", "--output", tmp_path / "c") == 0
    found, wanted = load_file(tmp_path / "c" / "model.safetensors"), weights_of(model)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    said = capsys.readouterr().out
    assert said.count("differ by at most") == 9
    assert "120 in Hugging Face, 128 in Megatron" in said


def test_the_tokenizer_says_the_vocabulary_and_is_saved(tmp_path, megatron):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    (tmp_path / "t" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    words = ("--input", megatron, "--output", tmp_path / "a", "--compare", "false")
    assert run(*words, "--tokenizer_name_or_path", tmp_path / "t") == 0
    assert json.loads((tmp_path / "a" / "config.json").read_text())["vocab_size"] == 120
    assert len(load_tokenizer(str(tmp_path / "a"))) == 120


def test_a_model_config_speaks_for_a_checkpoint_without_arguments(tmp_path, model, huggingface):
    source = make_checkpoint(tmp_path / "m", model, arguments=False)
    words = ("--input", source, "--output", tmp_path / "a", "--compare", "false")
    assert run(*words, "--model_config_path", huggingface / "config.json") == 0
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (written["num_attention_heads"], written["layer_norm_eps"]) == (4, 1e-5)


@pytest.mark.parametrize("key", ["model", "module", None])
def test_a_plain_file_of_the_only_rank_is_read(tmp_path, model, huggingface, key):
    source = make_checkpoint(tmp_path / "m", model, arguments=False, version=0)
    state = torch.load(source / "release" / "mp_rank_00" / "model_optim_rng.pt", weights_only=True)
    file = huggingface / "MegatronBERT.pt"  # beside config.json
    torch.save(state["model"] if key is None else {key: state["model"]}, file)
    assert run("--input", file, "--output", tmp_path / "a", "--compare", "false") == 0
    found, wanted = load_file(tmp_path / "a" / "model.safetensors"), weights_of(model)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_file_that_is_converted_already_is_told_apart(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "MegatronBERT.pt")
    with pytest.raises(UserError, match=r"has Hugging Face's names, .* as pytorch_model\.bin"):
        run("--input", tmp_path / "MegatronBERT.pt", "--output", tmp_path / "a",
            "--num_attention_heads", 4)  # fmt: skip


@pytest.mark.parametrize("inner", [".", "global_step100"])
def test_a_checkpoint_of_megatron_deepspeed_is_refused_for_what_it_is(tmp_path, inner):
    folder = tmp_path / "m" / "global_step100"
    folder.mkdir(parents=True)
    (tmp_path / "m" / "latest").write_text("global_step100")
    for name in ("layer_01-model_00-model_states.pt", "mp_rank_00_model_states.pt"):
        (folder / name).touch()
    with pytest.raises(
        ConfigError, match=r"input: .*global_step100: is a checkpoint of Megatron-D"
    ):
        run("--input", tmp_path / "m" / inner, "--output", tmp_path / "a")


@pytest.mark.parametrize("inner", [".", "release"])
def test_a_config_json_beside_the_ranks_is_found(tmp_path, model, inner):
    source = make_checkpoint(tmp_path / "m", model, arguments=False)
    model.config.save_pretrained(source)
    words = ("--input", source / inner, "--output", tmp_path / "a", "--compare", "false")
    assert run(*words) == 0
    assert json.loads((tmp_path / "a" / "config.json").read_text())["num_attention_heads"] == 4


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--tensor_parallel_size", 3],
            "tensor_parallel_size: 3 does not divide the 4 attention heads",
        ),
        (
            ["--pipeline_parallel_size", 4],
            "pipeline_parallel_size: 4 does not divide the 2 layers",
        ),
    ],
)
def test_a_split_that_does_not_work_out_is_refused(tmp_path, huggingface, flags, words):
    with pytest.raises(ConfigError, match=words):
        run("--input", huggingface, "--output", tmp_path / "o", *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--checkpoint_version", 1.5], "--checkpoint_version: must be 0, 1.0, 2.0 or above, not"),
        (
            ["--checkpoint_version", 1, "--layout", "core"],
            "--checkpoint_version: must be at least 2.0 for",
        ),
        (["--checkpoint_version", "nan"], "--checkpoint_version: must be a finite number, not"),
        (["--layer_norm_eps", 5], "--layer_norm_eps: must be below 1, not"),
        (["--to", "hugginface"], "to"),
        (["--tensor_paralel_size", 2], "tensor_parallel_size"),
    ],
)
def test_wrong_flags_are_refused(flags, words):
    with pytest.raises(ConfigError, match=words):
        options_of("--input", "a", "--output", "b", *flags)


@pytest.mark.parametrize(
    ("direction", "flags"),
    [
        ("megatron", ["--num_attention_heads", 8]),
        ("megatron", ["--hidden_act", "gelu_new"]),
        ("huggingface", ["--checkpoint_version", 2.0]),
        ("huggingface", ["--tensor_parallel_size", 1]),
    ],
)
def test_an_option_of_the_other_direction_is_refused(
    tmp_path, megatron, huggingface, direction, flags
):
    source = huggingface if direction == "megatron" else megatron
    with pytest.raises(ConfigError, match=f"{flags[0]}: {flags[1]} is heeded only in converting"):
        run("--input", source, "--output", tmp_path / "o", *flags)


def test_two_numbers_of_tokens_are_refused(tmp_path, megatron):
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=f"--vocab_size: 60, but {folder} has 120 tokens; leave"):
        run("--input", megatron, "--output", tmp_path / "o", "--tokenizer_name_or_path", folder,
            "--vocab_size", 60)  # fmt: skip
    assert not (tmp_path / "o").exists()


def test_a_weight_that_is_not_finite_is_named_on_the_way_to_megatron(tmp_path, model):
    broken = make_model(num_hidden_layers=2)
    broken.bert.encoder.layer[1].output.dense.bias.data[0] = float("nan")
    broken.save_pretrained(tmp_path / "h")
    with pytest.raises(
        UserError, match=r"fc2\.bias has numbers that are not finite; give a checkp"
    ):
        run("--input", tmp_path / "h", "--output", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_an_output_that_is_there_stays_unless_told_otherwise(tmp_path, megatron):
    kept = tmp_path / "o" / "precious.txt"
    words = ("--input", megatron, "--output", tmp_path / "o", "--compare", "false")
    assert run(*words) == 0
    with pytest.raises(ConfigError, match="is there already; give another, or --overwrite"):
        run(*words)
    assert run(*words, "--overwrite") == 0
    kept.touch()
    with pytest.raises(UserError, match=r"holds precious\.txt, which was not written by it"):
        run(*words, "--overwrite")
    assert kept.exists()


@pytest.mark.parametrize("inner", [".", "o"])
def test_an_output_in_the_input_is_refused(megatron, inner):
    with pytest.raises(ConfigError, match="are in each other"):
        run("--input", megatron, "--output", megatron / inner)


def test_what_is_no_model_is_refused(tmp_path):
    for path, words in ((tmp_path, "no Megatron checkpoint and no"), (Path("no/x"), "not exist")):
        with pytest.raises(ConfigError, match=words):
            run("--input", path, "--output", "/tmp/nowhere")


def test_a_fault_ends_with_status_1_and_no_output(tmp_path, megatron, monkeypatch):
    from minimoe_dist.models.megatron import reading

    unfuse = reading.unfuse
    monkeypatch.setattr(reading, "unfuse", lambda *given: unfuse(*given)[::-1])
    assert run("--input", megatron, "--output", tmp_path / "o") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_full_disk_ends_with_status_1_and_no_output(tmp_path, megatron, monkeypatch, kind):
    from minimoe_dist.checkpoints.megatron import folders

    def fail(*_given):
        raise kind("No space left on device")

    monkeypatch.setattr(folders, "write_pieces", fail)
    assert run("--input", megatron, "--output", tmp_path / "o") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
