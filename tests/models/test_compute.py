"""Counts of compute and parameters against the published figures and counted products."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from minimoe_dist.models.compute import (
    RelationPath,
    count_parameters,
    distillation_flops_per_token,
    encoder_gmac,
)
from minimoe_dist.models.teacher import signals_of


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


def test_routers_add_one_product_per_layer_and_expert():
    plain, routed = (RelationPath(3, 24, 96, router_outputs=e) for e in (0, 6))
    assert routed.macs_per_token(16) - plain.macs_per_token(16) == 3 * 24 * 6


def test_distillation_counts_each_student_thrice_the_teacher_once_and_the_relations():
    teacher, student = RelationPath(11, 768, 3072), RelationPath(3, 384, 1536)
    relations = 3 * 128 * (768 + 3 * 384)
    expected = teacher.macs_per_token(128) + 2 * (3 * student.macs_per_token(128) + relations)
    assert distillation_flops_per_token([student, student], teacher, 128) == 2 * expected


def test_shared_parameters_count_once():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 20


def test_frozen_parameters_are_left_out_of_trainable_ones():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[0].requires_grad_(False)
    assert count_parameters(model, trainable_only=True) == 20


def test_parameters_split_by_zero3_count_whole():
    model = torch.nn.Linear(4, 4, bias=False)
    model.weight = torch.nn.Parameter(torch.empty(0))
    model.weight.ds_numel = 16
    assert count_parameters(model) == 16
