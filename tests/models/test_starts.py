"""How experts start: split, random, or copied from a trained plain student."""

import copy

import pytest
import torch
from transformers import BertConfig, RobertaConfig

from minimoe_dist.models.build import build_student, fresh_probability, student_config
from minimoe_dist.models.configuration import FAMILIES, MiniMoeConfig
from minimoe_dist.models.experts import ExpertLinear, Router
from minimoe_dist.models.mlm_head import MiniMoeForRelationsAndMaskedLM

SIZES = {
    "vocab_size": 100,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 384,
    "max_position_embeddings": 40,
    "num_relation_heads": 8,
    "layer_norm_eps": 1e-5,
}


def config_of(experts=(1, 1), **changes):
    options = {
        "attention_experts": experts[0],
        "feedforward_experts": experts[1],
        "relation_projections": experts != (1, 1),
    }
    return MiniMoeConfig(**{**SIZES, **options, **changes})


def trained(family="bert", layers=2, last_layer=False):
    """A plain student as relation distillation leaves it: of its last layer Q, K, V have learnt."""
    dense = build_student(config_of(family=family, num_hidden_layers=layers), seed=1)
    generator = torch.Generator().manual_seed(2)
    last = f"layer.{layers - 1}."
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            learnt = last not in name or ".self." in name or "attention.ln" in name
            if learnt or last_layer:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
                if name.endswith(("LayerNorm.weight", "ln.weight")):
                    parameter *= 0.4
    return dense.eval()


@pytest.fixture(scope="module")
def dense():
    return trained()


def experts_of(student):
    return {n: m for n, m in student.named_modules() if isinstance(m, ExpertLinear)}


def inputs():
    mask = torch.arange(16) < torch.tensor([16, 9, 12])[:, None]
    ids = torch.randint(4, 100, mask.shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": mask}


def test_the_split_of_a_random_block_is_the_default() -> None:
    config = config_of((2, 4))
    ours, theirs = build_student(config, 3), build_student(config, 3, start="split")
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_random_experts_share_nothing() -> None:
    for layer in experts_of(build_student(config_of((2, 4)), 0, start="random")).values():
        flat = layer.weight.flatten(1)
        assert not any((flat[0] == other).any() for other in flat[1:])
        assert flat.std().item() == pytest.approx(0.02, rel=0.05)
        assert torch.count_nonzero(layer.bias) == 0


def test_random_experts_are_a_function_of_the_seed() -> None:
    make = lambda seed: build_student(config_of((1, 4)), seed, start="random").state_dict()  # noqa: E731
    first, again, other = make(3), make(3), make(4)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("start", ["split", "random"])
def test_starts_differ_in_experts_only(start) -> None:
    split, other = (build_student(config_of((2, 4)), 0, start=s) for s in ("split", start))
    experts = tuple(experts_of(split))
    for name, value in split.state_dict().items():
        if not name.startswith(experts):
            assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("experts", [(1, 4), (2, 1), (2, 4)])
def test_copies_without_noise_are_the_plain_block(dense, experts) -> None:
    student = build_student(config_of(experts), 0, start="copies", dense=dense, copy_noise=0.0)
    plain = dense.state_dict()
    assert experts_of(student)
    for name, layer in experts_of(student).items():
        scale = 1.0 if layer.split_axis == 0 else fresh_probability(layer.num_experts, 0.25)
        for expert in range(layer.num_experts):
            torch.testing.assert_close(layer.weight[expert] * scale, plain[f"{name}.weight"])
            torch.testing.assert_close(layer.bias[expert] * scale, plain[f"{name}.bias"])


def test_noise_parts_the_copies_in_proportion_to_their_weights(dense) -> None:
    student = build_student(config_of((2, 4)), 0, start="copies", dense=dense, copy_noise=0.01)
    for name, layer in experts_of(student).items():
        scale = 1.0 if layer.split_axis == 0 else fresh_probability(layer.num_experts, 0.25)
        plain = dense.get_submodule(name).weight
        noise = (layer.weight * scale - plain) / plain.std()
        assert noise.std().item() == pytest.approx(0.01, rel=0.05)
        assert not torch.equal(layer.weight[0], layer.weight[1])


def test_what_has_no_experts_is_copied_and_routers_are_fresh(dense) -> None:
    config = config_of((2, 4))
    student = build_student(config, 0, start="copies", dense=dense)
    fresh = build_student(config, 0)
    plain = dense.state_dict()
    for name, module in student.named_modules():
        if isinstance(module, Router):
            assert torch.equal(module.weight, 0.25 * fresh.get_submodule(name).weight)
            assert torch.equal(module.bias, 0.25 * fresh.get_submodule(name).bias)
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.0.output.LayerNorm.bias"):
        assert torch.equal(student.state_dict()[f"bert.{name}"], plain[f"bert.{name}"])


def test_a_fresh_routers_choice_is_as_probable_as_copies_assume() -> None:
    router = Router(384, 4, 0.0, 0)
    bound = 384**-0.5
    torch.nn.init.uniform_(router.weight, -bound, bound)
    torch.nn.init.uniform_(router.bias, -bound, bound)
    tokens = torch.nn.functional.layer_norm(torch.randn(4000, 384), (384,))
    for scale in (1.0, 0.25):
        scaled = copy.deepcopy(router)
        with torch.no_grad():
            scaled.weight *= scale
            scaled.bias *= scale
        probability = scaled(tokens, None).probability
        wanted = fresh_probability(4, scale)
        assert probability.mean().item() == pytest.approx(wanted, rel=0.1)
    assert probability.std() < 0.1 * wanted


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_copies_begin_with_signals_close_to_the_plain_students(family, layers) -> None:
    dense, batch = trained(family, layers), inputs()
    config = config_of((1, 4), family=family, num_hidden_layers=layers)
    student = build_student(config, 0, start="copies", dense=dense).eval()
    with torch.no_grad():
        ours, theirs = (
            torch.stack(one(**batch).signals)[:, batch["attention_mask"]]
            for one in (student, dense)
        )
    # Without any of: copied maps, settled norms, scaled experts, it is 0.4 to 1.5.
    assert (ours - theirs).norm() < 0.35 * theirs.norm()


def test_copies_that_read_the_last_layers_own_maps_begin_as_the_plain_student() -> None:
    dense, batch = trained(last_layer=True), inputs()
    config = config_of((1, 4), num_hidden_layers=2, relation_projections=False)
    student = build_student(config, 0, start="copies", dense=dense, copy_noise=0.0).eval()
    mask = batch["attention_mask"]
    with torch.no_grad():
        for one, other in zip(student(**batch).signals, dense(**batch).signals, strict=True):
            assert (one - other)[mask].norm() < 0.1 * other[mask].norm()
        ours, theirs = (one.bert(**batch).last_hidden_state[mask] for one in (student, dense))
    assert (ours - theirs).norm() < 0.1 * theirs.norm()


@pytest.mark.parametrize("family", ["bert", "megatron-bert"])
def test_maps_are_not_put_behind_a_last_layer_that_learnt_all_of_its_weights(family) -> None:
    dense, batch = trained(family, last_layer=True), inputs()
    config = config_of((2, 4), family=family)
    options = {"start": "copies", "dense": dense, "copy_noise": 0.0, "fits_maps": False}
    student = build_student(config, 0, **options).eval()
    fresh = build_student(config, 0)
    assert torch.equal(student.relation.query.weight, fresh.relation.query.weight)
    mask = batch["attention_mask"]
    with torch.no_grad():
        ours, theirs = (one.bert(**batch).last_hidden_state[mask] for one in (student, dense))
    assert (ours - theirs).norm() < 0.1 * theirs.norm()


def test_norms_of_a_last_layer_that_was_trained_stay_as_they_are() -> None:
    dense = trained(last_layer=True)
    student = build_student(config_of((1, 4)), 0, start="copies", dense=dense)
    name = "bert.encoder.layer.1.output.LayerNorm.weight"
    assert torch.equal(student.state_dict()[name], dense.state_dict()[name])


def test_copies_work_for_every_class_of_student(dense) -> None:
    config = config_of((1, 4))
    student = build_student(
        config, 0, start="copies", dense=dense, model_class=MiniMoeForRelationsAndMaskedLM
    )
    name = "bert.embeddings.word_embeddings.weight"
    assert type(student) is MiniMoeForRelationsAndMaskedLM
    assert torch.equal(student.state_dict()[name], dense.state_dict()[name])


def test_a_students_family_is_its_bases() -> None:
    sizes = {"layers": 2, "hidden": 96, "heads": 12, "experts": (1, 4), "num_relation_heads": 8}
    roberta = student_config(RobertaConfig(), **sizes)
    assert (roberta.family, roberta.pad_token_id, roberta.type_vocab_size) == ("roberta", 1, 2)
    assert (roberta.bos_token_id, roberta.eos_token_id) == (0, 2)
    assert student_config(roberta, **sizes).family == "roberta"
    assert student_config(BertConfig(), **sizes).family == "bert"
