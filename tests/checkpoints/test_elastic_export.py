import subprocess
import sys

import pytest
import torch
from transformers import BertModel

from minimoe_dist.checkpoints.export import export_elastic, export_student, load_student
from minimoe_dist.models.auto import AutoModel
from minimoe_dist.models.elastic import ElasticForRelations
from minimoe_dist.models.elastic_surgery import cut, reorder
from minimoe_dist.models.mlm_head import ElasticForRelationsAndMaskedLM
from tests.models.elastic_models import SPARSE_MAP, batch, elastic, kept_places, random_orders
from tests.models.test_elastic import once_for_all

REAL = batch()["attention_mask"]


def weights(model):
    """What a training checkpoint has: parameters, no buffers."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def sparse_student():
    model = elastic(sparsity_map=SPARSE_MAP)
    reorder(model, random_orders())
    return cut(model, "50")


@pytest.mark.parametrize("name", ["3,32", "2,24", "1,16"])
def test_a_plain_sub_model_is_exported_as_a_bert_that_transformers_loads(tmp_path, name):
    model = once_for_all()
    export_elastic(model, tmp_path / "out", sparsity=name)
    bert = AutoModel.from_pretrained(tmp_path / "out")
    assert type(bert) is BertModel
    expected = model.bert(**batch(), sparsity=name).last_hidden_state
    expected = expected[..., kept_places(model.config, name)]
    torch.testing.assert_close(bert(**batch()).last_hidden_state[REAL], expected[REAL])


def test_a_once_for_all_student_is_exported_whole_with_its_map(tmp_path):
    model = once_for_all()
    export_student(model.config, weights(model), tmp_path / "out")
    again = load_student(tmp_path / "out")
    assert again.config.sparsity_map == model.config.sparsity_map
    ours = again(**batch(), sparsity="2,16").signals[0]
    assert torch.equal(ours, model(**batch(), sparsity="2,16").signals[0])


def test_a_sparse_student_is_exported_as_our_class(tmp_path):
    student = sparse_student()
    export_student(student.config, weights(student), tmp_path / "out")
    again = load_student(tmp_path / "out")
    assert isinstance(again, ElasticForRelations)
    assert torch.equal(again(**batch()).signals[0], student(**batch()).signals[0])
    encoder = AutoModel.from_pretrained(tmp_path / "out")
    expected = student.bert(**batch()).last_hidden_state
    assert torch.equal(encoder(**batch()).last_hidden_state, expected)


def test_a_sparse_sub_model_is_cut_out_and_exported(tmp_path):
    model = elastic(sparsity_map=SPARSE_MAP)
    export_elastic(model, tmp_path / "out", sparsity="50")
    again = load_student(tmp_path / "out")
    assert again.config.sparsity == "50"
    expected = model(**batch(), sparsity="50").signals[0]
    torch.testing.assert_close(again(**batch()).signals[0], expected)


def test_a_student_with_a_head_keeps_it(tmp_path):
    model = elastic(
        ElasticForRelationsAndMaskedLM, sparsity_map=SPARSE_MAP, relation_projections=False
    )
    export_student(model.config, weights(model), tmp_path / "out")
    again = load_student(tmp_path / "out")
    assert isinstance(again, ElasticForRelationsAndMaskedLM)
    labels = torch.arange(52).view(4, 13) + 4
    inputs = batch() | {"labels": labels}
    assert torch.equal(again(**inputs).masked_lm_sum, model(**inputs).masked_lm_sum)


@pytest.mark.slow
def test_an_export_loads_where_this_package_is_not(tmp_path):
    export_elastic(sparse_student(), tmp_path / "out")
    code = (
        "import sys; sys.modules['minimoe_dist'] = None; import torch, transformers; "
        f"m = transformers.AutoModel.from_pretrained({str(tmp_path / 'out')!r}, "
        "trust_remote_code=True); "
        "print(type(m).__name__, tuple(m(torch.ones(1, 5).long()).last_hidden_state.shape))"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        env={"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin"},
    )
    assert run.stdout.split("\n")[0] == "ElasticModel (1, 5, 32)", run.stderr[-2000:]
