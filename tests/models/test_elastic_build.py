import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
)

from minimoe_dist.models.elastic import ElasticForRelations
from minimoe_dist.models.elastic_build import (
    elastic_config,
    load_masked_lm,
    once_for_all_config,
    sparse_student,
)
from minimoe_dist.models.mlm_head import ElasticForRelationsAndMaskedLM
from tests.models.elastic_models import SIZES, SPARSE_MAP, batch, elastic
from tests.models.test_importance import labels


def save_bert(folder, model_class=BertForMaskedLM):
    torch.manual_seed(0)
    model = model_class(BertConfig(**SIZES)).eval()
    model.save_pretrained(folder)
    return model


def test_a_bert_with_its_head_predicts_as_before(tmp_path):
    bert = save_bert(tmp_path)
    ours = load_masked_lm(str(tmp_path))(**batch(), labels=labels())
    theirs = bert(**batch(), labels=labels()).loss
    torch.testing.assert_close(ours.masked_lm_sum / ours.predicted, theirs)


@pytest.mark.parametrize("has_pooler", [False, True])
def test_a_pooler_stays_where_there_is_one(tmp_path, has_pooler):
    with_head = save_bert(tmp_path, BertForPreTraining if has_pooler else BertForMaskedLM)
    ours = load_masked_lm(str(tmp_path))
    theirs = with_head.double().bert(**batch()).pooler_output
    pooled = ours.double().bert(**batch()).pooler_output
    assert ours.config.with_pooler is has_pooler
    assert pooled is None if theirs is None else torch.allclose(pooled, theirs, atol=1e-6)


def test_a_sliceable_folder_is_read_too(tmp_path):
    model = sparsified()
    model.save_pretrained(tmp_path)
    again = load_masked_lm(str(tmp_path))
    assert again.config.sparsity_map == SPARSE_MAP
    inputs = batch() | {"labels": labels()}
    assert torch.equal(again(**inputs).masked_lm_sum, model(**inputs).masked_lm_sum)


def test_a_checkpoint_without_a_head_is_refused(tmp_path):
    save_bert(tmp_path, BertModel)
    with pytest.raises(ValueError, match="it has no masked-LM head"):
        load_masked_lm(str(tmp_path))


def test_missing_weights_are_refused(tmp_path):
    bert = save_bert(tmp_path)
    bert.config.num_hidden_layers = 4
    bert.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="16 weights are missing"):
        load_masked_lm(str(tmp_path))


def sparsified():
    return elastic(
        ElasticForRelationsAndMaskedLM, sparsity_map=SPARSE_MAP, relation_projections=False
    )


def start(whole, sparsity="50", heads=4, seed=1, model_class=ElasticForRelations):
    return sparse_student(
        whole, sparsity, num_relation_heads=heads, seed=seed, model_class=model_class
    )


def test_a_sparse_student_starts_as_the_sub_model_with_fresh_projections():
    whole = sparsified()
    student = start(whole)
    expected = whole.bert(**batch(), sparsity="50").last_hidden_state
    torch.testing.assert_close(student.bert(**batch()).last_hidden_state, expected)
    assert student.config.sparsity == "50"
    assert [tuple(p.shape) for p in student.relation.parameters()] == [(32, 32), (32,)] * 3


def test_a_sparse_student_of_masked_lm_keeps_the_head():
    whole = sparsified()
    student = start(whole, model_class=ElasticForRelationsAndMaskedLM)
    inputs = batch() | {"labels": labels()}
    expected = whole(**inputs, sparsity="50").masked_lm_sum
    torch.testing.assert_close(student(**inputs).masked_lm_sum, expected)


def test_a_sparse_student_is_a_function_of_its_seed():
    whole = sparsified()
    weights = [start(whole, seed=seed).relation.query.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_sparsity_outside_the_map_is_refused():
    with pytest.raises(ValueError, match="sparsity: 90 is not in the model's map; it has: 0 50"):
        start(sparsified(), "90")


def once_for_all(**options):
    return once_for_all_config(
        BertConfig(**SIZES),
        layers=6,
        hidden=48,
        heads=6,
        sub_layers=[6, 3],
        sub_hidden=[48, 24],
        num_relation_heads=8,
        **options,
    )


def test_a_once_for_all_student_has_a_map_of_all_its_sub_models():
    config = once_for_all()
    assert list(config.sparsity_map) == ["6,48", "6,24", "3,48", "3,24"]
    assert (config.intermediate_size, config.vocab_size) == (192, 60)


@pytest.mark.parametrize("compat_seed", [False, True])
def test_compat_seed_keeps_the_norms_of_missing_layers(compat_seed):
    shape = once_for_all(compat_seed=compat_seed).shape("3,24")
    assert shape.layers[5].missing is not compat_seed


def test_a_whole_configuration_takes_over_a_berts_sizes():
    config = elastic_config(BertConfig(**SIZES))
    assert all(getattr(config, name) == value for name, value in SIZES.items())
    assert isinstance(ElasticForRelations(config).relation.query.weight, torch.Tensor)
