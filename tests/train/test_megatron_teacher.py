"""megatron-core's own BertModel teaches: the signals of transformers' model, by another program."""

import os
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


def compared(*cases: tuple[str, int, dict[str, Any]]) -> list[tuple[float, float]]:
    """Of each teacher the largest difference from transformers' model, and this rank's share of it.

    A case is a folder, the number of ranks that hold the teacher together, and further options.
    """
    found = []
    # As job scripts have it; megatron-core would refuse it, and set the others.
    os.environ |= {"NVTE_FLASH_ATTN": "0", "NCCL_COLLNET_ENABLE": "1"}
    variables = dict(os.environ)
    for folder, size, options in cases:
        ours = load_megatron_teacher(folder, parallel_size=size, **options)
        assert dict(os.environ) == variables
        theirs = load_teacher(folder, **options)
        worst = 0.0
        for call in range(2):
            ids, mask, segments = batch_of(dist.get_rank(), call)
            for given in (segments, None):
                pairs = zip(ours(ids, mask, given), theirs(ids, mask, given), strict=True)
                for mine, other in pairs:
                    assert mine.shape == other.shape and mine.dtype == other.dtype
                    assert mine.isfinite().all()
                    worst = max(worst, float((mine - other)[mask].abs().max()))
        found.append((worst, held_bytes(ours) / held_bytes(theirs)))
    return found


@pytest.mark.parametrize("ranks, sizes", [(1, [1]), (2, [1, 2]), (4, [2])])
def test_its_signals_are_those_of_transformers(
    ranks: int, sizes: list[int], tmp_path: Path
) -> None:
    folder = save_encoder(tmp_path / "teacher")
    cases = [(folder, size, {"with_states": states}) for size in sizes for states in (False, True)]
    for rank in run_distributed(compared, ranks, *cases):
        for (_, size, _), (worst, share) in zip(cases, rank, strict=True):
            assert worst < 1e-4
            assert share < (1.01 if size == 1 else 0.75)


def test_of_any_layer_size_and_precision(tmp_path: Path) -> None:
    plain = save_encoder(tmp_path / "plain")
    tanh = save_encoder(tmp_path / "tanh", hidden_act="gelu_new", layer_norm_eps=1e-5)
    odd = save_encoder(tmp_path / "odd", type_vocab_size=3, intermediate_size=40)
    cases: list[tuple[str, int, dict[str, Any]]] = [
        (plain, 2, {"relation_layer": 1}),
        (plain, 2, {"relation_layer": LAYERS - 1}),
        (plain, 2, {"relation_layer": LAYERS - 1, "with_states": True}),
        (tanh, 2, {}),
        (odd, 2, {}),
        (plain, 2, {"dtype": "bfloat16"}),
    ]
    for rank in run_distributed(compared, 2, *cases):
        *exact, (rounded, _) = rank
        assert all(worst < 1e-4 for worst, _ in exact)
        assert 0.0 < rounded < 0.2


def test_a_checkpoint_of_any_split_is_read_by_ranks_of_another(tmp_path: Path) -> None:
    teacher = support.make_teacher(tmp_path / "huggingface", family="megatron-bert")
    cases: list[tuple[str, int, dict[str, Any]]] = []
    for tensor, pipeline in ((1, 1), (2, 1), (1, 2), (4, 1)):
        folder = tmp_path / f"megatron_{tensor}_{pipeline}"
        split = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
        to_megatron(teacher, folder, Target(**split, divisible_by=4), compare=False)
        cases.append((str(folder), 2, {}))
    for rank in run_distributed(compared, 2, *cases):
        assert all(worst < 1e-4 for worst, _ in rank)
