"""What one process of gpu_step.py measures."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from gpu_bench import VOCABULARY, WATCHED, Bench, TimedPasses
from gpu_shapes import SHAPES, Case


def run_case(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """The result of a case; numbers by name."""
    from minimoe_dist.process_group import start_process_group
    from minimoe_dist.runtime import detect_launch, prepare_environment

    ways = {"ours": ours, "published": published, "limit": limit, "command": command}
    environment = prepare_environment(use_cpu=options.device == "cpu")
    device = start_process_group(detect_launch({}), environment, 60)
    bench = Bench(case, options, device)
    return {"way": case.way, "device": bench.name(), **ways[case.way](bench)}


def engine_settings(case: Case) -> dict[str, Any]:
    """DeepSpeed's, as recipes have them."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": case.batch,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": 1, "contiguous_gradients": True, "reduce_scatter": True},
    }
    if case.precision == "bf16":
        settings["bf16"] = {"enabled": True}
    if case.precision == "fp16":
        settings["fp16"] = {"enabled": True, "initial_scale_power": 16, "loss_scale_window": 1000}
    return settings


def make_distiller(bench: Bench) -> tuple[Any, TimedPasses, dict[str, float]]:
    """The trainer's own step, its clocks, and floating-point operations a token by type."""
    from minimoe_dist.models.build import build_student, student_config
    from minimoe_dist.models.compute import RelationPath, distillation_flops_per_token
    from minimoe_dist.models.teacher import load_teacher
    from minimoe_dist.recipes.results import relation_paths
    from minimoe_dist.train.distillation import Distiller
    from minimoe_dist.train.engine import AdamW, StudentEngine
    from minimoe_dist.train.fastest_passes import choose_passes
    from minimoe_dist.train.objectives import RelationObjective
    from minimoe_dist.train.schedule import make_schedule

    case, device = bench.case, bench.device
    folder = bench.teacher()
    teacher = load_teacher(folder, dtype=case.teacher_dtype, device=device)
    layers, hidden = case.student
    students = []
    for number, experts in enumerate(case.experts):
        config = student_config(
            teacher.config, layers=layers, hidden=hidden, heads=case.student_heads,
            experts=experts, num_relation_heads=case.relation_heads,
        )  # fmt: skip
        model = build_student(config, 1 + number)
        students.append(
            StudentEngine(f"s{number}", model, engine_settings(case), AdamW(3e-4), 1, device)
        )
    objective = RelationObjective(teacher, case.relation_heads)
    passes = TimedPasses(choose_passes(students, objective, 1, device, case.compiles))
    schedule = make_schedule("constant", 3e-4, 100, 0.0)
    distiller = Distiller(
        students, objective, schedule, seed=1, device=device, passes=passes,
        max_length=case.length,
    )  # fmt: skip
    teacher_layers, teacher_hidden, _ = SHAPES[case.teacher]
    teacher_path = RelationPath(teacher_layers - 1, teacher_hidden, 4 * teacher_hidden)
    paths = [path for one in students for path in relation_paths(one.config)]
    whole = distillation_flops_per_token(paths, teacher_path, case.length)
    taught = distillation_flops_per_token([], teacher_path, case.length)
    kinds = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    flop: dict[str, float] = defaultdict(float)
    flop["float8" if case.teacher_dtype == "float8" else "bfloat16"] += taught
    flop[kinds[case.precision]] += whole - taught
    return distiller, passes, flop


def reading_behind(distiller: Any, batches: Sequence[Any]) -> Callable[[], None]:
    """A step on the next batch, that reads the numbers of the one before, as training does."""
    from minimoe_dist.data.loader import StepBatch

    state: dict[str, Any] = {"step": 0, "pending": None}

    def step() -> None:
        number = state["step"]
        batch = StepBatch([batches[number % len(batches)]], 0)
        pending = distiller.train_step(batch, number, False)
        if state["pending"] is not None:
            _ = state["pending"].metrics
        state["step"], state["pending"] = number + 1, pending

    return step


def ours(bench: Bench) -> dict[str, Any]:
    """The trainer's step."""
    distiller, passes, flop = make_distiller(bench)
    micro = bench.batch()
    step = reading_behind(distiller, [micro])
    started = time.perf_counter()
    step()
    step()
    bench.wait()
    compiled = time.perf_counter() - started
    found = bench.rates(step, micro.num_tokens)
    found["flop"] = {kind: each * micro.num_tokens for kind, each in flop.items()}
    found["first_steps_seconds"] = compiled
    if bench.on_gpu:
        passes.clocks = defaultdict(list)
        for _ in range(WATCHED):
            step()
        found["parts_ms"] = passes.parts()
    return found


def published(bench: Bench) -> dict[str, Any]:
    """The published implementation's step."""
    import torch
    from published_way import PublishedStudent, published_step

    case, device = bench.case, bench.device
    layers, hidden = case.student
    torch.manual_seed(1)
    # Its attention experts are not re-created: a plain block costs it less.
    experts = case.experts[0][1]
    student = PublishedStudent(layers, hidden, case.student_heads, experts, VOCABULARY)
    micro = bench.batch()
    inputs = micro.to(device).inputs()
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    run = published_step(
        bench.teacher(),
        student.to(device),
        inputs,
        case.relation_heads,
        device,
        dtype[case.precision],
    )
    found = bench.rates(lambda: run().item(), micro.num_tokens)
    return {**found, "flop": {}}


def limit(bench: Bench) -> dict[str, Any]:
    """Rates of products of the step's largest size by type, and of copies in memory."""
    import torch
    import torch.nn.functional as F

    rows, width = bench.case.batch * bench.case.length, 768
    rates = {}
    for kind in ("bfloat16", "float16", "float32", "float8"):
        dtype = torch.bfloat16 if kind == "float8" else getattr(torch, kind)
        a = torch.randn(rows, width, device=bench.device).to(dtype)
        b = torch.randn(4 * width, width, device=bench.device).to(dtype)
        run: Callable[[], object] = partial(F.linear, a, b)
        if kind == "float8":
            if not bench.on_gpu or torch.cuda.get_device_capability() < (8, 9):
                continue
            one = torch.ones((), device=bench.device)
            a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
            run = partial(
                torch._scaled_mm,
                a8,
                b8.t(),
                one,
                one,
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )
        rates[kind] = 2 * rows * width * 4 * width / bench.seconds(run)[0] / 1e12
    number = (1 << 28) if bench.on_gpu else (1 << 22)
    source = torch.empty(number, dtype=torch.float32, device=bench.device).normal_()
    target = torch.empty_like(source)
    seconds, _ = bench.seconds(lambda: target.copy_(source))
    return {"tflops": rates, "gb_per_second": 8 * number / seconds / 1e9}


def command(bench: Bench) -> dict[str, Any]:
    """``distill`` on a corpus of random ids, and the bare step on batches of the same corpus."""
    from loader import write_corpus

    from minimoe_dist.runs.folder import RunFolder
    from minimoe_dist.runs.metrics import SavedMetrics

    case, folder = bench.case, Path(bench.options.folder)
    prefix, output = folder / "corpus", folder / "run"
    if not prefix.with_suffix(".idx").exists():
        write_corpus(str(prefix), 200_000)
    steps = 60 if not bench.on_gpu else 1500
    recipe = {
        "model_type": "moebert_minilm",
        "output_dir": str(output),
        "resume": "never",
        "teacher": {"model_name_or_path": bench.teacher()},
        "students": [
            {"name": "student", "layer": case.student[0], "hidden": case.student[1],
             "heads": case.student_heads,
             "moe": ",".join(map(str, case.experts[0]))}
        ],
        "objective": {"num_relation_heads": case.relation_heads},
        "data": {"record_path_or_regex": str(prefix), "max_length": case.length},
        "training": {
            "per_device_train_batch_size": case.batch, "max_steps": steps,
            "log_interval": max(10, steps // 20), "save_interval": 10 * steps,
        },
        "parallel": {"use_cpu": not bench.on_gpu},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "minimoe_dist", "distill", "--config", str(path)],
        check=True, stdout=sys.stderr,
    )  # fmt: skip
    whole = time.perf_counter() - started
    trained = SavedMetrics.read(RunFolder(output).metrics).trained
    rates = [line.sequences_per_second for line in trained if line.sequences_per_second]
    rate = median(rates[len(rates) // 2 :])  # all sizes have been recorded by then
    bare = bare_rate(bench, str(path))
    return {
        "sequences_per_second": rate,
        "bare_sequences_per_second": bare,
        "of_the_step": rate / bare,
        "steps": steps,
        "command_seconds": whole,
    }


def bare_rate(bench: Bench, recipe: str) -> float:
    """Sequences a second of steps whose batches lie in memory."""
    from itertools import islice

    from minimoe_dist.config import load_run_config
    from minimoe_dist.recipes.corpora import open_data
    from minimoe_dist.runtime import detect_launch

    config, launch = load_run_config(recipe, []), detect_launch({})
    with open_data(config).loader(config, launch, 0) as loader:
        batches = [step.micro_batches[0] for step in islice(loader, 100)]
    distiller, _, _ = make_distiller(bench)
    step = reading_behind(distiller, batches)
    for _ in batches if bench.on_gpu else batches[:2]:
        step()
    return bench.case.batch / bench.seconds(step)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", required=True, help="a Case as JSON")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--folder", required=True, help="where models are kept")
    parser.add_argument("--steps", type=int, default=20, help="in a block")
    parser.add_argument("--blocks", type=int, default=5)
    options = parser.parse_args()
    values = json.loads(options.case)
    values["student"] = tuple(values["student"])
    values["experts"] = [tuple(pair) for pair in values["experts"]]
    # What libraries print goes elsewhere: the last line is the result.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        print(json.dumps(run_case(Case(**values), options)), file=out)


if __name__ == "__main__":
    main()
