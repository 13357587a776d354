"""Trains small students on one GPU and prints what it saw as JSON; for test_on_gpu.py.

python -m tests.train.on_gpu CHECK FOLDER
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from minimoe_dist.config.deepspeed_json import task_settings
from minimoe_dist.data.batches import IGNORED_LABEL, MicroBatch
from minimoe_dist.data.loader import StepBatch
from minimoe_dist.data.signal_rows import SignalRows
from minimoe_dist.data.tasks.batches import collate
from minimoe_dist.models.build import build_student
from minimoe_dist.models.mlm_head import MiniMoeForRelationsAndMaskedLM
from minimoe_dist.models.teacher import RelationTeacher, load_teacher, teacher_of
from minimoe_dist.runtime import StopRequest
from minimoe_dist.train.captured import CapturedPasses
from minimoe_dist.train.distillation import Distiller
from minimoe_dist.train.engine import StudentEngine
from minimoe_dist.train.fastest_passes import choose_passes
from minimoe_dist.train.known_predictions import PredictionFiller
from minimoe_dist.train.megatron_teacher import load_megatron_teacher
from minimoe_dist.train.objectives import JointObjective, MaskedLmObjective, RelationObjective
from minimoe_dist.train.passes import CompiledPasses, EagerPasses
from minimoe_dist.train.schedule import make_schedule
from minimoe_dist.train.task_objective import TaskObjective, TaskTeacher
from tests.train import runs
from tests.train.test_known_predictions import samples as task_data
from tests.train.test_known_predictions import teacher_of as task_teacher
from tests.train.test_megatron_teacher import save_encoder
from tests.train.test_teacher_sharding import batch_of

SIZES = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 64}
LENGTH, BATCH, WIDTH = 64, 32, 128
DEVICE = torch.device("cuda", 0)
STEPS = 6


def make_teacher(states: bool = False) -> RelationTeacher:
    config = runs.student_options((1, 1), **{**SIZES, "hidden_size": WIDTH})
    return teacher_of(build_student(config, 3), states).to(DEVICE, torch.bfloat16)


def make_distiller(
    kind: str,
    mixtures: list[tuple[int, int]],
    precision: str = "bf16",
    masked: bool = False,
    state_weight: float = 0.0,
) -> Distiller:
    layout = runs.Layout(1, 1, precision, accumulation=2, global_batch=2 * BATCH)
    settings = runs.settings_of(layout, 1)
    if precision == "fp16":
        settings["fp16"] = {"enabled": True, "initial_scale_power": 12}
    classes: dict[str, Any] = {"model_class": MiniMoeForRelationsAndMaskedLM} if masked else {}
    maps = {"state_width": WIDTH, "relation_projections": False} if state_weight else {}
    engines = [
        StudentEngine(
            f"s{index}",
            build_student(
                runs.student_options(moe, dropout=0.1, **SIZES, **maps),
                runs.SEED + index,
                **classes,
            ),
            settings, runs.OPTIMIZER, 1, DEVICE,
        )
        for index, moe in enumerate(mixtures)
    ]  # fmt: skip
    teacher = make_teacher(bool(state_weight))
    relations = RelationObjective(teacher, runs.RELATION_HEADS, state_weight=state_weight)
    objective: Any = JointObjective([relations, MaskedLmObjective(0.1)]) if masked else relations
    passes: Any = {
        "padded": lambda: EagerPasses(engines, objective, runs.SEED),
        "packed": lambda: EagerPasses(engines, objective, runs.SEED, packed=True),
        "compiled": lambda: CompiledPasses(engines, objective, runs.SEED),
        "captured": lambda: choose_passes(engines, objective, runs.SEED, DEVICE),
    }[kind]()
    return Distiller(
        engines, objective, make_schedule("linear", 3e-3, 20, 0.1), seed=runs.SEED,
        device=DEVICE, passes=passes, max_length=LENGTH,
    )  # fmt: skip


def make_batch(step: int, masked: bool) -> StepBatch:
    """Two micro-batches; every other step's are half as full, another size of recordings."""
    generator = torch.Generator().manual_seed(step)
    most = LENGTH if step % 2 else LENGTH // 2
    micros = []
    for index in range(2):
        ids = torch.randint(1, runs.VOCABULARY, (BATCH, LENGTH), generator=generator)
        lengths = torch.randint(most // 2, most + 1, (BATCH,), generator=generator)
        mask = torch.arange(LENGTH) < lengths[:, None]
        labels = None
        if masked:
            chosen = (torch.rand(ids.shape, generator=generator) < 0.1) & mask
            labels = torch.where(chosen, ids, IGNORED_LABEL)
        samples = torch.arange(BATCH) + BATCH * (2 * step + index)
        micros.append(MicroBatch(ids * mask, mask, torch.zeros_like(ids), samples, labels))
    return StepBatch(micros, step * 2 * BATCH)


def rows(distiller: Distiller, steps: range, masked: bool = False) -> list[list[float]]:
    found = []
    for step in steps:
        metrics = distiller.train_step(make_batch(step, masked), step, False)
        found.append([v for s in metrics.students.values() for v in (s.loss, s.gradient_norm)])
    return found


def ways() -> dict[str, Any]:
    """Rows of each way to run the passes, for students with and without experts."""
    found: dict[str, Any] = {}
    for moe in [(1, 1), (1, 4), (2, 2)]:
        for precision in ("bf16", "fp16", "fp32"):
            for kind in ("padded", "packed", "captured"):
                distiller = make_distiller(kind, [moe], precision)
                name = f"{moe} {precision} {kind}"
                found[name] = rows(distiller, range(STEPS))
                passes: Any = distiller._passes
                if kind == "captured":
                    assert isinstance(passes, CapturedPasses)
                    assert all(one is not None for one in passes._sizes.values()), name
                    assert len(passes._sizes) > 1
    return found


def masked() -> dict[str, Any]:
    """Masked tokens beside relations."""
    return {
        kind: rows(make_distiller(kind, [(1, 2)], masked=True), range(STEPS), masked=True)
        for kind in ("padded", "captured")
    }


def states() -> dict[str, Any]:
    """Last states beside relations."""
    found: dict[str, Any] = {}
    for moe in [(1, 1), (1, 4)]:
        for kind in ("padded", "packed", "captured"):
            distiller = make_distiller(kind, [moe], state_weight=1.0)
            found[f"{moe} {kind}"] = rows(distiller, range(STEPS))
            passes: Any = distiller._passes
            if kind == "captured":
                assert all(one is not None for one in passes._sizes.values()), moe
    return found


def recalled() -> dict[str, Any]:
    """The teacher's signals computed in the step, and read from what a cache keeps of them."""
    found: dict[str, Any] = {"computed": rows(make_distiller("captured", [(1, 4)]), range(STEPS))}
    teacher = make_teacher()
    for dtype in ("bfloat16", "int8"):
        distiller = make_distiller("captured", [(1, 4)])
        found[dtype] = []
        for step in range(STEPS):
            batch = make_batch(step, masked=False)
            placed = [
                distiller.place(micro, kept(teacher, micro, dtype)) for micro in batch.micro_batches
            ]
            metrics = distiller.train_step(StepBatch(placed, batch.first_position), step, False)
            found[dtype].append(
                [v for s in metrics.students.values() for v in (s.loss, s.gradient_norm)]
            )
        passes: Any = distiller._passes
        assert all(one is not None for one in passes._sizes.values()), dtype
    return found


def kept(teacher: RelationTeacher, micro: MicroBatch, dtype: str) -> SignalRows:
    inputs = (micro.input_ids, micro.attention_mask, micro.token_type_ids)
    signals = teacher(*(tensor.to(DEVICE) for tensor in inputs))
    return SignalRows.encode([s[micro.attention_mask.to(DEVICE)].cpu() for s in signals], dtype)


def predictions() -> dict[str, Any]:
    """Losses of a task whose teacher runs in the step, and whose predictions are known before.

    The last batch is that of a rank without samples.
    """
    data, teacher = task_data("tagging"), task_teacher("tagging").to(DEVICE)
    known = PredictionFiller(teacher, "t", data, 2, DEVICE, None).fill(StopRequest())
    assert known is not None
    found: dict[str, Any] = {}
    for name, model in (("every step", teacher), ("once", None)):
        settings = task_settings(1, "bf16", 4, 1)
        fresh = task_teacher("tagging").requires_grad_(True)
        student = StudentEngine("model", fresh, settings, runs.OPTIMIZER, 1, DEVICE)
        distiller = Distiller(
            [student],
            TaskObjective(TaskTeacher(model, 0.5, 1.0, 0.0, 1)),
            make_schedule("linear", 3e-3, 20, 0.1),
            seed=runs.SEED,
            device=DEVICE,
        )
        found[name] = []
        for step, chosen in enumerate(([0, 1, 2, 3], [6, 4], [5], [])):
            samples = np.array(chosen, np.int64)
            recalled = known.recall(samples) if model is None else None
            placed = distiller.place(collate(data, samples), recalled)
            metrics = distiller.train_step(StepBatch([placed], 4 * step), step, False)
            found[name].append([metrics.students["model"].loss])
    return found


def repeats() -> dict[str, Any]:
    """The same run twice, a student beside another one, and a run that was resumed."""
    one, other = (make_distiller("captured", [(1, 4)]) for _ in range(2))
    both = make_distiller("captured", [(1, 4), (1, 1)])
    whole = rows(one, range(STEPS))
    first = make_distiller("captured", [(1, 4)])
    rows(first, range(3))
    resumed = make_distiller("captured", [(1, 4)])
    runs.copy_state(first.students[0], resumed.students[0])
    return {
        "once": whole,
        "again": rows(other, range(STEPS)),
        "beside": [row[:2] for row in rows(both, range(STEPS))],
        "resumed": [*whole[:3], *rows(resumed, range(3, STEPS))],
    }


def waits() -> dict[str, Any]:
    """Trains on where waiting for the device is an error; what is read, is read behind."""
    distiller = make_distiller("captured", [(1, 4)])
    batches = [make_batch(step, False) for step in range(STEPS)]
    for step in range(2):
        distiller.train_step(batches[step], step, False)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    pending = [distiller.train_step(batches[step], step, False) for step in range(2, STEPS)]
    torch.cuda.set_sync_debug_mode("default")
    return {"losses": [one.students["s0"].loss for one in pending]}


def evaluation() -> dict[str, Any]:
    """Held-out losses of padded and packed batches."""
    micros = [micro for step in range(2) for micro in make_batch(step, False).micro_batches]
    kinds = ("padded", "captured")
    return {kind: make_distiller(kind, [(1, 4)]).evaluate(micros) for kind in kinds}


def by_megatron() -> dict[str, float]:
    """The largest differences between the signals of megatron-core's model and of our own."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        teacher = save_encoder(Path(folder) / "teacher")
        ids, mask, segments = (part.to(DEVICE) for part in batch_of(2))
        for dtype in ("float32", "bfloat16"):
            ours = load_megatron_teacher(teacher, dtype=dtype, device=DEVICE)
            theirs = load_teacher(teacher, dtype=dtype, device=DEVICE)
            pairs = zip(ours(ids, mask, segments), theirs(ids, mask, segments), strict=True)
            found[dtype] = max(float((one - other)[mask].abs().max()) for one, other in pairs)
    return found


CHECKS = {
    check.__name__: check
    for check in (
        ways, masked, states, recalled, predictions, repeats, waits, evaluation, by_megatron,
    )
}  # fmt: skip


def main(name: str, folder: str) -> None:
    """Prints the result of a check."""
    torch.cuda.set_device(DEVICE)
    dist.init_process_group(
        "nccl", init_method=f"file://{folder}/peers", rank=0, world_size=1, device_id=DEVICE
    )
    print(json.dumps(CHECKS[name]()))


if __name__ == "__main__":
    main(*sys.argv[1:])
