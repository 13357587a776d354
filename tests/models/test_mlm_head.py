"""The masked-LM head against transformers' models: keys, losses, gradients, what is refused."""

import pytest
import torch

from minimoe_dist.checkpoints.published.layout import parameter_name
from minimoe_dist.models.build import build_student
from minimoe_dist.models.configuration import FAMILIES, MiniMoeConfig
from minimoe_dist.models.mlm_head import MiniMoeForRelationsAndMaskedLM
from tests.families import CONFIGURATIONS, MASKED_LMS, SIZES, padded_batch, student_options

WITHOUT_DROPOUT = {**SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def plain_model(family="bert"):
    torch.manual_seed(0)
    model = MASKED_LMS[family](CONFIGURATIONS[family](**WITHOUT_DROPOUT))
    biases = (p for n, p in model.named_parameters() if n.endswith("bias"))
    with torch.no_grad():
        for bias in biases:
            bias.normal_()
    return model


def student_like(plain):
    """A dense student with a transformers model's weights, its head too."""
    options = plain.config.to_dict()
    sizes = {
        k: options[k]
        for k in [*WITHOUT_DROPOUT, "layer_norm_eps", "type_vocab_size", "pad_token_id"]
    }
    config = MiniMoeConfig(
        **sizes,
        family=plain.config.model_type,
        feedforward_experts=1,
        relation_projections=False,
    )
    student = MiniMoeForRelationsAndMaskedLM(config)
    state = {parameter_name(name): value for name, value in plain.state_dict().items()}
    student.load_state_dict({name: state[name] for name in student.state_dict()})
    return student


def masked(padding):
    """A batch, its mask, and a third of its tokens as labels."""
    ids, mask, _ = padded_batch(padding, 12)
    chosen = (torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.3) & mask
    return ids, mask, torch.where(chosen, ids, -100)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_transformers_own(family) -> None:
    plain = plain_model(family)
    student = student_like(plain)
    ids, mask, labels = masked(plain.config.pad_token_id)
    ours = student(ids, labels=labels, attention_mask=mask)
    theirs = plain(ids, attention_mask=mask, labels=labels).loss
    assert ours.predicted == int((labels != -100).sum())
    torch.testing.assert_close(ours.masked_lm_sum / ours.predicted, theirs, rtol=1e-6, atol=1e-6)
    (ours.masked_lm_sum / ours.predicted).backward()
    theirs.backward()
    wanted = dict(getattr(plain, plain.base_model_prefix).named_parameters())
    for name, parameter in student.bert.named_parameters():
        gradient = wanted[name].grad
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    head = student.cls["predictions"]
    bias = plain.lm_head.bias if family == "roberta" else plain.cls.predictions.bias
    torch.testing.assert_close(head.bias.grad, bias.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_rows_logits_are_transformers_own(family) -> None:
    plain = plain_model(family).eval()
    student = student_like(plain).eval()
    ids, mask, _ = masked(plain.config.pad_token_id)
    with torch.no_grad():
        hidden = student.bert(ids, mask).last_hidden_state[mask]
        weight = student.get_input_embeddings().weight
        ours = student.cls["predictions"](hidden, weight)
        theirs = plain(ids, attention_mask=mask).logits[mask]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_students_keys_are_those_of_berts_model() -> None:
    ours = student_of((1, 1)).state_dict()
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert set(ours) == set(plain_model().state_dict()) - tied


def student_of(experts):
    config = student_options("bert", experts)
    return build_student(config, seed=0, model_class=MiniMoeForRelationsAndMaskedLM)


@pytest.mark.parametrize("experts", [(1, 1), (2, 4)])
def test_signals_are_those_of_the_student_without_a_head(experts) -> None:
    student = student_of(experts).eval()
    ids, mask, labels = masked(0)
    output = student(ids, labels=labels, attention_mask=mask)
    alone = student(ids, attention_mask=mask)
    assert all(map(torch.equal, output.signals, alone.signals))
    assert len(output.routers) == len(alone.routers)
    assert student(ids, labels=labels, compares=False, attention_mask=mask).signals is None


@pytest.mark.parametrize("experts", [(1, 1), (2, 4)])
def test_a_batch_without_labels_has_no_loss_and_zero_gradients(experts) -> None:
    student = student_of(experts)
    ids, mask, labels = masked(0)
    output = student(ids, labels=torch.full_like(labels, -100), attention_mask=mask)
    assert (output.masked_lm_sum.item(), output.predicted) == (0.0, 0)
    output.masked_lm_sum.backward()
    for name, parameter in student.named_parameters():
        if not name.startswith("relation."):
            assert torch.count_nonzero(parameter.grad) == 0, name
