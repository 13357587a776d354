import pytest
import torch
from torch.testing import assert_close

from minimoe_dist.models.elastic import ElementValues
from minimoe_dist.models.elastic_surgery import cut, reorder
from minimoe_dist.models.importance import ImportanceMeter, mask_gradient
from minimoe_dist.models.mlm_head import ElasticForRelationsAndMaskedLM
from tests.golden import TOLERANCE
from tests.models.elastic_models import SPARSE_MAP, batch, elastic, random_orders
from tests.models.test_elastic import golden_model


def masked_lm(**options):
    return elastic(ElasticForRelationsAndMaskedLM, relation_projections=False, **options)


def labels(seed=3):
    torch.manual_seed(seed)
    ids = torch.randint(4, 60, (4, 13))
    wanted = (torch.rand(4, 13) < 0.3) & batch()["attention_mask"]
    wanted[:, 0] = True
    return ids.masked_fill(~wanted, -100)


def golden_masked_lm():
    """The published model with its head, and its masked batch."""
    options = {"relation_projections": False}
    model, tensors, inputs = golden_model("sparsebert", ElasticForRelationsAndMaskedLM, **options)
    wanted = torch.full_like(inputs["input_ids"], -100)
    chosen = tensors["in.mlm_mask"].bool()
    rows = torch.arange(len(wanted))[:, None].expand_as(chosen)[chosen]
    wanted[rows, tensors["in.mlm_positions"][chosen]] = tensors["in.mlm_labels"][chosen]
    return model, tensors, inputs | {"input_ids": tensors["in.mlm_input_ids"], "labels": wanted}


def test_masked_lm_loss_is_the_published_one():
    model, tensors, inputs = golden_masked_lm()
    output = model(**inputs)
    assert_close(
        (output.masked_lm_sum / output.predicted)[None], tensors["out.mlm_loss"], **TOLERANCE
    )


@pytest.mark.parametrize("kind", ["heads", "neurons", "hidden"])
def test_importances_are_the_published_ones(kind):
    model, tensors, inputs = golden_masked_lm()
    meter = ImportanceMeter(model.config.sizes)
    meter.add(mask_gradient(model, **inputs))
    ours = meter.importances()._asdict()[kind]
    assert_close(ours, tensors[f"out.{kind.removesuffix('s')}_importance"], **TOLERANCE)


def test_gradients_by_masks_are_slopes_of_the_loss():
    model = masked_lm().double()
    inputs = batch() | {"labels": labels()}
    gradient = mask_gradient(model, **inputs)[1:]
    sizes = model.config.sizes

    def loss(kind, place, change):
        masks = [torch.ones(shape).double() for shape in ((3, 4), (3, 64), (32,))]
        masks[kind].view(-1)[place] += change
        with torch.no_grad():
            return model(**inputs, masks=ElementValues(*masks)).masked_lm_sum

    starts = [0, 12, 12 + 192]
    for kind, place in ((0, 5), (1, 70), (2, 9)):
        slope = (loss(kind, place, 1e-4) - loss(kind, place, -1e-4)) / 2e-4
        assert_close(gradient[starts[kind] + place].double(), slope, rtol=1e-4, atol=1e-6)
    assert len(gradient) == 12 + 192 + sizes.hidden


def test_no_weight_gets_a_gradient():
    model = masked_lm()
    mask_gradient(model, **batch(), labels=labels())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_spread_over_ranks_counts_like_the_whole_batch():
    model = masked_lm()
    whole, spread = ImportanceMeter(model.config.sizes), ImportanceMeter(model.config.sizes)
    inputs = batch() | {"labels": labels()}
    whole.add(mask_gradient(model, **inputs))
    shares = [{key: value[part] for key, value in inputs.items()} for part in ([0, 1], [2, 3])]
    spread.add(sum(mask_gradient(model, **share) for share in shares))
    for ours, theirs in zip(spread.importances(), whole.importances(), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_importances_have_unit_norm_per_layer():
    model = masked_lm()
    meter = ImportanceMeter(model.config.sizes)
    for seed in range(2):
        meter.add(mask_gradient(model, **batch(), labels=labels(seed)))
    heads, neurons, hidden = meter.importances()
    norms = torch.cat([heads.norm(dim=-1), neurons.norm(dim=-1), hidden.norm(dim=-1)[None]])
    assert_close(norms, torch.ones(7))


def test_a_meter_goes_on_from_its_state():
    model = masked_lm()
    gradients = [mask_gradient(model, **batch(), labels=labels(seed)) for seed in range(3)]
    unbroken, first, second = (ImportanceMeter(model.config.sizes) for _ in range(3))
    for gradient in gradients:
        unbroken.add(gradient)
    first.add(gradients[0])
    second.load_state_dict(first.state_dict())
    for gradient in gradients[1:]:
        second.add(gradient)
    assert second.batches == 3
    assert all(map(torch.equal, second.importances(), unbroken.importances()))


def test_a_state_of_another_model_is_refused():
    meter = ImportanceMeter(masked_lm().config.sizes)
    state = {"sums": torch.zeros(7), "batches": torch.tensor(1)}
    with pytest.raises(ValueError, match="saved of 7 elements, but the model has 236"):
        meter.load_state_dict(state)


def test_batches_without_a_masked_token_are_left_out():
    model = masked_lm()
    meter = ImportanceMeter(model.config.sizes)
    meter.add(mask_gradient(model, **batch(), labels=torch.full((4, 13), -100)))
    with pytest.raises(ValueError, match="no batch had a masked token"):
        meter.importances()


def test_reordering_keeps_the_predictions():
    model = masked_lm()
    before = model(**batch(), labels=labels()).masked_lm_sum
    reorder(model, random_orders())
    assert_close(model(**batch(), labels=labels()).masked_lm_sum, before, rtol=1e-5, atol=1e-5)


def test_a_sub_model_predicts_like_it_does_in_place():
    model = masked_lm(sparsity_map=SPARSE_MAP)
    reorder(model, random_orders())
    in_place = model(**batch(), labels=labels(), sparsity="50").masked_lm_sum
    alone = cut(model, "50")(**batch(), labels=labels()).masked_lm_sum
    assert_close(alone, in_place, rtol=1e-5, atol=1e-5)
