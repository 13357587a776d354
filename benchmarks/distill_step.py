"""One distillation step on this machine: against the matmul-bound limit, and the published way.

    python benchmarks/distill_step.py [--batch 16] [--threads 2] [--repeats 5]

Three processes measure, one after the other, each its seconds a step and its peak memory:
the trainer's own step (DeepSpeed engine, ZeRO-1, one rank); the published implementation's way
(float32 teacher with all layers, relations of all layers kept, plain relation loss, padding
computed); and matrix products of the step's sizes, for the rate that the limit is made of.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTH, RELATION_HEADS, VOCABULARY = 128, 32, 30522


def seconds_of(action: Callable[[], object], repeats: int) -> float:
    """The fastest of some runs after one that warms up."""
    action()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)


def make_teacher(folder: str) -> str:
    """BERT-base with random weights."""
    from transformers import BertConfig, BertModel

    if not (Path(folder) / "config.json").exists():
        BertModel(BertConfig(vocab_size=VOCABULARY)).save_pretrained(folder)
    return folder


def make_inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (batch, LENGTH), generator=generator)
    return ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids)


def make_student(teacher_config: object):
    from minimoe_dist.models.build import build_student, student_config

    config = student_config(
        teacher_config,
        layers=3,
        hidden=384,
        heads=12,
        experts=(1, 4),
        num_relation_heads=RELATION_HEADS,
    )
    return build_student(config, 1)


def measure_ours(folder: str, batch: int, repeats: int, dtype: str) -> dict[str, float]:
    from minimoe_dist.data.batches import MicroBatch
    from minimoe_dist.data.loader import StepBatch
    from minimoe_dist.models.compute import RelationPath, distillation_flops_per_token
    from minimoe_dist.models.teacher import load_teacher
    from minimoe_dist.process_group import start_process_group
    from minimoe_dist.runtime import detect_launch, prepare_environment
    from minimoe_dist.train.distillation import Distiller
    from minimoe_dist.train.engine import AdamW, StudentEngine
    from minimoe_dist.train.objectives import RelationObjective
    from minimoe_dist.train.schedule import make_schedule

    start_process_group(detect_launch({}), prepare_environment(use_cpu=True), 60)
    teacher = load_teacher(folder, dtype=dtype)
    settings = {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": 1, "contiguous_gradients": True},
    }
    device = torch.device("cpu")
    model = make_student(teacher.config)
    student = StudentEngine("student", model, settings, AdamW(3e-4), 1, device)
    schedule = make_schedule("constant", 3e-4, 100, 0.0)
    distiller = Distiller(
        [student], RelationObjective(teacher, RELATION_HEADS), schedule, seed=1, device=device
    )
    ids, mask, segments = make_inputs(batch)
    step = StepBatch([MicroBatch(ids, mask, segments, torch.arange(batch))], 0)
    seconds = seconds_of(lambda: distiller.train_step(step, 0, False), repeats)
    paths = [RelationPath(11, 768, 3072), RelationPath(3, 384, 1536, 4)]
    tokens = batch * LENGTH
    teacher_flops = 2 * paths[0].macs_per_token(LENGTH) * tokens
    flops = distillation_flops_per_token(paths[1:], paths[0], LENGTH) * tokens
    return {"seconds": seconds, "flops": flops, "teacher_flops": teacher_flops}


def _relations(signal: Tensor) -> Tensor:
    heads = signal.unflatten(-1, (RELATION_HEADS, -1)).transpose(1, 2)
    return (heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5).softmax(-1)


def measure_published(folder: str, batch: int, repeats: int) -> dict[str, float]:
    from transformers import BertModel

    teacher = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    projected: list[Tensor] = []
    for layer in teacher.encoder.layer:
        for name in ("query", "key", "value"):
            projection = layer.attention.self.get_submodule(name)
            projection.register_forward_hook(lambda module, args, out: projected.append(out))
    student = make_student(teacher.config).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4, eps=1e-6)
    ids, mask, segments = make_inputs(batch)

    def step() -> None:
        projected.clear()
        with torch.no_grad():
            teacher(input_ids=ids, attention_mask=mask, token_type_ids=segments)
            everywhere = [_relations(signal) for signal in projected]
        output = student(ids, attention_mask=mask, sample_ids=torch.arange(batch))
        loss = torch.zeros(())
        for ours, theirs in zip(output.signals, everywhere[-3:], strict=True):
            dropped = F.dropout(_relations(ours), 0.1)
            loss = loss + (theirs * ((theirs + 1e-7).log() - (dropped + 1e-7).log())).sum()
        optimizer.zero_grad()
        (loss / (3 * RELATION_HEADS * batch * LENGTH)).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    return {"seconds": seconds_of(step, repeats)}


def measure_rate(batch: int, repeats: int) -> dict[str, float]:
    """Floating-point operations a second of products of the step's sizes, by type."""
    rows, rates = batch * LENGTH, {}
    for dtype, width in (("float32", 768), ("bfloat16", 768), ("float32_student", 384)):
        kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        a, b = torch.randn(rows, width).to(kind), torch.randn(4 * width, width).to(kind)
        seconds = seconds_of(lambda a=a, b=b: F.linear(a, b), 10 * repeats)
        rates[dtype] = 2 * rows * width * 4 * width / seconds
    return rates


def _in_child(what: str, arguments: argparse.Namespace, **more: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", what, "--batch", str(arguments.batch)]
    command += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
    command += ["--folder", arguments.folder]
    for name, value in more.items():
        command += [f"--{name}", value]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(arguments.threads)
    batch, repeats = arguments.batch, arguments.repeats
    if arguments.measure == "rate":
        return measure_rate(batch, repeats)
    folder = make_teacher(arguments.folder)
    if arguments.measure == "ours":
        return measure_ours(folder, batch, repeats, arguments.teacher_dtype)
    return measure_published(folder, batch, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", default="runs/benchmarks/bert_base", help="random teacher")
    parser.add_argument("--measure", choices=("ours", "published", "rate"), help="one, in here")
    parser.add_argument("--teacher_dtype", default="auto")
    arguments = parser.parse_args()
    if arguments.measure:
        result = _measure(arguments)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**result, "peak_mib": peak}))
        return
    rate = _in_child("rate", arguments)
    print("matmul GFLOP/s:", {k: round(v / 1e9) for k, v in rate.items() if k != "peak_mib"})
    published = _in_child("published", arguments)
    print(f"published way: {published['seconds']:.3f} s, {published['peak_mib']:.0f} MiB")
    for dtype in ("float32", "bfloat16"):
        ours = _in_child("ours", arguments, teacher_dtype=dtype)
        student_flops = ours["flops"] - ours["teacher_flops"]
        limit = ours["teacher_flops"] / rate[dtype] + student_flops / rate["float32_student"]
        print(
            f"ours, {dtype} teacher: {ours['seconds']:.3f} s, {ours['peak_mib']:.0f} MiB; "
            f"{limit / ours['seconds']:.0%} of the matmul-bound limit, "
            f"{published['seconds'] / ours['seconds']:.1f} x the published way at "
            f"{ours['peak_mib'] / published['peak_mib']:.2f} x its memory"
        )


if __name__ == "__main__":
    main()
