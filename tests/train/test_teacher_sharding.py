"""Sharded teachers on gloo ranks: the replicated one's signals, a share of its memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    MegatronBertConfig,
    MegatronBertModel,
    RobertaConfig,
    RobertaModel,
)

from minimoe_dist.checkpoints.export import export_elastic, export_student
from minimoe_dist.models.build import build_student
from minimoe_dist.models.configuration import MiniMoeConfig
from minimoe_dist.models.elastic import ElasticForRelations
from minimoe_dist.models.elastic_configuration import ElasticConfig
from minimoe_dist.models.teacher import load_teacher
from minimoe_dist.train.teacher_sharding import held_bytes, load_sharded_teacher
from tests.distributed import run_distributed

SIZES = {
    "vocab_size": 61,  # no number of ranks divides it
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
LAYOUTS = ("zero3", "tensor")


def save_encoder(folder: Path, family: str = "bert", shard: str = "1GB", **sizes: int) -> str:
    config_class, model_class = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(config_class(**SIZES | sizes)).save_pretrained(folder, max_shard_size=shard)
    return str(folder)


def batch_of(rank: int, call: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and segments of a rank: each has other numbers of samples and positions."""
    generator = torch.Generator().manual_seed(10 * rank + call)
    samples, length = 1 + (rank + call) % 3, 5 + 3 * ((rank + 2 * call) % 4)
    mask = torch.arange(length) < torch.randint(1, length + 1, (samples, 1), generator=generator)
    ids = torch.randint(4, SIZES["vocab_size"], mask.shape, generator=generator)
    return ids.masked_fill(~mask, 0), mask, (ids % 2) * mask


def largest_difference(folder: str, options: dict[str, Any]) -> float:
    """Between a sharded teacher and the replicated one, over two calls on this rank's batches."""
    shared = {"relation_layer": -1, "dtype": "float32"} | options.pop("loading", {})
    sharded = load_sharded_teacher(folder, **options, **shared)
    whole = load_teacher(folder, **shared)
    worst = 0.0
    for call in range(2):
        inputs = batch_of(dist.get_rank(), call)
        for ours, theirs in zip(sharded(*inputs), whole(*inputs), strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            worst = max(worst, float((ours - theirs)[inputs[1]].abs().max()))
    return worst


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_signals_are_the_replicated_teachers(layout: str, family: str, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path, family)
    assert max(run_distributed(largest_difference, 2, folder, {"layout": layout})) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "zero3", "parallel_size": 2},
        {"layout": "tensor", "parallel_size": 2},
        {"layout": "tensor"},
    ],
    ids=str,
)
def test_groups_of_four_ranks_give_the_replicated_signals(
    options: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_encoder(tmp_path, "megatron-bert")
    assert max(run_distributed(largest_difference, 4, folder, options)) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "zero3", "parallel_size": 1},
        {"layout": "tensor", "parallel_size": 1},
        {"layout": "zero3", "offload": True},
        {"layout": "zero3", "loading": {"dtype": "bfloat16"}},
    ],
    ids=str,
)
def test_signals_are_bit_for_bit_the_replicated_teachers(
    options: dict[str, Any], tmp_path: Path
) -> None:
    assert run_distributed(largest_difference, 2, save_encoder(tmp_path), options) == [0.0, 0.0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_tensor_parallel_teacher_computes_in_half_precision(dtype: str, tmp_path: Path) -> None:
    options = {"layout": "tensor", "loading": {"dtype": dtype}}
    assert max(run_distributed(largest_difference, 2, save_encoder(tmp_path), options)) < 0.2


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_behind_the_relation_layers_projections_is_read(
    layout: str, layer: int, tmp_path: Path
) -> None:
    folder = save_encoder(tmp_path / "whole")
    path = Path(save_encoder(tmp_path / "cut")) / "model.safetensors"
    for name, value in (weights := load_file(path)).items():
        is_projection = ".attention.self." in name
        behind = [f"layer.{other}." in name for other in range(layer, 3)]
        if any(behind) or (f"layer.{layer - 1}." in name and not is_projection) or "pool" in name:
            weights[name] = torch.full_like(value, torch.nan)
    save_file(weights, path, metadata={"format": "pt"})
    signals = run_distributed(signals_of_rank, 2, str(path.parent), layout, layer)
    expected = run_distributed(signals_of_rank, 2, folder, layout, layer)
    assert signals == expected


def signals_of_rank(folder: str, layout: Any, layer: int) -> list[Any]:
    teacher = load_sharded_teacher(folder, layout=layout, relation_layer=layer)
    return [signal.tolist() for signal in teacher(*batch_of(dist.get_rank()))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_in_several_files_under_a_head_are_found(layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert max(run_distributed(largest_difference, 2, str(tmp_path), {"layout": layout})) < 1e-5


def test_layer_norms_under_their_old_names_are_found(tmp_path: Path) -> None:
    path = Path(save_encoder(tmp_path)) / "model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = {}
    for name, value in load_file(path).items():
        stem, last = name.rpartition("LayerNorm.")[::2]
        weights[f"{stem}{old[f'LayerNorm.{last}']}" if stem else name] = value
    save_file(weights, path, metadata={"format": "pt"})
    options = {"layout": "tensor"}
    assert max(run_distributed(largest_difference, 2, str(tmp_path), options)) < 1e-5


ASSISTANT = SIZES | {"num_relation_heads": 4, "intermediate_size": 96}


def save_assistant(folder: Path, kind: str) -> str:
    if kind == "sliceable":
        model = build_student(ElasticConfig(**ASSISTANT), 0, model_class=ElasticForRelations)
        export_elastic(model, folder)
        return str(folder)
    experts = {"plain": (1, 1), "experts": (2, 4)}[kind]
    config = MiniMoeConfig(
        **ASSISTANT,
        attention_experts=experts[0],
        feedforward_experts=experts[1],
        relation_projections=experts != (1, 1),
    )
    export_student(config, build_student(config, 0).state_dict(), folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["plain", "experts", "sliceable"])
def test_assistants_teach_from_shards(kind: str, tmp_path: Path) -> None:
    folder = save_assistant(tmp_path / "assistant", kind)
    assert max(run_distributed(largest_difference, 2, folder, {"layout": "zero3"})) < 1e-5


MIDDLE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 9,
    "vocab_size": 4000,
    "num_attention_heads": 8,
}


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def memory_of_a_teacher(folder: str, layout: str) -> tuple[int, int, bool]:
    """Bytes of weights held, growth of the resident peak by loading and a pass, any gradient."""
    # What the first use of a library takes is not the teacher's.
    load(str(Path(folder).parent / "small"), layout)(*batch_of(0))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
    before = peak_bytes()
    teacher = load(folder, layout)
    signals = teacher(*batch_of(dist.get_rank()))
    grows = any(one.requires_grad for one in (*teacher.parameters(), *signals))
    return held_bytes(teacher), peak_bytes() - before, grows


def load(folder: str, layout: Any) -> Any:
    if layout == "replicated":
        return load_teacher(folder)
    return load_sharded_teacher(folder, layout=layout)


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """A teacher of some 100 MB, and the bytes of what is read of it."""
    folder = tmp_path_factory.mktemp("middle")
    save_encoder(folder / "small")
    path = save_encoder(folder / "middle", **MIDDLE)
    return path, held_bytes(load_teacher(path))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_holds_its_share_of_the_weights_and_never_the_whole(
    layout: str, ranks: int, middle: tuple[str, int]
) -> None:
    folder, whole = middle
    for held, growth, has_gradients in run_distributed(memory_of_a_teacher, ranks, folder, layout):
        assert held < 1.02 * whole / ranks
        # The largest parameter or layer, and a batch's activations, come on top of the share.
        assert growth < whole / ranks + 0.25 * whole
        assert not has_gradients


def test_the_measured_growth_sees_a_whole_teacher(middle: tuple[str, int]) -> None:
    folder, whole = middle
    ((held, growth, _),) = run_distributed(memory_of_a_teacher, 1, folder, "replicated")
    assert held == whole and growth > 0.8 * whole


def refusal(folder: str, options: dict[str, Any]) -> str:
    try:
        load_sharded_teacher(folder, **options)
    except ValueError as error:
        return str(error)
    return "loaded"


def keep_only_a_pickle(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def claim_a_layer_more(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=4)


def claim_another_width(folder: Path) -> None:
    edit_config(folder, hidden_size=32)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def lose_a_part(folder: Path) -> None:
    save_encoder(folder, shard="5KB")
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (keep_only_a_pickle, "convert it with transformers' save_pretrained"),
        (claim_a_layer_more, "weights of a bert encoder are missing"),
        (claim_another_width, "have another shape than config.json says"),
        (truncate, "has no weights that can be loaded (model.safetensors"),
        (lose_a_part, "-of-"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(
    damage: Any, words: str, layout: str, tmp_path: Path
) -> None:
    folder = save_encoder(tmp_path / "teacher")
    if damage is lose_a_part:
        (tmp_path / "teacher" / "model.safetensors").unlink()
    damage(Path(folder))
    for said in run_distributed(refusal, 1, folder, {"layout": layout}):
        assert words in said and "\n" not in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "zero3", "parallel_size": 3}, "3 does not divide the 2 ranks"),
        ({"layout": "tensor"}, "2 does not divide the 3 attention heads"),
    ],
    ids=str,
)
def test_sizes_that_do_not_divide_are_refused(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = save_encoder(tmp_path, num_attention_heads=3)
    assert all(words in said for said in run_distributed(refusal, 2, folder, options))


def test_a_tensor_parallel_assistant_is_refused(tmp_path: Path) -> None:
    folder = save_assistant(tmp_path / "assistant", "experts")
    for said in run_distributed(refusal, 2, folder, {"layout": "tensor"}):
        assert "a student of type minimoe; use zero3 or replicated" in said
