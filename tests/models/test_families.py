"""Students of each family against transformers' own classes and the published implementation."""

import pytest
import torch

from minimoe_dist.models.build import build_student
from minimoe_dist.models.configuration import FAMILIES, MiniMoeConfig, family_of
from minimoe_dist.models.packing import Packing
from tests.families import CONFIGURATIONS, ENCODERS, PADDING, SIZES, padded_batch, student_options
from tests.golden import TOLERANCE, load_golden, part

MIXTURES = [(1, 1), (1, 4), (2, 1), (2, 4)]


def make_student(family, experts=(1, 1), **changes):
    return build_student(student_options(family, experts, **changes), seed=0)


def inputs(family, length=12):
    ids, mask, segments = padded_batch(PADDING[family], length)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def relations(signal, mask, heads=8):
    """Rows of real queries in the order sample, head, row; 1e-7 added, as published."""
    split = signal.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
    rows = scores.masked_fill(~mask[:, None, None, :], -1e9).softmax(-1) + 1e-7
    return rows[mask[:, None, :].expand(-1, heads, -1)]


@pytest.mark.parametrize("name", ["bert_minilm", "roberta_minilm", "megatronbert_minilm"])
def test_relations_and_hidden_states_are_the_golden_ones(name) -> None:
    published, tensors = load_golden(name)
    sizes = {k: v for k, v in published.items() if k != "model_type"}
    student = make_student(published["model_type"], **sizes, with_pooler=True).eval()
    weights = {k.replace("roberta.", "bert."): v for k, v in part(tensors, "w.").items()}
    del weights["bert.embeddings.position_ids"]
    student.load_state_dict(weights)
    given = part(tensors, "in.")
    mask = given["attention_mask"].bool()
    with torch.no_grad():
        signals, hidden = student(**given).signals, student.bert(**given).last_hidden_state
    for signal, key in zip(signals, ("qq", "kk", "vv"), strict=True):
        torch.testing.assert_close(relations(signal, mask), tensors[f"out.{key}"], **TOLERANCE)
    if "out.hidden" in tensors:
        torch.testing.assert_close(hidden[mask], tensors["out.hidden"][mask], **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_student_has_the_keys_and_outputs_of_transformers_class(family) -> None:
    config_class, model_class = CONFIGURATIONS[family], ENCODERS[family]
    torch.manual_seed(3)
    plain = model_class(config_class(**SIZES)).eval()
    student = make_student(
        family,
        with_pooler=True,
        layer_norm_eps=plain.config.layer_norm_eps,
        type_vocab_size=plain.config.type_vocab_size,
    ).eval()
    student.bert.load_state_dict(plain.state_dict())
    batch = inputs(family)
    known = {k: v for k, v in batch.items() if family != "roberta" or k != "token_type_ids"}
    with torch.no_grad():
        ours, theirs = student.bert(**batch), plain(**known)
    mask = batch["attention_mask"]
    torch.testing.assert_close(ours.last_hidden_state[mask], theirs.last_hidden_state[mask])
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_dense_student_begins_like_transformers_class(family) -> None:
    config_class, model_class = CONFIGURATIONS[family], ENCODERS[family]
    sizes = {**SIZES, "hidden_size": 96, "initializer_range": 0.02, "vocab_size": 2000}
    plain = dict(model_class(config_class(**sizes)).named_parameters())
    types = plain["embeddings.token_type_embeddings.weight"].shape[0]
    student = make_student(family, **{**sizes, "with_pooler": True, "type_vocab_size": types}).bert
    for name, value in student.named_parameters():
        assert value.shape == plain[name].shape
        if value.numel() > 1000 or not name.endswith("weight"):
            spread = plain[name].detach().std(correction=0)
            torch.testing.assert_close(value.detach().std(correction=0), spread, rtol=0.1, atol=0.0)


@pytest.mark.parametrize("experts", MIXTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_samples_signals_do_not_depend_on_its_padding(family, experts) -> None:
    student, batch = make_student(family, experts).eval(), inputs(family)
    together = torch.stack(student(**batch).signals)
    for row, length in enumerate([12, 5, 7]):
        alone = {k: v[row : row + 1, :length] for k, v in batch.items()}
        cut = torch.stack(student(**alone).signals)
        torch.testing.assert_close(cut[:, 0], together[:, row, :length], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("experts", MIXTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_router_and_expert_learns(family, experts) -> None:
    student, batch = make_student(family, experts).train(), inputs(family)
    hidden = student.bert(**batch).last_hidden_state
    (hidden * torch.randn(hidden.shape)).sum().backward()
    idle = {n for n, p in student.bert.named_parameters() if p.grad is None}
    assert idle == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_states_cost_nothing_unless_asked_for(family) -> None:
    student, batch = make_student(family).eval(), inputs(family)
    plain, asked = student.bert(**batch), student.bert(**batch, output_states=True)
    assert plain.embedding_output is None and plain.queries_keys_values is None
    assert torch.equal(plain.last_hidden_state, asked.last_hidden_state)
    for ours, theirs in zip(asked.queries_keys_values, student(**batch).signals, strict=True):
        assert torch.equal(ours, theirs)


def test_robertas_family_does_not_read_segments() -> None:
    student, batch = make_student("roberta", type_vocab_size=1).eval(), inputs("roberta")
    given = student(**batch).signals
    del batch["token_type_ids"]
    assert all(map(torch.equal, given, student(**batch).signals))


def test_robertas_positions_leave_room_up_to_the_padding_id() -> None:
    student = make_student("roberta").eval()
    student(torch.full((1, 18), 5))
    with pytest.raises(IndexError):
        student(torch.full((1, 19), 5))


def test_a_pre_layernorm_router_reads_what_its_experts_read() -> None:
    layer = make_student("megatron-bert", (1, 4)).eval().bert.encoder.layer[0]
    seen = []
    layer.ffn_gate.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    tokens = 7.0 * torch.randn(5, 24)
    layer._feed_forward(tokens, Packing(torch.ones(1, 5).bool(), False), None)
    assert torch.equal(seen[0], layer.ln(tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_of_a_configuration_is_its_type(family) -> None:
    assert family_of(CONFIGURATIONS[family]()) == family
    assert family_of(MiniMoeConfig(family=family)) == family
