"""The study of docs/results.md in one command: do students with experts learn more than plain ones?

    python benchmarks/study.py [corpus] [train] [measure] [time] [draw] [--text FOLDER] [--steps N]

(all parts by default; `make study` is the same.) ``corpus``: prose of Python's documentation and of
Debian's linux-doc-6.1, which apt-get fetches where --text names no folder of .rst files.
``train``: configs/recipes/study.yaml, study_longer.yaml with two seeds, study_sizes.yaml and
study_1000_steps.yaml with three, in two processes side by side; what was interrupted goes on, what
is finished is skipped. ``measure``: each export's relation loss against the first teacher on the
same held-out pairs. ``time``: processor seconds of each student's step.
``draw``: picture and table. The numbers are in docs/results/distillation.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from study_page import draw, table

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "configs" / "recipes"
RESULTS = ROOT / "docs" / "results"
PACKAGE, PAGES = "linux-doc-6.1", "usr/share/doc/linux-doc-6.1/Documentation"
SEEDS = (777, 778)
MEASURED_PAIRS = 512
TIMED_STEPS = 5


def fetch_text(folder: Path) -> Path:
    """The pages of Debian's package, unpacked below a folder."""
    pages = folder / PAGES
    if not pages.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=folder, check=True)
        (archive,) = folder.glob(f"{PACKAGE}_*.deb")
        subprocess.run(["dpkg", "-x", str(archive), str(folder)], check=True)
    return pages


def build_corpus(folder: Path, text: str | None) -> None:
    """Documentation to sentences to ``folder/corpus/study.bin/.idx``, and a held-out part."""
    from minimoe_dist.config import load_stages
    from minimoe_dist.corpus.build import build_indexed, format_files
    from minimoe_dist.corpus.reading import ReadingOptions
    from minimoe_dist.corpus.sources import documentation_folder, python_documentation, write_wiki
    from minimoe_dist.corpus.tokenizing import load_tokenizer

    pages = Path(text) if text else fetch_text(folder / "text")
    raw = folder / "text" / "wiki_00"
    documents = [*python_documentation(), *documentation_folder(pages)]
    write_wiki(documents, str(raw))
    options = ReadingOptions(num_processors=os.cpu_count() or 1)
    format_files([str(raw)], str(folder / "formatted"), options)
    name = load_stages(str(RECIPES / "study.yaml"))[0].teacher.model_name_or_path
    result = build_indexed(
        [str(folder / "formatted" / "wiki_00.format")],
        str(folder / "corpus" / "study"),
        load_tokenizer(name),
        options,
        heldout_fraction=0.05,
        overwrite=True,
        tokenizer_name=name,
    )
    for part, manifest in result.parts():
        print(f"{part}: {manifest.summary()}")


def write_recipes(folder: Path, steps: int | None) -> tuple[list[Path], list[Path]]:
    """The shipped recipes on this folder, two of them with several seeds.

    Returns:
        What each of the two processes trains, in order.
    """
    main, longer, sizes, thousand = (
        yaml.safe_load((RECIPES / f"{name}.yaml").read_text("utf-8"))
        for name in ("study", "study_longer", "study_sizes", "study_1000_steps")
    )
    recipes = {f"seed_{main['seed']}": main}
    for seed in SEEDS:
        recipes[f"seed_{seed}"] = {**longer, "seed": seed}
    recipes |= {"sizes": sizes, "steps_1000": thousand}
    for seed in SEEDS:
        recipes[f"steps_1000_seed_{seed}"] = {**thousand, "seed": seed}
    paths = {}
    for name, recipe in recipes.items():
        recipe["output_dir"] = str(folder / name)
        corpus = str(folder / "corpus" / "study")
        data = {"record_path_or_regex": corpus, "heldout_path_or_regex": corpus + "_heldout"}
        recipe["data"] = {**recipe["data"], **data}
        if steps is not None:
            recipe["training"] = {**recipe["training"], "max_steps": steps}
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(recipe, sort_keys=False))
    long = [path for name, path in paths.items() if name.startswith("steps_1000")]
    return [path for path in paths.values() if path not in long], long


def train(folder: Path, steps: int | None) -> None:
    """Two processes of one thread each, which share nothing."""
    lanes = write_recipes(folder, steps)

    def run(lane: list[Path]) -> None:
        for recipe in lane:
            command = [sys.executable, "-m", "minimoe_dist", "distill", "--config", str(recipe)]
            subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})

    with ThreadPoolExecutor() as pool:
        list(pool.map(run, lanes))


def stages_of(folder: Path) -> Iterator[tuple[str, Any]]:
    """("seed_N/STAGE", its options), of all that are finished, in order."""
    from minimoe_dist.config import load_stages
    from minimoe_dist.runs.folder import RunFolder

    for path in sorted(folder.glob("*.yaml")):
        stages = load_stages(str(path))
        for stage in stages:
            alone = path.stem.partition("_seed_")[0]
            name = alone if len(stages) == 1 else Path(stage.output_dir).name
            if RunFolder(Path(stage.output_dir)).summary.is_file():
                yield f"seed_{stage.seed}/{name}", stage


def measure(folder: Path) -> dict[str, Any]:
    """Every export against the first teacher on the same held-out pairs, and its curves."""
    import torch

    torch.set_num_threads(1)
    stages = list(stages_of(folder))
    students = [
        {
            "run": name,
            "seed": stage.seed,
            "name": student.name,
            "teacher": Path(stage.teacher.model_name_or_path).name,
            **summary_of(stage)[student.name],
            "training_curve": training_curve(stage, student.name),
            "heldout_curve": heldout_curve(stage, student.name),
        }
        for name, stage in stages
        for student in stage.students
    ]
    first = stages[0][1]
    losses = heldout_losses([student.pop("export") for student in students], first)
    for student, loss in zip(students, losses, strict=True):
        student["heldout_loss"] = round(loss, 5)
    return {"setup": setup(first), "students": students}


def summary_of(stage: Any) -> dict[str, dict[str, Any]]:
    """What training says of each student: its words, compute, parameters and export."""
    from minimoe_dist.runs.folder import RunFolder
    from minimoe_dist.runs.summaries import Summary

    summary = Summary.read(RunFolder(Path(stage.output_dir)).summary)
    wanted = {"student", "student_gmac", "student_parameters", "export"}
    return {name: student.model_dump(include=wanted) for name, student in summary.students.items()}


def metrics_of(stage: Any) -> Any:
    """What training wrote of a stage."""
    from minimoe_dist.runs.folder import RunFolder
    from minimoe_dist.runs.metrics import SavedMetrics

    return SavedMetrics.read(RunFolder(Path(stage.output_dir)).metrics)


def training_curve(stage: Any, name: str) -> list[list[float]]:
    """[step, mean relation loss of the steps since the entry before]."""
    return [
        [line.step, round(line.students[name].relation_loss, 5)]
        for line in metrics_of(stage).trained
    ]


def heldout_curve(stage: Any, name: str) -> list[list[float]]:
    return [[line.step, round(line.heldout_loss[name], 5)] for line in metrics_of(stage).evaluated]


def setup(stage: Any) -> dict[str, Any]:
    """What all runs share."""
    from minimoe_dist.data.indexed_format import read_layout, read_manifest

    tokens = {}
    for part in (stage.data.record_path_or_regex, stage.data.heldout_path_or_regex):
        prefix = part[0].path
        manifest = read_manifest(prefix, read_layout(prefix))
        tokens[Path(prefix).name] = manifest.num_tokens
    return {
        "teacher": stage.teacher.model_name_or_path,
        "tokens": tokens,
        "max_length": stage.data.max_length,
        "batch": stage.training.per_device_train_batch_size,
        "steps": stage.training.max_steps,
        "learning_rate": stage.training.learning_rate,
        "num_relation_heads": stage.objective.num_relation_heads,
        "measured_pairs": MEASURED_PAIRS,
    }


def heldout_losses(exports: Sequence[str], config: Any) -> list[float]:
    """Relation losses of exported students, all in float32 and on the same pairs."""
    import torch

    from minimoe_dist.data.loader import heldout_batches
    from minimoe_dist.models.teacher import load_teacher
    from minimoe_dist.objectives.relations import relation_loss_sum
    from minimoe_dist.recipes.corpora import open_data

    data = open_data(config)
    assert data.heldout is not None
    teacher = load_teacher(config.teacher.model_name_or_path, dtype="float32")
    students = [load_for_relations(export) for export in exports]
    heads, sums, rows = config.objective.num_relation_heads, [0.0] * len(students), 0
    batches = heldout_batches(
        data.heldout, data.collate, count=MEASURED_PAIRS, batch_size=64, rank=0, world_size=1
    )
    with torch.no_grad():
        for batch in batches:
            ids, mask, segments = batch.input_ids, batch.attention_mask, batch.token_type_ids
            signals = teacher(ids, mask, segments)
            for place, student in enumerate(students):
                own = student(ids, attention_mask=mask, token_type_ids=segments).signals
                loss, count = relation_loss_sum(own, signals, mask, heads)
                sums[place] += loss.item()
            rows += count
    return [total / (3 * rows) for total in sums]


def load_for_relations(export: str) -> Any:
    from minimoe_dist.checkpoints.export import load_student

    return load_student(export).eval()


def costs(stages: Sequence[Any]) -> list[dict[str, Any]]:
    """Processor seconds of one thread: a step without the teacher's part, and the student alone."""
    from minimoe_dist.process_group import start_process_group
    from minimoe_dist.recipes.corpora import open_data
    from minimoe_dist.recipes.model_types import open_lesson
    from minimoe_dist.runtime import detect_launch, prepare_environment

    launch, config = detect_launch({}), stages[0]
    device = start_process_group(launch, prepare_environment(use_cpu=True), 60)
    lesson = open_lesson(config, device)
    with open_data(config).loader(config, launch, 0) as loader:
        batches = [next(loader) for _ in range(TIMED_STEPS)]
    micro = [batch.micro_batches[0] for batch in batches]
    teaching = fastest(lambda batch: lesson.objective.teach(batch), micro)
    found: dict[str, dict[str, Any]] = {}
    for stage in stages:
        for student in stage.students:
            key = f"{student.layer}L;{student.hidden}H {student.moe}"
            if key not in found:
                step, alone = cost_of(stage, student, lesson, batches, device)
                numbers = {"step": step - teaching, "inference": alone}
                found[key] = {name: round(value, 4) for name, value in numbers.items()}
    rows = [{"student": key, **numbers} for key, numbers in found.items()]
    return [{"student": "teacher", "step": round(teaching, 4)}, *rows]


def cost_of(
    stage: Any, options: Any, lesson: Any, batches: Any, device: Any
) -> tuple[float, float]:
    """Of a fresh student: a whole training step, and its encoder's pass without gradients."""
    import torch

    from minimoe_dist.config import deepspeed_settings
    from minimoe_dist.models.build import build_student, student_config
    from minimoe_dist.train.distillation import Distiller
    from minimoe_dist.train.engine import AdamW, StudentEngine
    from minimoe_dist.train.schedule import make_schedule

    config = student_config(
        lesson.teacher,
        layers=options.layer,
        hidden=options.hidden,
        heads=options.heads,
        experts=(options.attention_experts, options.feedforward_experts),
        num_relation_heads=stage.objective.num_relation_heads,
    )
    model = build_student(config, stage.seed)
    engine = StudentEngine("student", model, deepspeed_settings(stage, 1), AdamW(1e-3), 1, device)
    schedule = make_schedule("constant", 1e-3, 100, 0.0)
    distiller = Distiller([engine], lesson.objective, schedule, seed=stage.seed, device=device)
    step = fastest(lambda batch: distiller.train_step(batch, 0, False), batches)
    encoder = model.float().eval().bert

    def infer(batch: Any) -> None:
        with torch.no_grad():
            encoder(batch.micro_batches[0].input_ids, batch.micro_batches[0].attention_mask)

    return step, fastest(infer, batches)


def fastest(action: Any, batches: Sequence[Any]) -> float:
    """Processor seconds, so that other work on the machine does not count; the first warms up."""
    action(batches[0])
    times = []
    for batch in batches:
        started = time.process_time()
        action(batch)
        times.append(time.process_time() - started)
    return min(times)


PARTS = ("corpus", "train", "measure", "time", "draw")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=PARTS, help=" ".join(PARTS))
    parser.add_argument("--text", help="folder of .rst or .rst.gz pages; default Debian's package")
    parser.add_argument("--steps", type=int, help="of every stage; default the recipes'")
    parser.add_argument("--folder", default="runs/study", help="corpus and runs")
    parser.add_argument("--results", default=str(RESULTS), help="numbers and picture")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: give parts of {', '.join(PARTS)}")
    folder, results = Path(arguments.folder), Path(arguments.results)
    numbers = results / "distillation.json"
    if "corpus" in arguments.parts:
        build_corpus(folder, arguments.text)
    if "train" in arguments.parts:
        train(folder, arguments.steps)
    found = json.loads(numbers.read_text("utf-8")) if numbers.is_file() else {}
    if "measure" in arguments.parts:
        found |= measure(folder)
    if "time" in arguments.parts:
        found["costs"] = costs([stage for _, stage in stages_of(folder)])
    if {"measure", "time"} & set(arguments.parts):
        results.mkdir(parents=True, exist_ok=True)
        numbers.write_text(json.dumps(found) + "\n")
    if "draw" in arguments.parts:
        draw(found, numbers.with_suffix(".png"))
        print(table(found))


if __name__ == "__main__":
    main()
