"""What each defect of the published implementation costs: the numbers of docs/seed_defects.md.

    make demo                                # the corpus, and its text
    python benchmarks/seed_defects.py        # all of it, or the names of some measurements

Trains small students of the demo's teacher on the demo's corpus, one process, float32, seeds 776
and 777. Times are processor seconds of one thread, so that other work on the machine counts less.
"""

import argparse
import glob
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimoe_dist.commands.demo import find_recipe
from minimoe_dist.config import RunConfig, load_run_config
from minimoe_dist.corpus.sentences import SentenceRules, split_lines
from minimoe_dist.data.batches import MicroBatch
from minimoe_dist.model_paths import resolve_model_path
from minimoe_dist.models.build import build_student, student_config
from minimoe_dist.models.elastic import ElasticForRelations
from minimoe_dist.models.elastic_build import once_for_all_config
from minimoe_dist.models.teacher import RelationTeacher, load_teacher
from minimoe_dist.objectives.tinybert import tinybert_counts
from minimoe_dist.process_group import start_process_group
from minimoe_dist.recipes.corpora import RunData, open_data
from minimoe_dist.runtime import Launch, detect_launch, prepare_environment
from minimoe_dist.train.distillation import Balance, Distiller
from minimoe_dist.train.engine import AdamW, StudentEngine
from minimoe_dist.train.objectives import RelationObjective
from minimoe_dist.train.schedule import make_schedule

SEEDS = (776, 777)
RELATION_HEADS, LENGTH, LEARNING_RATE = 32, 128, 1e-3
CPU = torch.device("cpu")
Numbers = dict[str, float | str]


class Bench:
    """The demo's corpus and teacher, and training on them."""

    def __init__(self, corpus: str, steps: int, batch: int) -> None:
        self.corpus = corpus
        self.steps = steps
        self.batch = batch
        self.launch: Launch = detect_launch({})
        start_process_group(self.launch, prepare_environment(use_cpu=True), 600)
        self.teacher: RelationTeacher = load_teacher(self.config().teacher.model_name_or_path)

    def config(self, compat: str = "none") -> RunConfig:
        """The demo's recipe; ``compat`` decides the padding alone."""
        return load_run_config(
            str(find_recipe("demo.yaml")),
            [
                f"data.record_path_or_regex={self.corpus}",
                f"data.heldout_path_or_regex={self.corpus}_heldout",
                f"compat={compat}",
                f"training.per_device_train_batch_size={self.batch}",
                "parallel.expert_parallel_size=1",
            ],
        )

    def data(self, compat: str = "none") -> RunData:
        """Batches as long as their longest sample, or of the full length."""
        return open_data(self.config(compat))

    def micro_batches(self, count: int, compat: str = "none") -> list[MicroBatch]:
        """The first of the run's."""
        with self.data(compat).loader(self.config(compat), self.launch, 0) as loader:
            return [step.micro_batches[0] for step in islice(loader, count)]

    def plain_config(self, experts: tuple[int, int] = (1, 1), **changes: Any) -> Any:
        """Of the demo's student, 3 layers of hidden size 192."""
        return student_config(
            self.teacher.config, layers=3, hidden=192, heads=12, experts=experts,
            num_relation_heads=RELATION_HEADS, **changes,
        )  # fmt: skip

    def objective(self, **published: Any) -> RelationObjective:
        """Relations, exact unless said otherwise."""
        return RelationObjective(self.teacher, RELATION_HEADS, **published)

    def train(
        self,
        models: Mapping[str, torch.nn.Module],
        objective: RelationObjective,
        compat: str = "none",
    ) -> dict[str, float]:
        """Trains students on the same batches; held-out loss is exact and without dropout."""
        settings = {
            "train_micro_batch_size_per_gpu": self.batch,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": 1, "contiguous_gradients": True},
        }
        optimizer = AdamW(LEARNING_RATE, max_gradient_norm=5.0)
        engines = [
            StudentEngine(name, model, settings, optimizer, 1, CPU)
            for name, model in models.items()
        ]
        schedule = make_schedule("linear", LEARNING_RATE, self.steps, 0.05)
        balance = Balance(0.01, compat == "seed")
        learner = Distiller(engines, objective, schedule, seed=1, device=CPU, balance=balance)
        config, data = self.config(compat), self.data(compat)
        with data.loader(config, self.launch, 0) as loader:
            for step, batch in enumerate(islice(loader, self.steps)):
                learner.train_step(batch, step, stop_requested=False)
        judge = Distiller(engines, self.objective(), schedule, seed=1, device=CPU)
        return judge.evaluate(data.heldout_batches(config, self.launch))


def over_seeds(losses: Mapping[str, float], name: str) -> str:
    """A mean, and both seeds' values."""
    found = [losses[f"{name}-{seed}"] for seed in SEEDS]
    return f"{sum(found) / len(found):.4f} ({', '.join(f'{loss:.4f}' for loss in found)})"


def one_pass(student: Any, micro: MicroBatch) -> Any:
    """A student's output, with the samples' own noise."""
    return student(
        input_ids=micro.input_ids,
        attention_mask=micro.attention_mask,
        token_type_ids=micro.token_type_ids,
        sample_ids=micro.sample_ids,
    )


def processor_seconds(action: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of some runs after one that warms up."""
    action()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return min(times)


def dropout(bench: Bench) -> Numbers:
    """Dropout of 0.1 on the student's relations, all else equal (epsilons in both)."""
    numbers: Numbers = {}
    for words, probability in (("without", 0.0), ("with", 0.1)):
        models = {f"s-{seed}": build_student(bench.plain_config(), seed) for seed in SEEDS}
        objective = bench.objective(compat_seed=True, relation_dropout=probability)
        micro = bench.micro_batches(1)[0]
        given = objective.teach(micro)
        output = one_pass(models[f"s-{SEEDS[0]}"].train(), micro)
        first = objective.sums(output, given, micro)[0].item() / objective.counts(micro)[0]
        losses = bench.train(models, objective)
        numbers[f"training loss of the first batch {words}"] = first
        numbers[f"held-out loss {words}"] = over_seeds(losses, "s")
    return numbers


def routing(bench: Bench) -> Numbers:
    """Padding routed and counted in the balance, at full length; MiniMoE 1,4."""
    numbers: Numbers = {}
    for words, compat in (("packed", "none"), ("routed", "seed")):
        config = bench.plain_config((1, 4), compat_seed=compat == "seed")
        models = {f"s-{seed}": build_student(config, seed) for seed in SEEDS}
        micro = bench.micro_batches(1, compat)[0]
        output = one_pass(models[f"s-{SEEDS[0]}"].train(), micro)
        routed = output.routers[0].token_count.sum().item()
        tokens = micro.attention_mask.sum().item()
        numbers[f"share of routed tokens that are padding, {words}"] = 1 - tokens / routed
        numbers[f"held-out loss, {words}"] = over_seeds(
            bench.train(models, bench.objective(), compat), "s"
        )
    return numbers


def padding(bench: Bench) -> Numbers:
    """Pads always to the full length: what is computed of it, and a 1,4 student's time."""
    micro_batches = bench.micro_batches(40)
    tokens = sum(int(micro.attention_mask.sum()) for micro in micro_batches)
    rows = sum(len(micro.input_ids) for micro in micro_batches)
    longest = sum(micro.input_ids.numel() for micro in micro_batches)
    numbers: Numbers = {
        "share of positions that are padding at full length": 1 - tokens / (rows * LENGTH),
        "the same at each batch's longest sample": 1 - tokens / longest,
    }
    for words, compat in (("packed", "none"), ("full length, padding computed", "seed")):
        config = bench.plain_config((1, 4), compat_seed=compat == "seed")
        student = build_student(config, 1).train()
        chosen = bench.micro_batches(4, compat)

        def passes(student: Any = student, chosen: Any = chosen) -> None:
            for micro in chosen:
                output = one_pass(student, micro)
                sum(signal.square().mean() for signal in output.signals).backward()

        numbers[f"student's seconds a batch, {words}"] = processor_seconds(passes) / len(chosen)
    return numbers


def _published_relations(signal: Tensor, mask: Tensor) -> Tensor:
    heads = signal.unflatten(-1, (RELATION_HEADS, -1)).transpose(1, 2)
    scores = heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
    return (scores + (1.0 - mask[:, None, None, :].float()) * -1e4).softmax(-1)


def teacher_child(bench: Bench, way: str) -> Numbers:
    """One way of a teacher's pass in this process: seconds a batch, and memory on top."""
    from transformers import BertModel

    micro = bench.micro_batches(1, "seed")[0]
    inputs = (micro.input_ids, micro.attention_mask, micro.token_type_ids)
    if way == "cut":

        def run() -> object:
            return bench.teacher(*inputs)
    else:
        folder = resolve_model_path(bench.config().teacher.model_name_or_path)
        model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
        projected: list[Tensor] = []
        for layer in model.encoder.layer:
            for name in ("query", "key", "value"):
                part = layer.attention.self.get_submodule(name)
                part.register_forward_hook(lambda module, args, out: projected.append(out))

        def run() -> object:
            projected.clear()
            with torch.no_grad():
                model(micro.input_ids, micro.attention_mask.long(), micro.token_type_ids)
                return [_published_relations(signal, micro.attention_mask) for signal in projected]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = processor_seconds(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "mib": (peak - before) / 1024}


def teacher(bench: Bench) -> Numbers:
    """The teacher's pass, cut at the relation layer against relations of all layers, all kept."""
    numbers: Numbers = {}
    for way in ("cut", "published"):
        command = [sys.executable, __file__, f"--teacher_way={way}", f"--corpus={bench.corpus}"]
        command.append(f"--batch={bench.batch}")
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(out.splitlines()[-1])
        numbers[f"seconds a batch of {bench.batch}, {way}"] = found["seconds"]
        numbers[f"MiB on top of the model, {way}"] = found["mib"]
    return numbers


def sentences(bench: Bench) -> Numbers:
    """Text lost with sentences of at most seven space-separated words, and by the rule here."""
    raw = Path(bench.corpus).parent.parent / "text" / "wiki_00"
    found = {"English (the demo's text)": raw}
    for name in glob.glob("/usr/share/vim/vim*/tutor/tutor.zh_cn.utf-8"):
        found["Chinese (vim's tutorial)"] = Path(name)
    numbers: Numbers = {}
    rules = SentenceRules()
    for name, path in found.items():
        texts = [line for line in path.read_text("utf-8").splitlines() if line[:1] != "<"]
        lines = split_lines(texts)
        for rule, keeps in (("published", _has_eight_words), ("here", rules.is_long_enough)):
            kept = [line for line in lines if keeps(line)]
            lost = 1 - sum(map(len, kept)) / sum(map(len, lines))
            numbers[f"sentences lost, {name}, {rule}"] = 1 - len(kept) / len(lines)
            numbers[f"characters lost, {name}, {rule}"] = lost
    return numbers


def ends(bench: Bench) -> Numbers:
    """Sentences here that the published rule cuts inside: at every full stop and semicolon."""
    raw = Path(bench.corpus).parent.parent / "text" / "wiki_00"
    texts = [line for line in raw.read_text("utf-8").splitlines() if line[:1] != "<"]
    lines = split_lines(texts)
    cut = [line for line in lines if re.search(r"[.!?;。！？；…].*\w", line)]
    decimals = [line for line in lines if re.search(r"\d\.\d", line)]
    return {
        f"cut inside, of {len(lines)} sentences": len(cut) / len(lines),
        "cut in a number": len(decimals) / len(lines),
    }


def _has_eight_words(sentence: str) -> bool:
    return len(sentence.split()) > 7


def chunks(bench: Bench) -> Numbers:
    """Lines lost and documents cut where a file is dealt out to 8 or 64 workers in equal chunks."""
    folder = Path(bench.corpus).parent.parent / "formatted"
    (path, *_) = sorted(folder.glob("*.format"))
    lines = path.read_text("utf-8").splitlines()
    documents = sum(not line for line in lines)
    numbers: Numbers = {}
    for workers in (8, 64):
        edges = [len(lines) // workers * index for index in range(1, workers)]
        cut = sum(bool(lines[edge] and lines[edge - 1]) for edge in edges)
        numbers[f"lines dropped of {len(lines)}, {workers} workers"] = len(lines) % workers
        numbers[f"documents cut of {documents}, {workers} workers"] = cut
    return numbers


def tinybert(bench: Bench) -> Numbers:
    """How much less attention scores weigh where padding's count too."""
    counts = [0, 0]
    for micro in bench.micro_batches(40):
        for place, padded in enumerate((None, LENGTH)):
            counts[place] += tinybert_counts(
                micro.attention_mask, 384, 12, padded_length=padded
            ).scores
    return {"scores' error as a share of what it is over real pairs": counts[0] / counts[1]}


def norms(bench: Bench) -> Numbers:
    """Once-for-all sub-models of 2 of 4 layers, with and without the missing layers' LayerNorms."""
    models = {}
    for words, keeps in (("skipped", False), ("kept", True)):
        for seed in SEEDS:
            config = once_for_all_config(
                bench.teacher.config, layers=4, hidden=192, heads=12, sub_layers=[4, 2],
                sub_hidden=[192, 96], num_relation_heads=RELATION_HEADS, compat_seed=keeps,
            )  # fmt: skip
            config.relation_projections = True
            models[f"{words}-{seed}"] = build_student(config, seed, model_class=ElasticForRelations)
    losses = bench.train(models, bench.objective())
    return {
        f"held-out loss of {size}, LayerNorms {words}": over_seeds(
            {f"s-{seed}": losses[f"{words}-{seed}_{size}"] for seed in SEEDS}, "s"
        )
        for size in ("4l_192h", "2l_192h", "2l_96h")
        for words in ("skipped", "kept")
    }


def epsilons(bench: Bench) -> Numbers:
    """1e-7 inside the logarithms: the loss of a fresh student with them less without."""
    micro = bench.micro_batches(1)[0]
    student = build_student(bench.plain_config(), SEEDS[0]).eval()
    exact = bench.objective()
    with torch.no_grad():
        output = student(micro.input_ids, attention_mask=micro.attention_mask)
        given = exact.teach(micro)
        losses = [
            one.sums(output, given, micro)[0].item() / one.counts(micro)[0]
            for one in (exact, replace(exact, compat_seed=True))
        ]
    return {"exact loss": losses[0], "with epsilons, less that": losses[1] - losses[0]}


def order(bench: Bench) -> Numbers:
    """The hidden order of a sparse BERT-base as a parameter of half precision."""
    places = torch.arange(768.0)
    return {
        f"of 768 dimensions at a wrong place in {name}": int((places.to(dtype) != places).sum())
        for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16))
    }


MEASUREMENTS = {
    one.__name__: one
    for one in (
        sentences, ends, chunks, padding, order, tinybert, epsilons, teacher, dropout, routing,
        norms,
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MEASUREMENTS)}; default all")
    parser.add_argument("--corpus", default="runs/demo/corpus/demo", help="prefix, from make demo")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--teacher_way", choices=("cut", "published"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.corpus, arguments.steps, arguments.batch)
    if arguments.teacher_way:
        print(json.dumps(teacher_child(bench, arguments.teacher_way)))
        return
    for name in arguments.names or MEASUREMENTS:
        print(f"{name}: {MEASUREMENTS[name].__doc__}")
        for words, value in MEASUREMENTS[name](bench).items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(f"    {words}: {shown}", flush=True)


if __name__ == "__main__":
    main()
