import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertModel

from minimoe_dist.config.schema import SparsifyConfig
from minimoe_dist.models.auto import AutoModel
from minimoe_dist.models.elastic import ElasticForRelations, ElasticModel
from minimoe_dist.models.elastic_build import elastic_config
from minimoe_dist.models.elastic_configuration import ElasticConfig
from minimoe_dist.models.elastic_surgery import (
    cut,
    element_orders,
    is_plain_bert,
    plain_bert,
    reorder,
)
from minimoe_dist.models.submodels import once_for_all_map
from minimoe_dist.objectives.relations import relation_loss_sum
from tests.golden import TOLERANCE, load_golden, part
from tests.models.elastic_models import (
    SIZES,
    SPARSE_MAP,
    batch,
    elastic,
    kept_places,
    random_orders,
)

# The decoder is the word embeddings.
UNUSED = (
    "bert.recover_indices",
    "bert.embeddings.position_ids",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
)


def once_for_all(**options):
    model = elastic(**options)
    model.config.sparsity_map = once_for_all_map(model.config.sizes, [3, 2, 1], [32, 24, 16])
    return model


def golden_model(name, model_class, **options):
    config, tensors = load_golden(name)
    config = elastic_config(BertConfig(**config), with_pooler=True, **options)
    model = model_class(config)
    state = {
        key.replace("self.", "relation.", 1) if key.startswith("self.") else key: value
        for key, value in part(tensors, "w.").items()
        if key not in UNUSED
    }
    with_head = hasattr(model, "cls")
    model.load_state_dict({k: v for k, v in state.items() if with_head or "cls." not in k})
    inputs = {
        key: tensors[f"in.{key}"] for key in ("input_ids", "attention_mask", "token_type_ids")
    }
    return model.eval(), tensors, inputs


def reordered_golden_model():
    from tests.models.test_submodels import published_map

    model, tensors, inputs = golden_model(
        "sparsebert", ElasticForRelations, sparsity_map=published_map(), relation_projections=False
    )
    importances = [tensors[f"out.{kind}_importance"] for kind in ("head", "neuron", "hidden")]
    reorder(model, element_orders(type(random_orders())(*importances)))
    return model, tensors, inputs


def test_reordered_weights_are_the_published_ones():
    model, tensors, _ = reordered_golden_model()
    expected = part(tensors, "reordered.")
    assert expected["bert.recover_indices"].tolist() == model.config.recover_indices
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("sparsity", ["0", "50", "90"])
def test_sparse_sub_models_give_the_published_hidden_states(sparsity):
    model, tensors, inputs = reordered_golden_model()
    real = inputs["attention_mask"].bool()
    for hidden in (
        model.bert(**inputs, sparsity=sparsity).last_hidden_state,
        cut(model, sparsity).bert(**inputs).last_hidden_state,
    ):
        assert_close(hidden[real], tensors[f"out.hidden.{sparsity}"][real], **TOLERANCE)


@pytest.mark.parametrize("sparsity", [str(sparsity) for sparsity in SparsifyConfig().sparsities])
def test_every_sparsity_of_the_published_map_can_be_cut_out(sparsity):
    model, _, inputs = reordered_golden_model()
    in_place = model.bert(**inputs, sparsity=sparsity).last_hidden_state
    alone = cut(model, sparsity).bert(**inputs).last_hidden_state
    assert_close(alone, in_place, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparsity", ["0", "50", "90"])
def test_sparse_sub_models_have_the_published_number_of_parameters(sparsity):
    model, tensors, _ = reordered_golden_model()
    count = sum(parameter.numel() for parameter in cut(model, sparsity).parameters())
    assert count == tensors[f"out.params.{sparsity}"].item()


def test_once_for_all_sub_models_give_the_published_hidden_states_and_losses():
    config, _ = load_golden("ofabert")
    model, tensors, inputs = golden_model(
        "ofabert",
        ElasticForRelations,
        sparsity_map=config["sparsity_map"],
        keep_missing_layers=True,
    )
    real = inputs["attention_mask"].bool()
    assert len(config["sparsity_map"]) == 9
    outputs = model(**inputs, sparsities=list(config["sparsity_map"]))
    for name, output in zip(config["sparsity_map"], outputs, strict=True):
        hidden = model.bert(**inputs, sparsity=name).last_hidden_state
        assert_close(hidden[real], tensors[f"out.hidden.{name}"][real], **TOLERANCE)
        loss = relation_loss(output.signals, tensors, real, config["num_relation_heads"])
        assert_close(loss, tensors[f"out.loss.{name}"], **TOLERANCE)


def relation_loss(signals, tensors, real, heads):
    """The published loss against relations that are stored as probabilities."""
    total = torch.zeros(1)
    for signal, name in zip(signals, ("qq", "kk", "vv"), strict=True):
        split = signal.unflatten(-1, (heads, -1)).transpose(1, 2)
        scores = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
        relations = scores.masked_fill(~real[:, None, None], -torch.inf).softmax(-1)
        rows = relations[real[:, None].expand(-1, heads, -1)] + 1e-7
        teacher = tensors[f"teacher.out.{name}"] + 1e-7
        total += (teacher * (teacher.log() - rows.log())).sum(-1).mean() / 3
    return total


def test_reordering_keeps_the_function():
    model = elastic()
    before = model(**batch()).signals
    reorder(model, random_orders())
    reorder(model, random_orders())
    assert_close(model(**batch()).signals, before, rtol=1e-5, atol=1e-5)


def test_recover_indices_are_integers_in_any_precision():
    model = elastic()
    reorder(model, random_orders())
    indices = model.bert.recover_indices.clone()
    assert model.bfloat16().bert.recover_indices.dtype == torch.int64
    assert torch.equal(model.bert.recover_indices, indices)


def test_a_whole_model_is_a_bert(tmp_path):
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SIZES)).eval()
    model = ElasticModel(elastic_config(bert.config, with_pooler=True)).eval()
    model.load_state_dict(bert.state_dict())
    ours, theirs = model(**batch()), bert(**batch())
    real = batch()["attention_mask"]
    assert_close(ours.last_hidden_state[real], theirs.last_hidden_state[real])
    assert_close(ours.pooler_output, theirs.pooler_output)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sparsity", ["50", "2,16"])
def test_a_sub_model_cut_out_does_what_it_does_in_place(sparsity, training):
    model = once_for_all()
    model.config.sparsity_map |= SPARSE_MAP
    reorder(model, random_orders())
    alone = cut(model, sparsity).train(training)
    inputs = batch() | {"sample_ids": torch.arange(4)}
    in_place = model.train(training)(**inputs, sparsity=sparsity)
    assert_close(alone(**inputs).signals, in_place.signals, rtol=1e-5, atol=1e-5)


def test_an_empty_block_is_residual_and_layer_norm():
    model = elastic(sparsity_map=SPARSE_MAP)
    parts = set(cut(model, "50").bert.encoder.layer[1].attention.state_dict())
    assert parts == {"output.LayerNorm.weight", "output.LayerNorm.bias"}
    hidden = torch.randn(2, 24)
    layer = model.bert.encoder.layer[1]
    norm = layer.attention.output.LayerNorm
    expected = torch.nn.functional.layer_norm(
        hidden, (24,), norm.weight[:24], norm.bias[:24], norm.eps
    )
    run = type("Run", (), {"masks": None, "noise": None, "mask_hidden": staticmethod(lambda x: x)})
    assert torch.equal(layer.attention(hidden, 0, None, run), expected)


def test_gradients_of_sub_models_add_up_in_the_shared_weights():
    names = ["3,32", "2,24", "1,16"]

    def gradients(outputs):
        sum(signal.square().mean() for out in outputs for signal in out.signals).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    model = once_for_all(with_pooler=False)
    together = gradients(model(**batch(), sparsities=names))
    assert len(together) == len(list(model.parameters()))
    model.zero_grad()
    for name in names:
        apart = gradients([model(**batch(), sparsity=name)])
    for name, gradient in together.items():
        assert_close(apart[name], gradient, rtol=1e-5, atol=1e-6)


def test_a_sub_models_gradient_stays_in_its_own_part():
    model = once_for_all()
    model(**batch(), sparsity="1,16").signals[0].sum().backward()
    gradient = model.bert.encoder.layer[0].intermediate.dense.weight.grad
    assert gradient[:32, :16].abs().sum() > 0
    assert gradient[32:].abs().sum() == gradient[:, 16:].abs().sum() == 0
    assert model.bert.encoder.layer[1].intermediate.dense.weight.grad is None


@pytest.mark.parametrize("name", ["3,32", "3,16", "2,24", "1,16"])
@pytest.mark.parametrize("reordered", [False, True])
def test_a_once_for_all_sub_model_is_a_plain_bert_of_its_size(name, reordered):
    model = once_for_all()
    if reordered:
        reorder(model, random_orders())
    layers, hidden = map(int, name.split(","))
    bert = plain_bert(model, name)
    sizes = bert.config
    assert (sizes.num_hidden_layers, sizes.hidden_size) == (layers, hidden)
    assert (sizes.num_attention_heads, sizes.intermediate_size) == (hidden // 8, 2 * hidden)
    ours, theirs = model.bert(**batch(), sparsity=name), bert(**batch())
    places, real = kept_places(model.config, name), batch()["attention_mask"]
    assert_close(theirs.last_hidden_state[real], ours.last_hidden_state[..., places][real])
    assert_close(theirs.pooler_output, ours.pooler_output[:, places])


def test_a_sub_model_of_uneven_layers_is_no_plain_bert():
    model = elastic(sparsity_map=SPARSE_MAP)
    assert not is_plain_bert(model.config, "50")
    with pytest.raises(ValueError, match="sparsity: 50 is no plain BERT"):
        plain_bert(model, "50")


def test_kept_norms_of_missing_layers_make_no_plain_bert():
    model = once_for_all(keep_missing_layers=True)
    assert is_plain_bert(model.config, "3,16") and not is_plain_bert(model.config, "2,16")


def test_a_sub_model_is_not_to_be_had_of_a_smaller_one():
    alone = cut(once_for_all(), "2,16")
    with pytest.raises(ValueError, match="3,32 has elements that 2,16"):
        alone(**batch(), sparsity="3,32")
    assert alone(**batch(), sparsity="1,16").signals[0].shape[-1] == 32


@pytest.mark.parametrize("sparsity", ["0", "50"])
def test_a_saved_model_comes_back(tmp_path, sparsity):
    model = elastic(sparsity_map=SPARSE_MAP)
    reorder(model, random_orders())
    model = cut(model, sparsity)
    model.save_pretrained(tmp_path)
    again = ElasticForRelations.from_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again.bert.recover_indices, model.bert.recover_indices)
    assert torch.equal(again(**batch()).signals[0], model(**batch()).signals[0])
    hidden = model.bert(**batch()).last_hidden_state
    assert torch.equal(encoder(**batch()).last_hidden_state, hidden)


def test_recover_indices_that_are_no_order_are_refused():
    with pytest.raises(ValueError, match="not an order of the 32 hidden dimensions"):
        ElasticConfig(**SIZES, recover_indices=[0] * 32)


def test_other_families_are_refused():
    with pytest.raises(ValueError, match="family: roberta cannot be sliced"):
        ElasticConfig(**SIZES, family="roberta")


def test_the_relation_loss_reaches_every_weight_of_a_sparse_student():
    student = cut(elastic(sparsity_map=SPARSE_MAP, with_pooler=False), "50").train()
    teacher = tuple(torch.randn(4, 13, 16) for _ in range(3))
    inputs = batch()
    loss, _ = relation_loss_sum(student(**inputs).signals, teacher, inputs["attention_mask"], 4)
    loss.backward()
    missing = [name for name, p in student.named_parameters() if p.grad is None]
    assert missing == []
