"""Counts of compute and parameters against the published figures and counted products."""

from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, MegatronBertConfig, MegatronBertModel

from minimoe_dist.models.build import build_student, student_config
from minimoe_dist.models.compute import (
    RelationPath,
    distillation_flops_per_token,
    encoder_gmac,
    relation_macs_per_token,
    sequence_gmac,
)
from minimoe_dist.models.elastic import ElasticForRelations
from minimoe_dist.models.elastic_build import once_for_all_config
from minimoe_dist.models.teacher import signals_of
from minimoe_dist.objectives.relations import relation_loss_sum
from minimoe_dist.recipes.results import describe, relation_paths


@pytest.mark.parametrize(
    ("layers", "hidden", "gmac"),
    [(3, 384, 0.68), (4, 384, 0.91), (6, 384, 1.36), (12, 768, 10.87), (24, 1024, 38.65)],
)
def test_encoder_gmac_is_the_published_figure(layers, hidden, gmac):
    assert encoder_gmac(layers, hidden) == pytest.approx(gmac, abs=0.005)


def tiny_bert(**options):
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=32,
        **options,
    )
    return BertModel(config, add_pooling_layer=False)


def test_a_forward_pass_has_the_counted_macs():
    model = tiny_bert(attn_implementation="eager")
    path = RelationPath(layers=2, hidden=24, intermediate=40)
    ids = torch.zeros(2, 16, dtype=torch.long)
    signals = signals_of(model)
    with FlopCounterMode(display=False) as counter:
        signals(ids, torch.ones_like(ids), None)
    assert counter.get_total_flops() == 2 * path.macs_per_token(16) * ids.numel()


BATCH, LENGTH = 4, 32
IDS = torch.randint(5, 50, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))


def counted(action):
    """What torch's counter says of an action, of its backward pass too."""
    # It knows baddbmm, but not its in-place form.
    in_place = {torch.ops.aten.baddbmm_: lambda _, a, b, **rest: 2 * prod(a) * b[-1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        action()
    return counter.get_total_flops()


def dense_or_experts(experts, **options):
    return student_config(
        tiny_bert().config,
        layers=3,
        hidden=24,
        heads=2,
        experts=experts,
        num_relation_heads=4,
        **options,
    )


def once_for_all():
    sizes = {"layers": 3, "hidden": 48, "heads": 6, "sub_layers": [3, 2], "sub_hidden": [48, 24]}
    config = once_for_all_config(tiny_bert().config, num_relation_heads=4, **sizes)
    config.relation_projections = True
    return config


@pytest.mark.parametrize(
    "config",
    [
        dense_or_experts((1, 1)),
        dense_or_experts((1, 1), neurons=384),
        dense_or_experts((1, 4)),
        dense_or_experts((1, 4), neurons=24),
        dense_or_experts((4, 4)),
        once_for_all(),
    ],
    ids=["dense", "wide", "1,4", "narrow experts", "4,4", "once-for-all"],
)
def test_a_students_pass_is_thrice_its_counted_forward(config):
    sliced = hasattr(config, "sparsity_map")
    student = build_student(
        config, 1, **({"model_class": ElasticForRelations} if sliced else {})
    ).train()

    def step():
        names = {"sparsities": tuple(config.sparsity_map)} if sliced else {}
        outputs = student(IDS, sample_ids=torch.arange(BATCH), **names)
        outputs = outputs if sliced else [outputs]
        sum(signal.sum() for output in outputs for signal in output.signals).backward()

    macs = sum(path.macs_per_token(LENGTH) for path in relation_paths(config))
    assert counted(step) == pytest.approx(2 * 3 * macs * IDS.numel(), rel=0.02)


def test_neurons_are_told_and_counted_where_they_are_not_the_usual_ones():
    usual, wide = dense_or_experts((1, 1)), dense_or_experts((1, 1), neurons=384)
    assert (describe(usual), describe(wide)) == ("MiniLM 3L;24H", "MiniLM 3L;24H, 384 neurons")
    assert describe(dense_or_experts((1, 4), neurons=24)) == "MiniMoE 3L;24H 1,4E, 24 neurons"
    assert sequence_gmac(usual) == encoder_gmac(3, 24)
    assert sequence_gmac(wide) == pytest.approx(3 * encoder_gmac(3, 24))


def test_a_megatron_teachers_pass_has_the_counted_macs():
    config = MegatronBertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=40, max_position_embeddings=32, attn_implementation="eager",
    )  # fmt: skip
    signals = signals_of(MegatronBertModel(config, add_pooling_layer=False))
    path = RelationPath(layers=3, hidden=24, intermediate=40)
    with torch.no_grad():
        total = counted(lambda: signals(IDS, torch.ones_like(IDS), None))
    assert total == pytest.approx(2 * path.macs_per_token(LENGTH) * IDS.numel(), rel=0.02)


def test_the_relation_loss_has_the_counted_macs():
    student = tuple(torch.randn(BATCH, LENGTH, 24, requires_grad=True) for _ in range(3))
    teacher = tuple(torch.randn(BATCH, LENGTH, 48) for _ in range(3))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    total = counted(lambda: relation_loss_sum(student, teacher, mask, 4)[0].backward())
    assert total == pytest.approx(
        2 * relation_macs_per_token(24, 48, LENGTH) * IDS.numel(), rel=0.02
    )


def test_routers_add_one_product_per_layer_and_expert():
    plain, routed = (RelationPath(3, 24, 96, router_outputs=e) for e in (0, 6))
    assert routed.macs_per_token(16) - plain.macs_per_token(16) == 3 * 24 * 6


def test_distillation_counts_each_student_thrice_the_teacher_once_and_the_relations():
    teacher, student = RelationPath(11, 768, 3072), RelationPath(3, 384, 1536)
    relations = 3 * 128 * (768 + 3 * 384)
    expected = teacher.macs_per_token(128) + 2 * (3 * student.macs_per_token(128) + relations)
    assert distillation_flops_per_token([student, student], teacher, 128) == 2 * expected
