"""megatron-core's own BertModel teaches: the signals of transformers' model, by another program."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import MegatronBertConfig, MegatronBertModel

from minimoe_dist.checkpoints.megatron.converting import to_megatron
from minimoe_dist.checkpoints.megatron.writing import Target
from minimoe_dist.models.teacher import load_teacher
from minimoe_dist.train.megatron_teacher import load_megatron_teacher
from minimoe_dist.train.teacher_sharding import held_bytes
from tests.commands import support
from tests.distributed import run_distributed
from tests.train.test_teacher_sharding import SIZES, batch_of

LAYERS = SIZES["num_hidden_layers"]


def save_encoder(folder: Path, **sizes: Any) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MegatronBertModel(MegatronBertConfig(**SIZES | sizes))
        for parameter in model.parameters():  # biases and norms of some effect
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    return str(folder)


def differences(folder: str, size: int, layer: int, dtype: str) -> tuple[float, float]:
    """The largest from transformers' model, and the share of the weights that a rank holds."""
    shared: dict[str, Any] = {"relation_layer": layer, "dtype": dtype}
    ours = load_megatron_teacher(folder, parallel_size=size, **shared)
    theirs = load_teacher(folder, **shared)
    worst = 0.0
    for call in range(2):
        ids, mask, segments = batch_of(dist.get_rank(), call)
        for segments_given in (segments, None):
            pairs = zip(ours(ids, mask, segments_given), theirs(ids, mask, segments_given),
                        strict=True)  # fmt: skip
            for mine, other in pairs:
                assert mine.shape == other.shape and mine.dtype == other.dtype
                assert mine.isfinite().all()
                worst = max(worst, float((mine - other)[mask].abs().max()))
    return worst, held_bytes(ours) / held_bytes(theirs)


@pytest.mark.parametrize("ranks, size", [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_its_signals_are_those_of_transformers(ranks: int, size: int, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "teacher")
    for worst, share in run_distributed(differences, ranks, folder, size, -1, "float32"):
        assert worst < 1e-4
        assert share < 1.01 if size == 1 else share < 0.75


@pytest.mark.parametrize(
    ("layer", "dtype", "sizes", "nearness"),
    [
        (1, "float32", {}, 1e-4),
        (LAYERS - 1, "float32", {}, 1e-4),
        (-1, "float32", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}, 1e-4),
        (-1, "float32", {"type_vocab_size": 3, "intermediate_size": 40}, 1e-4),
        (-1, "bfloat16", {}, 0.2),
    ],
)
def test_of_any_layer_size_and_precision(
    layer: int, dtype: str, sizes: dict[str, Any], nearness: float, tmp_path: Path
) -> None:
    folder = save_encoder(tmp_path / "teacher", **sizes)
    for worst, _ in run_distributed(differences, 2, folder, 2, layer, dtype):
        assert worst < nearness


@pytest.mark.parametrize("split", [(1, 1), (2, 1), (1, 2), (4, 1)])
def test_a_checkpoint_of_any_split_is_read_by_ranks_of_another(
    split: tuple[int, int], tmp_path: Path
) -> None:
    teacher = support.make_teacher(tmp_path / "huggingface", family="megatron-bert")
    tensor, pipeline = split
    target = Target(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, divisible_by=4)
    to_megatron(teacher, tmp_path / "megatron", target, compare=False)
    for worst, _ in run_distributed(differences, 2, str(tmp_path / "megatron"), 2, -1, "float32"):
        assert worst < 1e-4
