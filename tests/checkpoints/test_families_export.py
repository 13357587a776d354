"""Exports of each family load with plain transformers and say the same; published layouts too."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM

from minimoe_dist.checkpoints.export import export_student, load_student
from minimoe_dist.checkpoints.published import load_published, save_published
from minimoe_dist.models.build import build_student
from minimoe_dist.models.configuration import FAMILIES
from minimoe_dist.models.mlm_head import MiniMoeForRelationsAndMaskedLM
from minimoe_dist.models.moebert import MiniMoeForRelations
from minimoe_dist.models.tinybert import MiniMoeForStates
from tests.families import ENCODERS, PADDING, padded_batch, student_options


def make_student(family, experts=(1, 1), model_class=MiniMoeForRelations, **changes):
    types = {"type_vocab_size": 1} if family == "roberta" else {}
    config = student_options(family, experts, **{"intermediate_size": 96, **types, **changes})
    student = build_student(config, seed=0, model_class=model_class).eval()
    for name, parameter in student.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return student


def inputs(family):
    ids, mask, segments = padded_batch(PADDING[family])
    given = {"input_ids": ids, "attention_mask": mask}
    return given if family == "roberta" else {**given, "token_type_ids": segments}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_student_is_exported_as_transformers_own_class(tmp_path, family) -> None:
    student, batch = make_student(family), inputs(family)
    export_student(student.config, student.state_dict(), tmp_path / "out")
    plain = AutoModel.from_pretrained(tmp_path / "out")
    assert type(plain) is ENCODERS[family]
    ours, theirs = (m(**batch).last_hidden_state for m in (student.bert, plain))
    mask = batch["attention_mask"]
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_students_masked_lm_head_is_exported_with_it(tmp_path, family) -> None:
    student, batch = (
        make_student(family, model_class=MiniMoeForRelationsAndMaskedLM),
        inputs(family),
    )
    export_student(student.config, student.state_dict(), tmp_path / "out")
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    mask = batch["attention_mask"]
    hidden = student.bert(**batch).last_hidden_state[mask]
    weight = student.get_input_embeddings().weight
    ours = student.cls["predictions"](hidden, weight)
    torch.testing.assert_close(ours, plain(**batch).logits[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_with_experts_comes_back_the_same(tmp_path, family) -> None:
    student, batch = make_student(family, (2, 4)), inputs(family)
    export_student(student.config, student.state_dict(), tmp_path / "out")
    again = load_student(tmp_path / "out")
    assert again.config.family == family
    assert all(map(torch.equal, again(**batch).signals, student(**batch).signals))


def test_a_masked_lm_head_on_experts_comes_back(tmp_path) -> None:
    student, batch = make_student("bert", (1, 4), MiniMoeForRelationsAndMaskedLM), inputs("bert")
    export_student(student.config, student.state_dict(), tmp_path / "out")
    again = load_student(tmp_path / "out")
    assert type(again) is MiniMoeForRelationsAndMaskedLM
    labels = batch["input_ids"]
    assert torch.equal(
        again(labels=labels, **batch).masked_lm_sum, student(labels=labels, **batch).masked_lm_sum
    )


@pytest.mark.parametrize("experts", [(1, 1), (1, 4)])
def test_tinyberts_map_is_left_out(tmp_path, experts) -> None:
    student = make_student("bert", experts, MiniMoeForStates, teacher_hidden_size=32)
    student.config.relation_projections = False
    export_student(student.config, student.state_dict(), tmp_path / "out")
    encoder, batch = AutoModel.from_pretrained(tmp_path / "out"), inputs("bert")
    mask = batch["attention_mask"]
    ours, theirs = (m(**batch).last_hidden_state[mask] for m in (student.bert, encoder))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("experts", [(1, 1), (1, 4)])
def test_the_map_of_last_states_is_left_out(tmp_path, experts) -> None:
    student = make_student("bert", experts, state_width=32)
    export_student(student.config, student.state_dict(), tmp_path / "out")
    again, batch = load_student(tmp_path / "out"), inputs("bert")
    assert again.state_map is None and again.config.state_width is None
    assert student.config.state_width == 32
    ours, theirs = student(**batch), again(**batch)
    assert theirs.last_states is None and ours.last_states.shape[-1] == 32
    assert all(map(torch.equal, ours.signals, theirs.signals))


@pytest.mark.slow
def test_exports_with_experts_load_where_this_package_is_not(tmp_path) -> None:
    families = ["roberta", "megatron-bert"]
    for family in families:
        student, batch = make_student(family, (2, 4)), inputs(family)
        export_student(student.config, student.state_dict(), tmp_path / family)
        given = (batch, student.bert(**batch).last_hidden_state)
        torch.save(given, tmp_path / f"{family}.pt")
    code = (
        "import sys; sys.modules['minimoe_dist'] = None\n"
        "import torch\nfrom transformers import AutoModel\n"
        "for path in sys.argv[1:]:\n"
        "    model = AutoModel.from_pretrained(path, trust_remote_code=True)\n"
        "    batch, hidden = torch.load(path + '.pt')\n"
        "    torch.testing.assert_close(model(**batch).last_hidden_state, hidden, msg=path)\n"
    )
    paths = [str(tmp_path / family) for family in families]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("experts", [(1, 1), (2, 4)])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_class", [MiniMoeForRelations, MiniMoeForRelationsAndMaskedLM])
def test_a_student_comes_back_from_the_published_layout(
    tmp_path, family, experts, model_class
) -> None:
    changes = {"route_padding": experts != (1, 1), "with_pooler": True}
    student = make_student(family, experts, model_class, **changes)
    save_published(student, tmp_path / "out")
    again = load_published(tmp_path / "out")
    assert type(again) is model_class
    assert again.config.family == family
    ours, theirs = student.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_published_head_has_its_tied_decoder(tmp_path) -> None:
    from safetensors.torch import load_file

    student = make_student("roberta", model_class=MiniMoeForRelationsAndMaskedLM)
    save_published(student, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    embeddings = state["roberta.embeddings.word_embeddings.weight"]
    assert torch.equal(state["lm_head.decoder.weight"], embeddings)
    assert torch.equal(state["lm_head.decoder.bias"], state["lm_head.bias"])
