"""Sharded teachers on gloo ranks: signals of the replicated one, a share of its memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    MegatronBertConfig,
    MegatronBertModel,
    RobertaConfig,
    RobertaModel,
)

from minimoe_dist.models.teacher import load_teacher
from minimoe_dist.train.teacher_sharding import held_bytes, load_sharded_teacher
from tests.distributed import run_distributed

SIZES = {
    "vocab_size": 61,  # no size divides it
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "bert": (BertConfig, BertModel),
    "roberta": (RobertaConfig, RobertaModel),
    "megatron-bert": (MegatronBertConfig, MegatronBertModel),
}


def save_encoder(folder: Path, family: str = "bert", *, shard_size: str = "1GB", **sizes: int) -> str:
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES | sizes))
    model.save_pretrained(folder, max_shard_size=shard_size)
    return str(folder)


def batch_of(rank: int, call: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and segments of a rank: each rank has other numbers of samples and positions."""
    generator = torch.Generator().manual_seed(10 * rank + call)
    samples, length = 1 + (rank + call) % 3, 5 + 3 * ((rank + 2 * call) % 4)
    lengths = torch.randint(1, length + 1, (samples, 1), generator=generator)
    mask = torch.arange(length) < lengths
    ids = torch.randint(4, SIZES["vocab_size"], mask.shape, generator=generator)
    return ids.masked_fill(~mask, 0), mask, (ids % 2) * mask


def largest_difference(folder: str, options: dict[str, Any], relation_layer: int = -1) -> float:
    """Between a sharded teacher and the replicated one, over two calls on this rank's batches."""
    both = {"relation_layer": relation_layer, "dtype": options.pop("dtype", "float32")}
    sharded = load_sharded_teacher(folder, **options, **both)
    whole = load_teacher(folder, **both)
    worst = 0.0
    for call in range(2):
        inputs = batch_of(dist.get_rank(), call)
        for ours, theirs in zip(sharded(*inputs), whole(*inputs), strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            worst = max(worst, float((ours - theirs)[inputs[1]].abs().max()))
    return worst


LAYOUTS = ("zero3", "tensor")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_signals_are_the_replicated_teachers_on_two_ranks(
    layout: str, family: str, tmp_path: Path
) -> None:
    folder = save_encoder(tmp_path, family)
    assert max(run_distributed(largest_difference, 2, folder, {"layout": layout})) < 1e-5
