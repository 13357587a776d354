"""Checkpoints of Megatron's teach as they are: bit for bit what their conversions teach."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MegatronBertForPreTraining

from minimoe_dist.checkpoints.megatron.converting import to_hugging_face
from minimoe_dist.errors import UserError
from minimoe_dist.megatron_files.arguments import ModelOverrides
from minimoe_dist.model_description import describe_model, require_model
from minimoe_dist.models.megatron.reading import MegatronWeights
from minimoe_dist.models.teacher import load_teacher, unfilled_teacher
from tests.checkpoints.megatron.maker import edit_rank, make_checkpoint, make_model

FORMS = [
    *(("legacy", version, 2, 2) for version in (0, 1.0, 2.0, 3.0)),
    ("core", 3.0, 4, 1),
    ("transformer_engine", 3.0, 1, 4),
    ("legacy", 3.0, 1, 1),
]
SHOWN = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    *("intermediate_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps"),
    *("model_type", "pad_token_id", "hidden_dropout_prob", "attention_probs_dropout_prob"),
)


@pytest.fixture(scope="module")
def model() -> MegatronBertForPreTraining:
    return make_model()


def make(root: Path, model: Any, form: tuple[Any, ...] = FORMS[-1], **more: Any) -> Path:
    layout, version, tensor, pipeline = form
    split = {"tensor": tensor, "pipeline": pipeline}
    return make_checkpoint(root, model, layout=layout, version=version, **split, **more)


def converted(source: Path, folder: Path) -> Path:
    to_hugging_face(source, folder, ModelOverrides(), compare=False)
    return folder


def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 120, (3, 17), generator=generator)
    mask = torch.arange(17) < torch.tensor([[17], [9], [12]])
    return ids, mask, (torch.arange(17) > 6).long().expand(3, 17)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_signals_are_those_of_the_conversion(form: tuple[Any, ...], model: Any, tmp_path: Path):
    source = make(tmp_path / "m", model, form)
    folder = converted(source, tmp_path / "h")
    for options in ({}, {"relation_layer": 2}, {"dtype": "bfloat16"}):
        ours = load_teacher(str(source), **options)(*batch())
        theirs = load_teacher(str(folder), **options)(*batch())
        assert all(map(torch.equal, ours, theirs)) and ours[0].dtype == theirs[0].dtype
    described = json.loads((folder / "config.json").read_text())
    config = load_teacher(str(source)).config.to_dict()
    assert {name: config[name] for name in SHOWN} == {name: described[name] for name in SHOWN}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_slices_are_those_of_whole_weights(form: tuple[Any, ...], model: Any, tmp_path: Path):
    source = make(tmp_path / "m", model, form)
    weights = MegatronWeights(str(source), str(source))
    whole = dict(load_teacher(str(source)).named_parameters())
    unfilled = unfilled_teacher(str(source))
    assert unfilled.names.keys() == whole.keys()
    for name, stored_name in unfilled.names.items():
        for dim, size in enumerate(whole[name].shape):
            for start, length in ((0, size), (0, size // 2), (size // 3, size // 2), (size - 1, 1)):
                wanted = whole[name].narrow(dim, start, length)
                found = torch.full_like(wanted, torch.nan)
                weights.copy_into(found, stored_name, dim, start)
                assert torch.equal(found, wanted), (name, dim, start)


def test_what_a_checkpoint_does_not_say_a_config_json_beside_it_does(
    model: Any, tmp_path: Path
) -> None:
    source = make(tmp_path / "m", model, arguments=False, folder="iter_0000100")
    with pytest.raises(UserError, match=r"does not say how many heads it has.*config\.json"):
        describe_model(str(source), "option", teaches=True)
    stated = {"num_attention_heads": 8, "layer_norm_eps": 1e-12, "vocab_size": 100}
    (source / "config.json").write_text(json.dumps(stated))
    for folder in (source, source / "iter_0000100"):
        described = require_model(str(folder), "option", teaches=True)
        assert (described.num_attention_heads, described.vocab_size) == (8, 100)
        assert load_teacher(str(folder)).config.layer_norm_eps == 1e-12
    words = load_teacher(str(source)).get_parameter(
        "signals.encoder.embeddings.word_embeddings.weight"
    )
    assert torch.equal(words, model.bert.embeddings.word_embeddings.weight[:100])
    for value in ("8", 0, True, 8.5, 1 << 40):
        (source / "config.json").write_text(json.dumps({"num_attention_heads": value}))
        with pytest.raises(UserError, match=r"config\.json: num_attention_heads .* is none"):
            describe_model(str(source), "option", teaches=True)


def test_a_checkpoint_without_segments_teaches_with_none(model: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "m", model)

    def forget(state: dict[str, Any]) -> None:
        del state["model"]["language_model"]["embedding"]["tokentype_embeddings"]

    edit_rank(source / "release/mp_rank_00/model_optim_rng.pt", forget)
    folder = converted(source, tmp_path / "h")
    ours, theirs = (load_teacher(str(path))(*batch()) for path in (source, folder))
    assert all(map(torch.equal, ours, theirs))


def test_ranks_that_differ_are_told(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make(tmp_path / "m", model, ("legacy", 3.0, 2, 1))

    def change(state: dict[str, Any]) -> None:
        state["model"]["language_model"]["encoder"]["final_layernorm.bias"] += 1

    edit_rank(source / "release/mp_rank_01/model_optim_rng.pt", change)
    load_teacher(str(source))
    (record,) = caplog.records
    assert "all tensor ranks hold differ" in record.message
    assert "the first rank's are taken" in record.message


def test_contents_tell_one_checkpoint_from_another(model: Any, tmp_path: Path) -> None:
    one = make(tmp_path / "one", model, ("legacy", 3.0, 2, 1))
    again = make(tmp_path / "again", model, ("legacy", 3.0, 2, 1))
    other = make(tmp_path / "other", make_model(seed=1), ("legacy", 3.0, 2, 1))
    found = [require_model(str(path), "", teaches=True).contents() for path in (one, again, other)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("release/mp_rank_01_001/model_optim_rng.pt", "missing", r"has no model_optim_rng\.pt"),
        ("release/mp_rank_01_001/model_optim_rng.pt", "truncated", "cannot be read"),
        ("release/mp_rank_01_000/model_optim_rng.pt", "unsafe", "holds more than tensors"),
        ("release/mp_rank_00_001/model_optim_rng.pt", "another", "must be|do not belong|of one"),
        ("release/mp_rank_00_001/model_optim_rng.pt", "without", "is not in every tensor rank"),
    ],
)  # fmt: skip
def test_damaged_ones_are_refused_by_their_headers(
    file: str, damage: str, words: str, model: Any, tmp_path: Path
) -> None:
    source = make(tmp_path / "m", model, ("legacy", 3.0, 2, 2))
    path = source / file
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    elif damage == "unsafe":
        edit_rank(path, lambda state: state.update(args=_Foreign()))
    elif damage == "another":
        wide = make(tmp_path / "w", make_model(hidden_size=64), ("legacy", 3.0, 2, 2))
        path.write_bytes((wide / file).read_bytes())
    else:

        def forget(state: dict[str, Any]) -> None:
            del state["model"]["language_model"]["encoder"]["layers.1.mlp.dense_4h_to_h.bias"]

        edit_rank(path, forget)
    with pytest.raises(UserError, match=words) as refused:
        describe_model(str(source), "option", teaches=True)
    assert "\n" not in str(refused.value)


class _Foreign:
    """Its name stands in the pickle."""


@pytest.mark.parametrize("option", ["model_name_or_path", "initial_weights"])
def test_what_does_not_teach_is_to_be_converted(option: str, model: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "m", model)
    with pytest.raises(
        UserError, match=rf"{option}: .* only teaches as it is; convert it: minimoe"
    ):
        require_model(str(source), option)
