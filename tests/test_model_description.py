"""What a model's ``config.json`` and files say, and what is refused of them in one line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from minimoe_dist.encoder_families import ENCODER_FAMILIES
from minimoe_dist.errors import UserError
from minimoe_dist.model_description import (
    FAMILIES,
    MODEL_TYPES,
    ROPE_TYPES,
    TEACHERS,
    ModelDescription,
    describe_model,
    description_of,
    require_model,
)
from minimoe_dist.models import configuration
from minimoe_dist.models.auto import AutoConfig
from minimoe_dist.models.pretrained import encoder_class
from tests.families import CONFIGURATIONS, SIZES, student_options

BERT = {**SIZES, "model_type": "bert"}


def write(folder: Path, values: object, *files: str) -> str:
    folder.mkdir(exist_ok=True)
    text = values if isinstance(values, str) else json.dumps(values)
    (folder / "config.json").write_text(text)
    for name in files:
        (folder / name).touch()
    return str(folder)


def described(**changes: Any) -> ModelDescription:
    return description_of({**BERT, **changes}, "model", "model")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_described_as_transformers_saves_it(family: str, tmp_path: Path) -> None:
    CONFIGURATIONS[family](**SIZES).save_pretrained(tmp_path)
    model = describe_model(str(tmp_path))
    assert model is not None and model.family == model.model_type == family
    assert {name: getattr(model, name) for name in SIZES if name in model.model_fields} == {
        name: SIZES[name] for name in SIZES if name in model.model_fields
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_described_as_it_is_exported(family: str, tmp_path: Path) -> None:
    student_options(family, (2, 4)).save_pretrained(tmp_path)
    model = describe_model(str(tmp_path))
    assert model is not None and (model.model_type, model.family) == ("minimoe", family)
    assert (model.experts, model.heads_of_an_expert) == ((2, 4), SIZES["num_attention_heads"])
    assert model.is_native_student and model.is_student and model.signals_on_top


def test_a_published_student_counts_the_heads_of_all_experts() -> None:
    model = described(moe="2, 4", num_relation_heads=4)
    assert (model.experts, model.heads_of_an_expert) == ((2, 4), 2)
    assert model.is_published_student and not model.is_native_student


def test_a_published_student_without_experts_is_a_plain_encoder() -> None:
    assert not described(moe="1,1", sparsity="0").is_published_student


def test_every_type_has_a_class() -> None:
    for name in (*MODEL_TYPES, *TEACHERS):
        assert encoder_class(AutoConfig.for_model(name)).config_class.model_type == name
    assert FAMILIES == configuration.FAMILIES
    assert {ENCODER_FAMILIES[name].student for name in TEACHERS} <= set(FAMILIES)


@pytest.mark.parametrize("name", TEACHERS)
def test_what_students_are_not_built_like_teaches_and_is_fine_tuned_alone(
    name: str, tmp_path: Path
) -> None:
    values = {**AutoConfig.for_model(name).to_dict(), "pad_token_id": 0}
    path = write(tmp_path / "model", values)
    described = describe_model(path, teaches=True)
    assert described is not None and described.only_teaches
    assert described.family == ENCODER_FAMILIES[name].student
    assert describe_model(path, foreign=True) == described
    words = "which teaches and can be fine-tuned, and is for nothing else; give"
    with pytest.raises(UserError, match=rf"source: .* is of type {name}, {words}"):
        describe_model(path, "source")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_sequence_is_the_longest_that_the_encoder_embeds(
    family: str, tmp_path: Path
) -> None:
    config = CONFIGURATIONS[family](**SIZES)
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    encoder = encoder_class(read)(read).eval()
    model = describe_model(str(tmp_path))
    assert model is not None
    ids = torch.full((1, model.longest_sequence), 5)
    encoder(ids)
    with pytest.raises((IndexError, RuntimeError)):
        encoder(torch.nn.functional.pad(ids, (0, 1), value=5))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "big"}, "hidden_size: must be a whole number, not 'big'"),
        ({"hidden_size": 24.5}, "hidden_size: must be a whole number, not 24.5"),
        ({"num_hidden_layers": True}, "num_hidden_layers: must be a whole number, not True"),
        ({"num_hidden_layers": -2}, "num_hidden_layers: must be at least 1, not -2"),
        ({"num_attention_heads": 0}, "num_attention_heads: must be at least 1, not 0"),
        ({"vocab_size": 10**12}, "vocab_size: must be at most"),
        ({"intermediate_size": None}, "intermediate_size: is missing"),
        ({"hidden_size": 25}, "hidden_size: 25 is no multiple of its 4 heads"),
        (
            {"position_embedding_type": "relative_key_query"},
            "position_embedding_type: relative_key_query, and only absolute",
        ),
        ({"is_decoder": True}, "is_decoder: true, and an encoder is wanted"),
        ({"is_decoder": 1}, "is_decoder: must be"),
        ({"add_cross_attention": True}, "add_cross_attention: true, and an encoder is wanted"),
        (
            {"model_type": "xlm-roberta", "pad_token_id": None},
            "pad_token_id: null, and positions are counted from it",
        ),
        ({"head_dim": 16}, "head_dim: 16, and 4 heads of hidden_size 24 are read"),
        (
            {"model_type": "gte", "position_embedding_type": "absolute"},
            "position_embedding_type: absolute, and only rope or rotary is read",
        ),
        (
            {"model_type": "gte", "rope_scaling": {"type": "ntk", "factor": 8.0}},
            "rope_scaling: ntk is none of default, linear,",
        ),
        (
            {"model_type": "modernbert", "rope_parameters": {"full": {"rope_type": "twisted"}}},
            "rope_parameters: twisted is none of default, linear,",
        ),
        (
            {"model_type": "nomic_bert", "prenorm": True},
            "prenorm: True, and transformers' nomic_bert computes with False, whatever",
        ),
        (
            {"model_type": "nomic_bert", "rotary_emb_base": 10_000},
            "rotary_emb_base: 10000, and transformers' nomic_bert computes with 1000,",
        ),
        ({"num_hidden_groups": 2}, "num_hidden_groups: 2, and only 1 can be cut at a layer"),
        ({"inner_group_num": 2}, "inner_group_num: 2, and only 1 can be cut at a layer"),
        ({"num_key_value_heads": 2}, "num_key_value_heads: 2, and relations want as many keys"),
        ({"pad_token_id": 60}, "pad_token_id: 60 is not below vocab_size 60"),
        ({"moe": "4"}, "moe: must be two counts of experts, as 1,4, not '4'"),
        ({"moe": "3,1"}, "num_attention_heads: 4 is no multiple of the 3 experts of moe"),
        ({"moe": "1,5"}, "intermediate_size: 48 is no multiple of the 5 experts of moe"),
        ({"sparsity_map": ["90"]}, "sparsity_map: must be a mapping of options, not ['90']"),
        ({"id2label": {"no": "yes"}}, "id2label: must name labels by their numbers, not"),
        ({"model_type": "minimoe", "family": "gpt2"}, "family: gpt2 is none of bert, roberta"),
    ],
)
def test_a_field_that_no_model_has_is_one_line(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        describe_model(write(tmp_path / "model", {**BERT, **changes}), teaches=True)
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / 'model' / 'config.json'}: {words}")
    assert said.endswith("; give the config.json that the model was saved with")
    assert "\n" not in said


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gte", "position_embedding_type": "rope", "rope_scaling": None},
        {"model_type": "gte", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"model_type": "jina_embeddings_v3", "position_embedding_type": "rotary"},
        {"model_type": "nomic_bert", "prenorm": False, "rotary_emb_base": 1000},
        # What transformers itself writes beside a field that it carries along.
        {
            "model_type": "nomic_bert",
            "rotary_emb_base": 10_000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000},
        },
        {"model_type": "modernbert", "rope_parameters": {"full": {"rope_type": "default"}}},
        {"model_type": "modernbert", "position_embedding_type": "absolute"},
        {"model_type": "modernbert", "position_embedding_type": "sans_pos"},
        {"model_type": "mpnet", "pad_token_id": None},
        {"model_type": "nomic_bert", "rotary_emb_base": 1000, "rope_parameters": None},
        {"head_dim": 6},
    ],
)
def test_what_a_class_reads_or_computes_with_is_taken(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    assert describe_model(write(tmp_path, {**BERT, **changes}), teaches=True) is not None


def test_kinds_of_rotary_positions_are_those_that_transformers_knows() -> None:
    assert set(ROPE_TYPES) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "gpt2", "n_embd": 8}, "teacher: {} is of type gpt2, which neither teaches"),
        ({"hidden_size": 8}, "teacher: {} is of type none (config.json has no model_type)"),
        ("{", "{}/config.json: not readable as JSON"),
        ("[1]", "{}/config.json: no JSON object"),
    ],
)
def test_what_is_no_encoder_is_refused(values: object, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", values)
    with pytest.raises(UserError) as refused:
        describe_model(folder, "teacher")
    assert str(refused.value).startswith(words.replace("{}", folder))


def test_a_folder_without_weights_is_refused_where_they_are_needed(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", BERT)
    assert require_model(folder, "teacher", weights=False).path == folder
    with pytest.raises(UserError, match=f"^teacher: {folder} has no weights; copy its model"):
        require_model(folder, "teacher")


@pytest.mark.parametrize(
    ("file", "safetensors"),
    [
        ("model.safetensors", True),
        ("model.safetensors.index.json", True),
        ("pytorch_model.bin", False),
        ("pytorch_model.bin.index.json", False),
    ],
)
def test_weights_are_found_by_their_names(file: str, safetensors: bool, tmp_path: Path) -> None:
    model = require_model(write(tmp_path / "model", BERT, file), "teacher")
    assert model.has_weights and model.has_safetensors is safetensors


def test_a_hub_name_that_is_nowhere_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as refused:
        require_model("owner/absent", "teacher")
    said = str(refused.value)
    assert said.startswith("teacher: owner/absent: no folder here, and not to be had from the hub")
    assert "hf download owner/absent" in said and "give a folder" in said


HUB = """
import sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(False)
    def do_GET(self):
        self.answer(True)
    def answer(self, with_body):
        body = open(sys.argv[1], "rb").read()
        there = self.path == "/owner/there/resolve/main/config.json"
        self.send_response(200 if there else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body) if there else 0))
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if there and with_body:
            self.wfile.write(body)
    def log_message(self, *given):
        pass

server = HTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
import os
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
from minimoe_dist.errors import UserError
from minimoe_dist.model_description import describe_model, require_model
assert describe_model("owner/there") is None
print(require_model("owner/there", "teacher").hidden_size)
print(describe_model("owner/there").hidden_size)
try:
    require_model("owner/absent", "teacher")
except UserError as error:
    print(error)
"""


def test_a_reachable_hub_is_asked_for_the_configuration_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "model", BERT)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", HUB, str(tmp_path / "model" / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    there, again, absent = done.stdout.splitlines()
    assert (there, again) == ("24", "24")
    assert absent.startswith("teacher: owner/absent: no folder here, and not to be had")
    cached = [one.name for one in (tmp_path / "home" / "hub").rglob("snapshots/*/*")]
    assert cached == ["config.json"]


def test_contents_are_those_of_weights_and_configuration_wherever_they_lie(tmp_path: Path) -> None:
    model = AutoConfig.for_model("bert", **SIZES)
    for name in ("first", "second"):
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    values = json.loads((tmp_path / "second" / "config.json").read_text())
    write(tmp_path / "second", {**values, "_name_or_path": "elsewhere", "dtype": "float16"})

    def contents(name: str) -> str:
        return require_model(str(tmp_path / name), "model").contents()

    assert contents("first") == contents("second")
    (tmp_path / "second" / "model.safetensors").write_bytes(b"others!")
    assert contents("first") != contents("second")
    (tmp_path / "second" / "model.safetensors").write_bytes(b"weights")
    write(tmp_path / "second", {**values, "layer_norm_eps": 1e-5})
    assert contents("first") != contents("second")
