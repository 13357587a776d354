"""What engines and sharded teachers give back: a process may train one run after another."""

import gc
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import BertConfig, BertModel

from minimoe_dist.train.engine import release
from minimoe_dist.train.teacher_sharding import load_sharded_teacher
from tests.distributed import run_distributed
from tests.train import runs
from tests.train.runs import Layout

LAYOUTS = [Layout(1, 2), Layout(3, 1), Layout(1, 2, "bf16")]
STAGES = [f"stage {layout.zero_stage} {layout.precision}" for layout in LAYOUTS]
STEPS = 4  # ZeRO-3 knows the order of parameters behind the first ones, and keeps what it knows


def living_bytes() -> int:
    """Of all tensors that anything still holds."""
    gc.collect()
    found = {}
    for one in gc.get_objects():
        if isinstance(one, torch.Tensor) and one.device.type == "cpu":
            storage = one.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _train(layout: Layout) -> None:
    distiller = runs.make_distiller([runs.student_options((1, 4))], layout)
    for step in range(STEPS):
        batch = runs.make_batch(step, layout, dist.get_rank(), dist.get_world_size())
        distiller.train_step(batch, step, stop_requested=False)
    for student in distiller.students:
        student.close()


def _kept_by_engines(layout: Layout) -> list[int]:
    found = []
    for _ in range(3):
        _train(layout)
        found.append(living_bytes())
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=STAGES)
def test_an_engine_that_was_closed_keeps_nothing(layout: Layout) -> None:
    for first, _, last in run_distributed(_kept_by_engines, 2, layout):
        assert last - first < 2000  # of some 200 kB each


def _kept_by_teachers(folder: str) -> list[int]:
    found = []
    ids = torch.ones(2, 8, dtype=torch.long)
    for _ in range(3):
        teacher = load_sharded_teacher(folder, layout="zero3")
        for _ in range(STEPS):
            teacher(ids, torch.ones_like(ids))
        release(teacher)
        del teacher
        found.append(living_bytes())
    return found


def test_a_sharded_teacher_that_was_released_keeps_nothing(tmp_path: Path) -> None:
    BertModel(
        BertConfig(
            vocab_size=600, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=40,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    for first, _, last in run_distributed(_kept_by_teachers, 2, str(tmp_path)):
        assert last - first < 2000
