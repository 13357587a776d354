"""Teachers of every family give what hooks on the uncut model see, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MODEL_MAPPING, AutoConfig, AutoModelForSequenceClassification

from minimoe_dist.encoder_families import ENCODER_FAMILIES
from minimoe_dist.errors import UserError
from minimoe_dist.model_description import WEIGHTS, describe_model
from minimoe_dist.models.build import build_student, student_config
from minimoe_dist.models.pretrained import base_of_students, open_weights
from minimoe_dist.models.teacher import load_teacher, unfilled_teacher
from minimoe_dist.preflight.weights import check_weights

LAYERS, VOCABULARY = 3, 90
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "initializer_range": 0.2,
}
CHANGES: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 24},
    "albert": {"embedding_size": 24},
    "rembert": {"input_embedding_size": 24, "output_embedding_size": 24},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "conv_kernel_size": 3,
        "norm_rel_ebd": "layer_norm",
    },
    # Random weights as large as the others' would mix what rotary positions tell apart beyond what
    # students, whose positions are added to words, can follow.
    "gte": {"initializer_range": 0.05},
    "nomic_bert": {"initializer_range": 0.05},
    "eurobert": {
        "initializer_range": 0.05,
        "mask_token_id": 4,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "modernbert": {
        "local_attention": 8,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
}


def make_model(name: str, **changes: Any) -> Any:
    family = ENCODER_FAMILIES[name]
    sizes = {family.names.get(key, key): value for key, value in SIZES.items()}
    config = AutoConfig.for_model(name, **{**sizes, **CHANGES.get(name, {}), **changes})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return MODEL_MAPPING[type(config)](config).eval()


def hooked(model: Any, name: str, layer: int, batch: dict[str, torch.Tensor]) -> Any:
    """The outputs of a layer's maps in a pass of the whole model."""
    family, outputs = ENCODER_FAMILIES[name], {path: [] for path in ENCODER_FAMILIES[name].maps}
    place = family.shared_layer or f"{family.layers}.{layer - 1}"
    for path in family.maps:
        model.get_submodule(f"{place}.{path}").register_forward_hook(
            lambda module, inputs, output, path=path: outputs[path].append(output)
        )
    with torch.no_grad():
        model(**batch)
    # Positions are mapped as well in DeBERTa, behind the tokens; layers share maps in ALBERT.
    index = layer - 1 if family.shared_layer else 0
    found = [values[index] for values in outputs.values()]
    return found[0].chunk(3, -1) if len(found) == 1 else found


def batch_of(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (3, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 9:], mask[2, 15:] = 0, 0
    ids = ids.masked_fill(mask == 0, 1)
    segments = (torch.arange(17) > 6).long().expand_as(ids)
    reads = ENCODER_FAMILIES[name].reads_segments
    return {"input_ids": ids, "attention_mask": mask} | (
        {"token_type_ids": segments} if reads else {}
    )


@pytest.mark.parametrize(
    ("layer", "dtype"), [(2, "float32"), (-1, "float32"), (2, "bfloat16"), (-1, "float16")]
)
@pytest.mark.parametrize("name", ENCODER_FAMILIES)
def test_signals_are_those_of_the_uncut_model(
    name: str, layer: int, dtype: str, tmp_path: Path
) -> None:
    model = make_model(name)
    model.save_pretrained(tmp_path)
    described = describe_model(str(tmp_path), teaches=True)
    assert described is not None
    assert (described.hidden_size, described.num_hidden_layers) == (32, LAYERS)
    assert (described.num_attention_heads, described.intermediate_size) == (4, 64)
    check_weights("teacher", described)
    batch = batch_of(name)
    teacher = load_teacher(str(tmp_path), relation_layer=layer, dtype=dtype)
    number = LAYERS if layer == -1 else layer
    assert (teacher.num_layers, teacher.relation_layer, teacher.layers_run) == (
        LAYERS,
        number,
        number - 1,
    )
    segments = torch.zeros_like(batch["input_ids"])
    found = teacher(
        batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids", segments)
    )
    # With the attention that the cut model has: two implementations differ in their last bits.
    uncut = type(model).from_pretrained(tmp_path, dtype=getattr(torch, dtype)).eval()
    wanted = hooked(uncut, name, number, batch)
    for signal, expected in zip(found, wanted, strict=True):
        assert signal.shape == (3, 17, 32)
        real = batch["attention_mask"].bool()
        assert torch.equal(signal[real], expected[real])


@pytest.mark.parametrize("layer", [2, -1])
@pytest.mark.parametrize("name", ENCODER_FAMILIES)
def test_last_states_stand_behind_the_signals(name: str, layer: int, tmp_path: Path) -> None:
    model, batch = make_model(name), batch_of(name)
    model.save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path), relation_layer=layer, with_states=True)
    number = LAYERS if layer == -1 else layer
    assert (teacher.relation_layer, teacher.layers_run) == (number, number)
    inputs = (batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids"))
    for _ in range(2):  # what one pass heard is forgotten by the next
        *signals, states = teacher(*inputs)
    alone = load_teacher(str(tmp_path), relation_layer=layer)
    real = batch["attention_mask"].bool()
    for signal, expected in zip(signals, alone(*inputs), strict=True):
        torch.testing.assert_close(signal[real], expected[real])
    if layer == -1:
        with torch.no_grad():
            whole = type(model).from_pretrained(tmp_path).eval()(**batch).last_hidden_state
        assert torch.equal(states[real], whole[real])
    else:
        assert states.shape == (3, 17, 32)
        assert not torch.allclose(states[real], teacher_states(tmp_path, inputs)[real], atol=1e-3)


def teacher_states(folder: Path, inputs: tuple) -> torch.Tensor:
    return load_teacher(str(folder), with_states=True)(*inputs)[-1]


RENAMED = {name: family.stored for name, family in ENCODER_FAMILIES.items() if family.stored}


def save_as(naming: str, name: str, folder: Path) -> Any:
    """Saves a model as transformers does, or under other names; returns it."""
    model = make_model(name)
    model.save_pretrained(folder)
    weights = load_file(folder / WEIGHTS)
    assert weights.keys().isdisjoint(key for key in model.state_dict() if "self_attn" in key)
    if naming == "the model's":
        weights = {key: value.clone() for key, value in model.state_dict().items()}
    elif naming == "beside a head":
        prefix = ENCODER_FAMILIES[name].prefixes[-1]
        weights = {prefix + key: value for key, value in weights.items()}
        weights["classifier.weight"] = torch.zeros(2, 32)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    return model


@pytest.mark.parametrize("naming", ["the checkpoint's", "the model's", "beside a head"])
@pytest.mark.parametrize("name", RENAMED)
def test_weights_of_other_names_are_found_and_read_in_slices(
    name: str, naming: str, tmp_path: Path
) -> None:
    model = save_as(naming, name, tmp_path)
    described = describe_model(str(tmp_path), teaches=True)
    assert described is not None
    check_weights("teacher", described)
    check_weights("teacher", described, 2, whole=False)
    folder = str(tmp_path)
    weights, parameters = open_weights(folder, folder, model), dict(model.named_parameters())
    weights.check(name, {key: value.shape for key, value in parameters.items()})
    for key, value in parameters.items():
        for dim in range(value.dim()):
            start = value.shape[dim] // 2
            piece = torch.empty_like(value.narrow(dim, start, value.shape[dim] - start))
            weights.copy_into(piece, key, dim, start)
            assert torch.equal(piece, value.narrow(dim, start, value.shape[dim] - start))


@pytest.mark.parametrize("has_head", [False, True])
@pytest.mark.parametrize("name", [*RENAMED, "bert", "mpnet", "albert", "modernbert"])
def test_maps_of_the_layers_that_are_not_read_are_refused(
    name: str, has_head: bool, tmp_path: Path
) -> None:
    model = make_model(name)
    if has_head:
        model = AutoModelForSequenceClassification.from_config(model.config)
    model.save_pretrained(tmp_path)
    weights, folder = load_file(tmp_path / WEIGHTS), str(tmp_path)
    (first, *_) = (key for key in weights if "layer" in key and key.endswith(".weight"))
    place = first.rpartition(".")[0]
    # Of a head, and beyond what is read: nothing of either is misread.
    weights["head.layers.0.weight"] = torch.ones(3)
    if name != "albert":
        weights[place.replace(".0.", ".2.") + "_more.weight"] = torch.ones(3)
        weights[place.replace(".0.", ".0.crossattention.") + "_more.weight"] = torch.ones(3)
    save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
    load_teacher(folder, relation_layer=2)
    unfilled_teacher(folder, relation_layer=2)
    weights[place + "_more.bias"] = torch.ones(3)
    save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
    for load in (load_teacher, unfilled_teacher):
        with pytest.raises(UserError, match=f"1 weights are of no {name} encoder and would not"):
            load(folder, relation_layer=2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ENCODER_FAMILIES)
def test_what_no_checkpoint_holds_is_the_same_however_weights_are_read(
    name: str, dtype: str, tmp_path: Path
) -> None:
    make_model(name).save_pretrained(tmp_path)
    whole = load_teacher(str(tmp_path), dtype=dtype)
    pieces = unfilled_teacher(str(tmp_path), dtype=dtype).teacher
    wanted = dict(whole.named_buffers())
    assert dict(pieces.named_buffers()).keys() == wanted.keys()
    for key, buffer in pieces.named_buffers():
        assert buffer.dtype == wanted[key].dtype, key
        assert torch.equal(buffer, wanted[key]), key
    types = {key: value.dtype for key, value in whole.named_parameters()}
    assert {key: value.dtype for key, value in pieces.named_parameters()} == types


@pytest.mark.parametrize("name", RENAMED)
def test_joined_maps_of_another_size_are_refused(name: str, tmp_path: Path) -> None:
    model = save_as("the checkpoint's", name, tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    key = next(key for key in weights if key.endswith(("qkv_proj.weight", "Wqkv.weight")))
    weights[key] = weights[key][:-3].clone()
    save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
    described = describe_model(str(tmp_path), teaches=True)
    assert described is not None
    with pytest.raises(UserError, match=r"kv.*\.weight is \[93, 32\], config\.json says \[96"):
        check_weights("teacher", described)
    folder = str(tmp_path)
    with pytest.raises(UserError, match=r"3 weights .* have another shape than config\.json says"):
        open_weights(folder, folder, model).check(
            name, {key: value.shape for key, value in model.named_parameters()}
        )


@pytest.mark.parametrize("name", ENCODER_FAMILIES)
def test_a_student_of_each_family_reads_its_ids(name: str, tmp_path: Path) -> None:
    base = base_of_students(make_model(name).config)
    config = student_config(
        base, layers=1, hidden=16, heads=2, experts=(1, 2), num_relation_heads=2
    )
    assert config.family == ENCODER_FAMILIES[name].student
    assert (config.vocab_size, config.pad_token_id) == (VOCABULARY, 1)
    batch = batch_of(name)
    student = build_student(config, 1).eval()
    output = student(batch["input_ids"], attention_mask=batch["attention_mask"])
    assert all(torch.isfinite(signal).all() for signal in output.signals)
