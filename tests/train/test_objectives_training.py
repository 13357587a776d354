"""Masked-LM and TinyBERT students under DeepSpeed: the same training in every layout."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from minimoe_dist.models.build import build_student
from minimoe_dist.models.mlm_head import MiniMoeForRelationsAndMaskedLM
from minimoe_dist.models.tinybert import MiniMoeForStates, StateTeacher, state_teacher_of
from minimoe_dist.objectives.relations import relation_loss_sum
from minimoe_dist.objectives.tinybert import tinybert_loss_sums
from minimoe_dist.train.engine import StudentEngine
from tests.distributed import run_distributed
from tests.train import runs
from tests.train.runs import Layout

STEPS = 4
CLASSES = {
    "mlm": MiniMoeForRelationsAndMaskedLM,
    "mlm and relations": MiniMoeForRelationsAndMaskedLM,
    "tinybert": MiniMoeForStates,
}


def state_teacher() -> StateTeacher:
    config = runs.student_options((1, 1), hidden_size=32, relation_projections=False)
    return state_teacher_of(build_student(config, 9))


def loss_of(kind: str, student: StudentEngine, micro, teachers) -> Tensor:
    ids, mask = micro.input_ids, micro.attention_mask
    inputs = {"input_ids": ids, "attention_mask": mask, "sample_ids": micro.sample_ids}
    if kind == "tinybert":
        states = student(**inputs).states
        sums = tinybert_loss_sums(states, teachers["states"](ids, mask), mask, 4)
        return sums.states / 100 + sums.scores / 100
    labels = torch.where(mask & (ids % 5 == 0), ids, -100)
    compares = kind != "mlm"
    output = student(**inputs, labels=labels, compares=compares)
    if not compares:
        return output.masked_lm_sum
    signals = teachers["relations"](ids, None, None)
    return output.masked_lm_sum + relation_loss_sum(output.signals, signals, mask, 4)[0]


def train(kind: str, moe: tuple[int, int], family: str, layout: Layout):
    """Losses of the steps, and the weights behind them."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    config = runs.student_options(
        moe,
        dropout=0.1,
        family=family,
        teacher_hidden_size=32,
        max_position_embeddings=runs.LENGTH + 1,
        relation_projections=kind == "mlm and relations" and moe != (1, 1),
    )
    model = build_student(config, runs.SEED, model_class=CLASSES[kind])
    settings, device = runs.settings_of(layout, ranks), torch.device("cpu")
    experts = layout.expert_parallel_size
    student = StudentEngine("s", model, settings, runs.OPTIMIZER, experts, device)
    teachers, losses = {"states": state_teacher(), "relations": runs.RandomTeacher()}, []
    for step in range(STEPS):
        micro_batches = runs.make_batch(step, layout, rank, ranks).micro_batches
        for index, micro in enumerate(micro_batches):
            student.module.train()
            # The engine averages over ranks and micro-batches; this makes it a sum.
            loss = loss_of(kind, student, micro, teachers) * (ranks * len(micro_batches) / 1000)
            student.backward(loss)
            if index == len(micro_batches) - 1:
                student.step(1e-3)
            total = loss.detach() / ranks
            dist.all_reduce(total)
            losses.append(total.item())
    return losses, student.whole_weights()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "moe", "family", "layout"),
    [
        ("mlm", (1, 1), "bert", Layout(zero_stage=3)),
        ("mlm", (1, 4), "roberta", Layout(zero_stage=1, expert_parallel_size=2)),
        ("mlm and relations", (1, 1), "megatron-bert", Layout(zero_stage=3)),
        ("tinybert", (1, 4), "bert", Layout(zero_stage=0, expert_parallel_size=2)),
    ],
)
def test_training_is_the_same_in_every_layout(kind, moe, family, layout) -> None:
    losses, weights = run_distributed(train, 1, kind, moe, family, Layout(zero_stage=1))[0]
    spread, spread_weights = run_distributed(train, 2, kind, moe, family, layout)[0]
    assert losses[-1] != losses[0]
    torch.testing.assert_close(spread, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(spread_weights, weights, rtol=1e-4, atol=2e-5)
