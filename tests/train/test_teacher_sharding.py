"""Sharded teachers on gloo ranks: the replicated one's signals, a share of its memory."""

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
from tests.models.test_encoder_families import make_model

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


def largest_differences(*cases: tuple[str, dict[str, Any]]) -> list[float]:
    """Between sharded teachers and the replicated ones, over two calls on this rank's batches.

    A case is a folder, and how to load it: ``layout`` and its options for the sharded teacher
    alone, the others for both.
    """
    worst = []
    for folder, options in cases:
        shared = {
            "relation_layer": -1,
            "dtype": options.get("dtype", "float32"),
            "with_states": options.get("with_states", False),
        }
        sharded = load_sharded_teacher(folder, **options | shared)
        whole = load_teacher(folder, **shared)
        worst.append(0.0)
        for call in range(2):
            inputs = batch_of(dist.get_rank(), call)
            for ours, theirs in zip(sharded(*inputs), whole(*inputs), strict=True):
                assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
                worst[-1] = max(worst[-1], float((ours - theirs)[inputs[1]].abs().max()))
    return worst


def worst_on(ranks: int, *cases: tuple[str, dict[str, Any]]) -> float:
    return max(map(max, run_distributed(largest_differences, ranks, *cases)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_signals_of_every_family_are_the_replicated_teachers(layout: str, tmp_path: Path) -> None:
    folders = [save_encoder(tmp_path / family, family) for family in FAMILIES]
    cases = [
        (folder, {"layout": layout, "with_states": states})
        for folder in folders
        for states in (False, True)
    ]
    assert worst_on(2, *cases) < 1e-5


def test_encoders_that_compute_as_students_do_are_cut_by_columns(tmp_path: Path) -> None:
    cases = []
    for name in ("xlm-roberta", "camembert", "data2vec-text", "electra", "ernie"):
        make_model(name, **({"embedding_size": 32} if name == "electra" else {})).save_pretrained(
            tmp_path / name
        )
        cases.append((str(tmp_path / name), {"layout": "tensor"}))
        cases.append((str(tmp_path / name), {"layout": "tensor", "with_states": True}))
    assert worst_on(2, *cases) < 1e-5


def test_encoders_that_only_teach_are_gathered_layer_by_layer(tmp_path: Path) -> None:
    cases = []
    for name in (
        *("mpnet", "distilbert", "albert", "deberta-v2", "modernbert", "eurobert"),
        *("roberta-prelayernorm", "gte", "nomic_bert", "jina_embeddings_v3"),
    ):
        make_model(name).save_pretrained(tmp_path / name)
        cases.append((str(tmp_path / name), {"layout": "zero3"}))
        cases.append((str(tmp_path / name), {"layout": "zero3", "with_states": True}))
    assert worst_on(2, *cases) < 1e-5
    # Rotary frequencies are no weights, and stay what they are in any type.
    halves = [(path, {**options, "dtype": "bfloat16"}) for path, options in cases[::2]]
    assert worst_on(2, *halves) == 0.0


def test_groups_of_four_ranks_give_the_replicated_signals(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path, "megatron-bert")
    layouts: list[dict[str, Any]] = [
        {"layout": "zero3", "parallel_size": 2},
        {"layout": "tensor", "parallel_size": 2},
        {"layout": "tensor"},
    ]
    assert worst_on(4, *((folder, options) for options in layouts)) < 1e-5


def test_gathered_and_whole_weights_give_the_replicated_signals_bit_for_bit(
    tmp_path: Path,
) -> None:
    folder = save_encoder(tmp_path)
    layouts: list[dict[str, Any]] = [
        {"layout": "zero3", "parallel_size": 1},
        {"layout": "tensor", "parallel_size": 1},
        {"layout": "zero3", "offload": True},
        {"layout": "zero3", "dtype": "bfloat16"},
    ]
    assert worst_on(2, *((folder, options) for options in layouts)) == 0.0


def test_a_tensor_parallel_teacher_computes_in_half_precision(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path)
    layouts = [{"layout": "tensor", "dtype": dtype} for dtype in ("bfloat16", "float16")]
    assert worst_on(2, *((folder, options) for options in layouts)) < 0.2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_behind_the_relation_layers_projections_is_read(
    layout: str, tmp_path: Path
) -> None:
    cut = Path(save_encoder(tmp_path / "cut"))
    weights = load_file(cut / "model.safetensors")
    for name, value in weights.items():
        projects = "layer.1.attention.self" in name
        if any(part in name for part in ("layer.1.", "layer.2.", "pooler")) and not projects:
            weights[name] = torch.full_like(value, torch.nan)
    save_file(weights, cut / "model.safetensors", metadata={"format": "pt"})
    folders = [save_encoder(tmp_path / "whole"), str(cut)]
    (expected, found), _ = run_distributed(signals_at_layer_two, 2, folders, layout)
    assert found == expected


def signals_at_layer_two(folders: list[str], layout: Any) -> list[Any]:
    teachers = [load_sharded_teacher(one, layout=layout, relation_layer=2) for one in folders]
    inputs = batch_of(dist.get_rank())
    return [[signal.tolist() for signal in teacher(*inputs)] for teacher in teachers]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_in_several_files_under_a_head_are_found(layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert worst_on(2, (str(tmp_path), {"layout": layout})) < 1e-5


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


def test_assistants_teach_from_shards(tmp_path: Path) -> None:
    kinds = ("plain", "experts", "sliceable")
    folders = [save_assistant(tmp_path / kind, kind) for kind in kinds]
    assert worst_on(2, *((folder, {"layout": "zero3"}) for folder in folders)) < 1e-5


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


@pytest.mark.parametrize(("layout", "ranks"), [("zero3", 2), ("zero3", 4), ("tensor", 4)])
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
