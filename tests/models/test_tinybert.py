"""TinyBERT's student and teachers: golden numbers, transformers' own states, what is refused."""

import pytest
import torch

from minimoe_dist.models.configuration import FAMILIES, MiniMoeConfig
from minimoe_dist.models.tinybert import MiniMoeForStates, load_state_teacher, state_teacher_of
from minimoe_dist.objectives.tinybert import States, tinybert_loss_sums
from tests.families import CONFIGURATIONS, ENCODERS, SIZES, padded_batch
from tests.golden import TOLERANCE, load_golden, part


def student_of(**changes):
    options = {"feedforward_experts": 1, "relation_projections": False, "teacher_hidden_size": 24}
    torch.manual_seed(0)
    return MiniMoeForStates(MiniMoeConfig(**{**SIZES, **options, **changes})).eval()


@pytest.fixture(scope="module")
def golden():
    """Tensors, mask, and the golden student's states."""
    config, tensors = load_golden("bert_tinybert")
    sizes = {key: config[key] for key in SIZES if key in config}
    student = student_of(**sizes, teacher_hidden_size=768, with_pooler=True)
    weights = part(tensors, "w.")
    del weights["bert.embeddings.position_ids"]
    student.load_state_dict(weights)
    given = part(tensors, "in.")
    with torch.no_grad():
        return tensors, given["attention_mask"].bool(), student(**given).states


def score_rows(states, mask, heads):
    """Attention scores of real queries in the order sample, head, row; as published at padding."""
    query, key = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in states[2:])
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(torch.float32).min)
    return scores[mask[:, None, :].expand(-1, heads, -1)]


def test_states_are_the_golden_ones(golden) -> None:
    tensors, mask, states = golden
    ours = torch.stack(states[:2], dim=1)[both(mask)]
    torch.testing.assert_close(ours, tensors["out.hidden_states"], **TOLERANCE)


def test_attention_scores_are_the_golden_ones(golden) -> None:
    tensors, mask, states = golden
    torch.testing.assert_close(score_rows(states, mask, 12), tensors["out.attentions"], **TOLERANCE)


def both(mask):
    """The real rows of both states in the golden order: sample, state, position."""
    return mask[:, None].expand(-1, 2, -1)


def golden_teacher(tensors, mask, heads=12):
    """States whose scores are the golden teacher's rows: unit keys, queries of the rows."""
    length = mask.shape[1]
    scores = torch.zeros(*mask.shape, heads, length)
    rows = tensors["teacher.attentions"].masked_fill(tensors["teacher.attentions"] < -1e30, 0.0)
    scores.transpose(1, 2)[mask[:, None, :].expand(-1, heads, -1)] = rows
    keys = torch.eye(length).repeat(1, heads).expand(len(mask), -1, -1)
    hidden = torch.zeros(len(mask), 2, length, 768)
    hidden[both(mask)] = tensors["teacher.hidden_states"]
    return States(*hidden.unbind(1), scores.flatten(2) * length**0.5, keys)


def test_compat_seed_loss_is_the_golden_one(golden) -> None:
    tensors, mask, states = golden
    teacher = golden_teacher(tensors, mask)
    sums = tinybert_loss_sums(states, teacher, mask, 12, padded_length=mask.shape[1])
    torch.testing.assert_close(sums.mean()[None], tensors["out.loss"], **TOLERANCE)
    # Beside the scores' error the states' would hide in the tolerance.
    difference = tensors["out.hidden_states"] - tensors["teacher.hidden_states"]
    states_error = sums.states / sums.counts.states
    torch.testing.assert_close(states_error, difference.square().mean(), **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teachers_states_are_transformers_own(tmp_path, family) -> None:
    torch.manual_seed(0)
    model = ENCODERS[family](CONFIGURATIONS[family](**SIZES), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    ids, mask, segments = padded_batch(model.config.pad_token_id)
    types = {} if family == "roberta" else {"token_type_ids": segments}
    with torch.no_grad():
        hidden = model(ids, attention_mask=mask, output_hidden_states=True, **types)
        model.set_attn_implementation("eager") if family != "megatron-bert" else None
        attentions = model(ids, attention_mask=mask, output_attentions=True, **types).attentions
    states = load_state_teacher(str(tmp_path))(ids, mask, segments)
    assert torch.equal(states.embeddings, hidden.hidden_states[0])
    assert torch.equal(states.hidden, hidden.last_hidden_state)
    probabilities = score_rows(states, mask, 4).softmax(-1)
    wanted = attentions[-1][mask[:, None, :].expand(-1, 4, -1)]
    torch.testing.assert_close(probabilities, wanted)


@pytest.mark.parametrize("experts", [(1, 1), (2, 4)])
def test_a_student_can_teach_states(experts) -> None:
    student = student_of(attention_experts=experts[0], feedforward_experts=experts[1])
    ids, mask, segments = padded_batch()
    with torch.no_grad():
        wanted = student.bert(ids, mask, segments, output_states=True)
    states = state_teacher_of(student.bert)(ids, mask, segments)
    assert torch.equal(states.embeddings, wanted.embedding_output)
    assert torch.equal(states.hidden, wanted.last_hidden_state)
    assert torch.equal(states.queries, wanted.queries_keys_values[0])


def test_a_teacher_is_frozen_and_stays_in_evaluation_mode() -> None:
    teacher = state_teacher_of(student_of().bert)
    teacher.train()
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("experts", [(1, 1), (2, 1), (1, 4)])
def test_every_parameter_that_leads_to_the_states_learns(experts) -> None:
    student = student_of(attention_experts=experts[0], feedforward_experts=experts[1]).train()
    teacher = state_teacher_of(student_of(hidden_size=24).bert)
    ids, mask, segments = padded_batch()
    states = student(ids, attention_mask=mask, token_type_ids=segments).states
    tinybert_loss_sums(states, teacher(ids, mask, segments), mask, 4).mean().backward()
    assert [n for n, p in student.named_parameters() if p.grad is None] == []


def test_a_student_without_the_teachers_width_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher_hidden_size: none"):
        student_of(teacher_hidden_size=None)
