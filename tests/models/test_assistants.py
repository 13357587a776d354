"""Students as teachers: a teacher assistant's export gives the signals that it was trained to."""

import json

import pytest
import torch

from minimoe_dist.checkpoints.export import export_elastic, export_student
from minimoe_dist.checkpoints.published import load_published, save_published
from minimoe_dist.models.build import build_student, student_config
from minimoe_dist.models.configuration import FAMILIES
from minimoe_dist.models.elastic import ElasticForRelations
from minimoe_dist.models.elastic_configuration import ElasticConfig
from minimoe_dist.models.teacher import load_teacher, teacher_of
from tests.families import PADDING, SIZES, padded_batch, student_options


def make_assistant(experts=(1, 4), family="bert", **changes):
    return build_student(student_options(family, experts, **changes), seed=0).eval()


def signals_of_real_tokens(signals):
    return torch.stack(list(signals))[:, padded_batch()[1]]


def own_signals(student):
    ids, mask, segments = padded_batch()
    output = student(ids, attention_mask=mask, token_type_ids=segments)
    return signals_of_real_tokens(output.signals)


@pytest.mark.parametrize("experts", [(1, 1), (1, 4), (2, 1), (2, 4)])
def test_an_exported_assistant_teaches_what_it_learnt(tmp_path, experts) -> None:
    assistant = make_assistant(experts)
    export_student(assistant.config, assistant.state_dict(), tmp_path / "assistant")
    teacher = load_teacher(str(tmp_path / "assistant"))
    given = signals_of_real_tokens(teacher(*padded_batch()))
    torch.testing.assert_close(given, own_signals(assistant))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_plain_assistant_of_each_family_teaches(tmp_path, family) -> None:
    types = 1 if family == "roberta" else 2
    assistant = make_assistant((1, 1), family, type_vocab_size=types)
    export_student(assistant.config, assistant.state_dict(), tmp_path / "assistant")
    ids, mask, segments = padded_batch(PADDING[family])
    given = load_teacher(str(tmp_path / "assistant"))(ids, mask, segments)
    wanted = assistant(ids, attention_mask=mask, token_type_ids=segments).signals
    for ours, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-5, atol=1e-5)


def test_a_sliceable_assistant_teaches(tmp_path) -> None:
    assistant = build_student(
        ElasticConfig(**SIZES, num_relation_heads=4), 0, model_class=ElasticForRelations
    ).eval()
    export_elastic(assistant, tmp_path / "assistant")
    given = signals_of_real_tokens(load_teacher(str(tmp_path / "assistant"))(*padded_batch()))
    torch.testing.assert_close(given, own_signals(assistant))


def test_a_published_assistant_teaches_once_it_is_loaded(tmp_path) -> None:
    assistant = make_assistant((2, 4))
    save_published(assistant, tmp_path)
    given = signals_of_real_tokens(teacher_of(load_published(tmp_path))(*padded_batch()))
    torch.testing.assert_close(given, own_signals(assistant))


def test_a_published_folder_with_experts_is_no_plain_teacher(tmp_path) -> None:
    save_published(make_assistant((1, 4)), tmp_path)
    message = r"published student \(moe 1,4, sparsity 0\), which is no plain bert; convert it"
    with pytest.raises(ValueError, match=message):
        load_teacher(str(tmp_path))


def test_an_assistant_in_bfloat16_is_close(tmp_path) -> None:
    assistant = make_assistant((1, 4), initializer_range=0.02)
    export_student(assistant.config, assistant.state_dict(), tmp_path / "assistant")
    teacher = load_teacher(str(tmp_path / "assistant"), dtype="bfloat16")
    given, wanted = signals_of_real_tokens(teacher(*padded_batch())), own_signals(assistant)
    assert given.dtype == torch.bfloat16
    assert (given.float() - wanted).norm() < 0.05 * wanted.norm()


def test_an_assistant_makes_no_noise_and_no_gradient() -> None:
    teacher = teacher_of(make_assistant((2, 4))).train()
    first, again = teacher(*padded_batch()), teacher(*padded_batch())
    assert all(map(torch.equal, first, again))
    assert not any(signal.requires_grad for signal in first)


@pytest.mark.parametrize(("experts", "layers_run"), [((1, 1), 1), ((1, 4), 2)])
def test_relation_projections_stand_behind_all_layers(experts, layers_run) -> None:
    teacher = teacher_of(make_assistant(experts))
    assert (teacher.relation_layer, teacher.layers_run) == (2, layers_run)


@pytest.mark.parametrize("experts", [(1, 1), (1, 4), (2, 4)])
def test_an_assistants_last_states_are_its_encoders(experts) -> None:
    assistant = make_assistant(experts)
    ids, mask, segments = padded_batch()
    *signals, states = teacher_of(assistant, with_states=True)(ids, mask, segments)
    assert all(map(torch.equal, signals, teacher_of(assistant)(ids, mask, segments)))
    encoded = assistant.bert(ids, attention_mask=mask, token_type_ids=segments)
    assert torch.equal(states, encoded.last_hidden_state)


def test_missing_weights_of_an_assistant_are_refused(tmp_path) -> None:
    assistant = make_assistant((1, 4))
    export_student(assistant.config, assistant.state_dict(), tmp_path / "assistant")
    path = tmp_path / "assistant" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="weights of a minimoe encoder are missing"):
        load_teacher(str(tmp_path / "assistant"))


def test_a_chain_hands_the_teachers_vocabulary_and_family_on(tmp_path) -> None:
    assistant = make_assistant((1, 4), "roberta")
    export_student(assistant.config, assistant.state_dict(), tmp_path / "assistant")
    base = load_teacher(str(tmp_path / "assistant")).config
    config = student_config(
        base, layers=1, hidden=24, heads=4, experts=(1, 2), num_relation_heads=4
    )
    assert (config.family, config.vocab_size, config.pad_token_id) == ("roberta", 60, 1)
