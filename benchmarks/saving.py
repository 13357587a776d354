"""What a checkpoint costs training: the wait of a step against a save that is waited for.

    python benchmarks/saving.py [--layers 6] [--hidden 384] [--moe 1,4] [--zero_stage 1]
    torchrun --nproc-per-node 2 benchmarks/saving.py …

A student takes steps on random ids, alone, then with a save that is waited for, then with saves
beside the steps. Printed are medians of rank 0, and the save's share of an hour of such steps at
the default interval of 1,000 steps.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from minimoe_dist.runtime import detect_launch
from minimoe_dist.train.scope import Scope, open_scope

VOCABULARY, DEFAULT_INTERVAL = 30522, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--moe", default="1,4", help="experts of attention and feed-forward")
    parser.add_argument("--zero_stage", type=int, default=1, choices=(0, 1, 2, 3))
    parser.add_argument("--batch", type=int, default=8, help="sequences of 128 a rank and step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--use_cpu", action="store_true")
    parser.add_argument("--folder", help="on the disk to measure; default: a temporary one")
    given = parser.parse_args()
    launch = detect_launch(os.environ)
    with open_scope(launch, use_cpu=given.use_cpu, timeout_seconds=600) as scope:
        result = measure(given, scope)
    if launch.rank == 0:
        print(json.dumps(result, indent=1))


def measure(given: argparse.Namespace, scope: Scope) -> dict[str, Any]:
    """Measures one student; a collective."""
    import torch
    import torch.distributed as dist

    from minimoe_dist.models.build import build_student
    from minimoe_dist.models.configuration import MiniMoeConfig
    from minimoe_dist.train.agreement import decided_by_rank_0
    from minimoe_dist.train.engine import AdamW, StudentEngine
    from minimoe_dist.train.resuming import Checkpoints

    attention, feedforward = map(int, given.moe.split(","))
    config = MiniMoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=given.hidden,
        num_hidden_layers=given.layers,
        num_attention_heads=12,
        intermediate_size=4 * given.hidden,
        attention_experts=attention,
        feedforward_experts=feedforward,
        relation_projections=True,
    )
    settings = {
        "train_micro_batch_size_per_gpu": given.batch,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": given.zero_stage},
    }
    model = build_student(config, 1)
    student = StudentEngine("student", model, settings, AdamW(1e-4), 1, scope.device)
    ids = torch.randint(5, VOCABULARY, (given.batch, 128), device=scope.device)
    mask = torch.ones_like(ids)

    def step() -> None:
        output = student(input_ids=ids, attention_mask=mask)
        student.backward(sum(signal.float().square().mean() for signal in output.signals))
        student.step(1e-4)
        if scope.device.type == "cuda":
            torch.cuda.synchronize()

    class Work:
        engines = (student,)

        def progress(self) -> dict[str, Any]:
            return {}

        def tensors(self) -> dict[str, torch.Tensor]:
            return {}

    folder = Path(decided_by_rank_0(lambda: tempfile.mkdtemp(dir=given.folder)))
    checkpoints = Checkpoints(folder / "checkpoints", {}, scope.saving)
    for _ in range(3):
        step()
    alone = [seconds(step) for _ in range(3 * given.repeats)]
    waited_for, copies, beside, written = [], [], [], []
    for number in range(1, given.repeats + 2):
        dist.barrier()
        save = partial(checkpoints.save, Work(), number)
        waited_for.append(seconds(save) + seconds(checkpoints.finish))
    for number in range(given.repeats + 2, 2 * given.repeats + 3):
        dist.barrier()
        before = checkpoints.times.writing_seconds
        copies.append(seconds(partial(checkpoints.save, Work(), number)))
        steps = [seconds(step) for _ in range(2)]
        beside += steps
        checkpoints.finish()
        written.append(checkpoints.times.writing_seconds - before)
    size = sum(file.stat().st_size for file in (folder / "checkpoints").glob("*/*")) / 2
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder)
    step_seconds, wait = statistics.median(alone), statistics.median(copies[1:])
    return {
        "device": str(scope.device),
        "ranks": dist.get_world_size(),
        "checkpoint_mb": round(size / 1e6, 1),
        "step_seconds": step_seconds,
        "step_seconds_beside_a_save": statistics.median(beside),
        "save_waited_for_seconds": statistics.median(waited_for[1:]),
        "save_written_beside_seconds": statistics.median(written[1:]),
        "step_waits_seconds": wait,
        "step_waits_share_of_save": wait / statistics.median(waited_for[1:]),
        "share_of_time_at_default_interval": wait / (DEFAULT_INTERVAL * step_seconds + wait),
    }


def seconds(act: Callable[[], Any]) -> float:
    """Returns the wall time of a call."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
