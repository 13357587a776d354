"""Sliceable students under DeepSpeed: the same training on any number of ranks and ZeRO stage."""

import pytest
import torch
import torch.distributed as dist

from minimoe_dist.models.elastic import ElasticForRelations
from minimoe_dist.models.elastic_configuration import ElasticConfig
from minimoe_dist.models.elastic_surgery import cut
from minimoe_dist.models.submodels import once_for_all_map
from minimoe_dist.objectives.relations import relation_loss_sum
from minimoe_dist.train.engine import StudentEngine
from tests.distributed import run_distributed
from tests.train import runs
from tests.train.runs import Layout

STEPS = 4
SUB_MODELS = ("2,32", "2,16", "1,16")
SPARSE = {
    "90": {"head": {"0": 4, "1": 2}, "neuron": {"0": 32, "1": 64}, "hidden": {"-1": 16}},
}


def make_student(kind: str) -> ElasticForRelations:
    config = ElasticConfig(
        vocab_size=runs.VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=runs.LENGTH,
        num_relation_heads=runs.RELATION_HEADS,
    )
    torch.manual_seed(0)
    if kind == "sparse":
        config.sparsity_map = SPARSE
        return cut(ElasticForRelations(config), "90")
    config.sparsity_map = once_for_all_map(config.sizes, [2, 1], [32, 16])
    return ElasticForRelations(config)


def train(kind: str, layout: Layout):
    """Losses of the steps, and the weights behind them."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    settings, device = runs.settings_of(layout, ranks), torch.device("cpu")
    student = StudentEngine("s", make_student(kind), settings, runs.OPTIMIZER, 1, device)
    teacher, losses = runs.RandomTeacher(), []
    for step in range(STEPS):
        batch = runs.make_batch(step, layout, rank, ranks)
        for index, micro in enumerate(batch.micro_batches):
            student.module.train()
            inputs = {
                "input_ids": micro.input_ids,
                "attention_mask": micro.attention_mask,
                "sample_ids": micro.sample_ids,
            }
            if kind == "once-for-all":
                outputs = student(**inputs, sparsities=SUB_MODELS)
            else:
                outputs = (student(**inputs),)
            signals, mask = teacher(micro.input_ids, None, None), micro.attention_mask
            sums = [
                relation_loss_sum(output.signals, signals, mask, runs.RELATION_HEADS)[0]
                for output in outputs
            ]
            # The engine averages over ranks and micro-batches; this makes it a sum.
            loss = torch.stack(sums).mean() * ranks * layout.accumulation / 1000
            student.backward(loss)
            if index == len(batch.micro_batches) - 1:
                student.step(1e-3)
            total = loss.detach() / ranks
            dist.all_reduce(total)
            losses.append(total.item())
    return losses, student.whole_weights()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "stage"), [("sparse", 1), ("once-for-all", 3)])
def test_training_is_the_same_in_every_layout(kind, stage):
    losses, weights = run_distributed(train, 1, kind, Layout(zero_stage=1))[0]
    spread, spread_weights = run_distributed(train, 2, kind, Layout(zero_stage=stage))[0]
    assert losses[-1] != losses[0]
    torch.testing.assert_close(spread, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(spread_weights, weights, rtol=1e-4, atol=1e-5)
