"""Trains a student in float16 on one GPU and prints what it saw; for test_engine.py.

python -m tests.train.float16 FOLDER
"""

import json
import sys
from typing import Any

import torch
import torch.distributed as dist

from minimoe_dist.checkpoints.run import load_checkpoint
from minimoe_dist.models.build import build_student
from minimoe_dist.train.engine import AdamW, StudentEngine
from tests.train import runs


def make_engine(initial_scale_power: int, device: torch.device) -> StudentEngine:
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": 1},
        "fp16": {
            "enabled": True,
            "initial_scale_power": initial_scale_power,
            "loss_scale_window": 50,
        },
    }
    model = build_student(runs.student_options((1, 4)), runs.SEED)
    return StudentEngine("s0", model, settings, AdamW(3e-3), 1, device)


def train(student: StudentEngine, first: int, last: int, device: torch.device) -> list[list[Any]]:
    """Per step: the loss, whether it was applied, the scale after it."""
    rows = []
    for step in range(first, last):
        micro = runs.make_batch(step, runs.Layout(accumulation=1), 0, 1).micro_batches[0]
        micro = micro.to(device)
        output = student(input_ids=micro.input_ids, attention_mask=micro.attention_mask)
        loss = sum(signal.float().square().mean() for signal in output.signals)
        student.backward(loss)
        result = student.step(3e-3)
        rows.append(
            [loss.item(), bool(result.applied), student.counters()["loss_scaler"]["cur_scale"]]
        )
    return rows


def main(folder: str) -> None:
    """Finds the scale, saves, goes on, and goes on again from what was saved."""
    device = torch.device("cuda", 0)
    dist.init_process_group("nccl", init_method=f"file://{folder}/peers", rank=0, world_size=1)
    student = make_engine(40, device)
    search = train(student, 0, 60, device)
    saved = runs.save(folder, [student], 60)
    unbroken = train(student, 60, 70, device)
    resumed = make_engine(16, device)
    load_checkpoint(saved, [resumed])
    print(json.dumps([search, unbroken, train(resumed, 60, 70, device)]))


if __name__ == "__main__":
    main(sys.argv[1])
