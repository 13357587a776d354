"""A run that goes on with other ranks, another ZeRO stage, another expert-parallel size."""

import random
import shutil
from pathlib import Path
from typing import Any

from tests.commands import support
from tests.commands.support import Workshop

from .clock import Clock
from .shop import last_step, until

SAVED, COMPARED = 10, 5  # rounding differs and grows, so the next steps are compared
BATCH = 8  # of all ranks, whatever their number: a step is one micro-batch everywhere
# (ranks, ZeRO stage, expert-parallel size)
LAYOUTS = (
    (1, 0, 1), (1, 1, 1), (2, 0, 2), (2, 2, 2), (4, 1, 4), (2, 3, 1), (4, 2, 2), (1, 2, 1),
    (2, 1, 1), (4, 1, 1), (2, 0, 1), (1, 3, 1), (4, 3, 1), (4, 0, 4),
)  # fmt: skip


def try_layouts(workshop: Workshop, clock: Clock, chooser: random.Random) -> dict[str, Any]:
    """Each layout goes on from a checkpoint of two ranks, ZeRO-1, expert-parallel size 2."""
    base = workshop.folder / "layout_base"
    shutil.rmtree(base, ignore_errors=True)
    support.finish(_recipe(workshop, base, 2, 1, 2))
    wanted = support.losses(base)
    figures: dict[str, Any] = {"changes": [], "faults": []}
    for ranks, stage, size in LAYOUTS:
        if clock.left <= 0 and figures["changes"]:
            break
        name = f"{ranks} {'rank' if ranks == 1 else 'ranks'}, ZeRO-{stage}, expert-parallel {size}"
        output_dir = workshop.folder / "layout"
        shutil.rmtree(output_dir, ignore_errors=True)
        kept = f"checkpoints/step_{SAVED:08d}"
        shutil.copytree(base / kept, output_dir / kept)
        recipe = _recipe(workshop, output_dir, ranks, stage, size)
        last = SAVED + COMPARED
        with support.start(recipe, world_size=ranks) as run:
            until(lambda: last_step(output_dir) >= last, run)  # noqa: B023 - used at once
            said = run.said()
        found = support.losses(output_dir)
        steps = range(SAVED + 1, last + 1)
        if "resumed from" not in said or not set(steps) <= set(found):
            figures["faults"].append(f"{name}:\n{said[-1500:]}")
            figures["changes"].append({"to": name, "difference": float("inf")})
            continue
        differences = [
            abs(found[step]["student"]["loss"] / wanted[step]["student"]["loss"] - 1)
            for step in steps
        ]
        figures["changes"].append({"to": name, "difference": max(differences)})
        clock.counted()
    return figures


def _recipe(workshop: Workshop, output_dir: Path, ranks: int, stage: int, size: int) -> Path:
    training = {
        "per_device_train_batch_size": BATCH // ranks,
        "save_interval": SAVED,
        "keep_checkpoints": 9,
    }
    parallel = {"zero_stage": stage, "expert_parallel_size": size}
    # In bfloat16, which some processors multiply, a product of 2 samples is rounded otherwise than
    # one of 4, and so is what the teacher says.
    teacher = {"dtype": "float32"}
    return workshop.recipe(output_dir, training=training, parallel=parallel, teacher=teacher)
