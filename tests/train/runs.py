"""Small students, a fixed random teacher and random batches, for tests of training."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minimoe_dist.checkpoints.run import load_checkpoint
from minimoe_dist.checkpoints.writing import CheckpointWriter, Ranks, SnapshotMemory
from minimoe_dist.data.batches import MicroBatch
from minimoe_dist.data.loader import StepBatch
from minimoe_dist.models.build import build_student
from minimoe_dist.models.configuration import MiniMoeConfig
from minimoe_dist.train.distillation import Distiller
from minimoe_dist.train.engine import AdamW, StudentEngine
from minimoe_dist.train.objectives import RelationObjective
from minimoe_dist.train.schedule import make_schedule

VOCABULARY, LENGTH, RELATION_HEADS = 64, 16, 4
# With this one no token is near a tie of two experts: the logits of the likeliest differ by 1e-4
# at least in the twenty steps of test_parity.py, ten times what layouts may differ by.
SEED = 798


@dataclass(frozen=True)
class Layout:
    """How a run is spread; ``accumulation`` × ``micro_batch`` × ranks is the global batch."""

    zero_stage: int = 1
    expert_parallel_size: int = 1
    precision: str = "fp32"
    accumulation: int = 2
    global_batch: int = 16


def student_options(moe: tuple[int, int], dropout: float = 0.0, **changes: Any) -> MiniMoeConfig:
    options: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "attention_experts": moe[0],
        "feedforward_experts": moe[1],
        "max_position_embeddings": LENGTH,
        "num_relation_heads": RELATION_HEADS,
        "relation_projections": moe != (1, 1),
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "router_noise": dropout,
    }
    return MiniMoeConfig(**{**options, **changes})


def all_ranks() -> Ranks:
    """The ranks of a test's process group, which saves in the main thread."""
    world_size = dist.get_world_size()

    def exchange(said: Any) -> list[Any]:
        heard: list[Any] = [None] * world_size
        dist.all_gather_object(heard, said)
        return heard

    return Ranks(dist.get_rank(), world_size, exchange)


def save(folder: str | Path, students: Sequence[StudentEngine], step: int) -> Path:
    """Writes a checkpoint of students; a collective."""
    snapshot = SnapshotMemory().take(students, {"step": step})
    return CheckpointWriter(Path(folder), all_ranks()).write(snapshot)


def copy_state(source: StudentEngine, target: StudentEngine) -> None:
    """Gives another engine in this process alone the state of one, by way of a disk."""
    with tempfile.TemporaryDirectory() as folder:
        load_checkpoint(save(folder, [source], 1), [target])


class RandomTeacher(nn.Module):
    """Queries, keys and values that are a fixed function of the ids and their neighbours."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.tables = nn.ParameterList(
            nn.Parameter(torch.randn(VOCABULARY, width, generator=generator), requires_grad=False)
            for _ in range(3)
        )

    def forward(self, input_ids: Tensor, mask: Tensor, segments: Tensor) -> tuple[Tensor, ...]:
        before = input_ids.roll(1, 1)
        return tuple(table[input_ids] + 0.5 * table[before] for table in self.tables)


def sample(position: int, length: int) -> tuple[Tensor, int]:
    """Ids and number of tokens of the sample at a global position."""
    generator = torch.Generator().manual_seed(position)
    ids = torch.randint(1, VOCABULARY, (length,), generator=generator)
    return ids, int(torch.randint(4, length + 1, (1,), generator=generator))


def make_batch(step: int, layout: Layout, rank: int, world_size: int) -> StepBatch:
    """The share of a rank in a step, laid out as the loader does."""
    size = layout.global_batch // layout.accumulation // world_size
    micro_batches = []
    for index in range(layout.accumulation):
        start = step * layout.global_batch + (index * world_size + rank) * size
        ids = torch.zeros(size, LENGTH, dtype=torch.long)
        mask = torch.zeros(size, LENGTH, dtype=torch.bool)
        for row in range(size):
            tokens, length = sample(start + row, LENGTH)
            ids[row, :length], mask[row, :length] = tokens[:length], True
        samples = torch.arange(start, start + size)
        micro_batches.append(MicroBatch(ids, mask, torch.zeros_like(ids), samples))
    return StepBatch(micro_batches, step * layout.global_batch)


def settings_of(layout: Layout, world_size: int) -> dict[str, Any]:
    """DeepSpeed settings of a layout."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": layout.global_batch // layout.accumulation // world_size,
        "gradient_accumulation_steps": layout.accumulation,
        "zero_optimization": {
            "stage": layout.zero_stage,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "stage3_param_persistence_threshold": 0,
        },
    }
    if layout.zero_stage == 3:
        settings["zero_optimization"]["memory_efficient_linear"] = False
    if layout.precision == "bf16":
        settings["bf16"] = {"enabled": True}
    return settings


OPTIMIZER = AdamW(learning_rate=3e-3, weight_decay=0.05, max_gradient_norm=0.05)


def make_distiller(
    configs: Sequence[MiniMoeConfig],
    layout: Layout,
    total_steps: int = 20,
    teacher: nn.Module | None = None,
    optimizer: AdamW = OPTIMIZER,
) -> Distiller:
    """Students named s0, s1, … on the current process group."""
    students = [
        StudentEngine(
            f"s{index}",
            build_student(config, SEED + index),
            settings_of(layout, dist.get_world_size()),
            optimizer,
            layout.expert_parallel_size if not config.is_dense else 1,
            torch.device("cpu"),
        )
        for index, config in enumerate(configs)
    ]
    schedule = make_schedule("linear", optimizer.learning_rate, total_steps, 0.1)
    objective = RelationObjective(teacher or RandomTeacher(), RELATION_HEADS)
    return Distiller(students, objective, schedule, seed=SEED, device=torch.device("cpu"))


def run_steps(distiller: Distiller, layout: Layout, first: int, last: int) -> list[list[float]]:
    """Per step: every student's loss and gradient norm."""
    rows = []
    for step in range(first, last):
        batch = make_batch(step, layout, dist.get_rank(), dist.get_world_size())
        metrics = distiller.train_step(batch, step, stop_requested=False)
        rows.append([v for s in metrics.students.values() for v in (s.loss, s.gradient_norm)])
    return rows
