"""Fresh students: sizes from a recipe's words, weights from (configuration, seed) alone."""

import math

import pytest
import torch
from transformers import BertConfig

from minimoe_dist.models.build import build_student, student_config
from minimoe_dist.models.configuration import MiniMoeConfig
from minimoe_dist.models.experts import ExpertLinear, Router

BASE = BertConfig(
    vocab_size=100, max_position_embeddings=40, layer_norm_eps=1e-5, hidden_act="relu"
)
SIZES = {"layers": 2, "hidden": 96, "heads": 12, "experts": (2, 4), "num_relation_heads": 8}


def fresh(seed=0, **changes):
    return build_student(student_config(BASE, **{**SIZES, **changes}), seed)


@pytest.fixture(scope="module")
def student():
    return fresh()


def modules_of(student, kind):
    return [module for module in student.modules() if isinstance(module, kind)]


def test_a_student_is_a_function_of_its_configuration_and_seed() -> None:
    first = fresh(seed=3).state_dict()
    torch.randn(7)  # somebody else's use of the generator
    second = fresh(seed=3).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_another_student(student) -> None:
    other = fresh(seed=1).state_dict()
    same = [n for n, value in student.state_dict().items() if torch.equal(value, other[n])]
    # Only what begins as a constant.
    assert all(name.endswith(("bias", "LayerNorm.weight")) for name in same)


def test_building_leaves_torchs_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    fresh(seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_thirds_of_every_experts_elements_are_copies_of_the_first_ones(student) -> None:
    layers = modules_of(student, ExpertLinear)
    assert len(layers) == 2 * 6
    for layer in layers:
        by_element = layer.weight.movedim(1 + layer.split_axis, 1).detach()
        by_element = by_element.unflatten(1, (-1, layer.element_size)).flatten(2)
        same = (by_element == by_element[:1]).all(-1)
        count = same.shape[1]
        assert same[1:].sum(1).tolist() == [2 * count // 3] * (layer.num_experts - 1)
        assert same[1:, : 2 * count // 3].all()


def test_every_expert_has_the_plain_students_sizes(student) -> None:
    layer = student.bert.encoder.layer[0]
    assert layer.attention.self.query.weight.shape == (2, 96, 96)
    assert layer.attention.output.dense.weight.shape == (2, 96, 96)
    assert layer.intermediate.dense.weight.shape == (4, 384, 96)
    assert layer.output.dense.weight.shape == (4, 96, 384)
    assert layer.num_heads == 12


def test_weights_have_berts_spread(student) -> None:
    for name, value in student.named_parameters():
        if name.endswith("weight") and "LayerNorm" not in name and "gate" not in name:
            assert value.std().item() == pytest.approx(0.02, rel=0.1), name


def test_routers_begin_uniform_within_one_over_the_root_of_the_width(student) -> None:
    bound = 1 / math.sqrt(96)
    routers = modules_of(student, Router)
    assert len(routers) == 4
    weights = torch.cat([router.weight.flatten() for router in routers])
    biases = torch.cat([router.bias for router in routers])
    for values in (weights, biases):
        assert values.abs().max() <= bound
        assert torch.count_nonzero(values) == len(values)
    assert weights.abs().max() > 0.99 * bound
    assert weights.var().item() == pytest.approx(bound**2 / 3, rel=0.1)


def test_biases_and_norms_begin_neutral(student) -> None:
    for name, value in student.named_parameters():
        if name.endswith("bias") and "gate" not in name:
            assert torch.count_nonzero(value) == 0, name
        if name.endswith("LayerNorm.weight"):
            assert torch.all(value == 1), name


def test_what_a_recipe_does_not_say_comes_from_the_base() -> None:
    config = student_config(BASE, **SIZES)
    assert (config.vocab_size, config.max_position_embeddings) == (100, 40)
    assert (config.layer_norm_eps, config.hidden_act) == (1e-5, "relu")


@pytest.mark.parametrize(("experts", "projections"), [((1, 1), False), ((1, 4), True)])
def test_students_with_experts_project_their_final_states(experts, projections) -> None:
    config = student_config(BASE, **{**SIZES, "experts": experts})
    assert config.relation_projections is projections
    assert config.is_dense is not projections
    assert config.intermediate_size == 384


@pytest.mark.parametrize(
    ("experts", "compat", "routed"),
    [((1, 4), False, False), ((1, 4), True, True), ((1, 1), True, False)],
)
def test_padding_is_routed_by_experts_under_compat_seed_only(experts, compat, routed) -> None:
    options = {**SIZES, "experts": experts, "compat_seed": compat}
    assert student_config(BASE, **options).route_padding is routed


def test_a_dense_student_has_exactly_berts_parameters() -> None:
    from transformers import BertModel

    config = student_config(BASE, **{**SIZES, "experts": (1, 1)})
    names = {
        n.removeprefix("bert."): p.shape for n, p in build_student(config, 0).named_parameters()
    }
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 384}
    plain = BertModel(BertConfig(**{**BASE.to_dict(), **sizes}), add_pooling_layer=False)
    assert names == {name: parameter.shape for name, parameter in plain.named_parameters()}


def test_a_configuration_survives_its_json() -> None:
    config = student_config(BASE, **SIZES, router_noise=0.3, compat_seed=True)
    again = MiniMoeConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert (again.attention_experts, again.feedforward_experts) == (2, 4)
    assert again.router_noise == 0.3 and again.route_padding
