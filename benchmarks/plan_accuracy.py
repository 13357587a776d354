"""Memory as `minimoe-dist plan` predicts it, against the peak of runs that are really made.

    python benchmarks/plan_accuracy.py [--only NAME …] [--folder runs/benchmarks/plan]

Each configuration trains a few steps with `minimoe-dist distill` on one or two processes, and this
process reads from outside what each has held at most (`VmHWM` of /proc/PID/status: the peak of its
resident memory). The largest rank's is compared with the plan's for the same recipe.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml

VOCABULARY = 30522
TEACHERS = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12},
}
POLL_SECONDS = 0.02

# name -> (teacher, ranks, student, training, parallel)
CONFIGURATIONS = {
    "dense 3L;384H": ("base", 1, {"layer": 3, "moe": "1,1"}, 32, {"zero_stage": 0}),
    "1,4 6L;384H": ("base", 1, {"layer": 6, "moe": "1,4"}, 32, {"zero_stage": 1}),
    "1,4 6L;384H, ZeRO-2": ("base", 2, {"layer": 6, "moe": "1,4"}, 16, {"zero_stage": 2}),
    "1,4 6L;384H, EP 2": (
        "base", 2, {"layer": 6, "moe": "1,4"}, 16, {"zero_stage": 1, "expert_parallel_size": 2},
    ),
    "4,4 3L;384H bf16": (
        "base", 1, {"layer": 3, "moe": "4,4"}, 32, {"zero_stage": 1, "precision": "bf16"},
    ),
    "dense 6L;768H, ZeRO-3": (
        "small", 2, {"layer": 6, "hidden": 768, "moe": "1,1"}, 16, {"zero_stage": 3},
    ),
    "1,8 4L;384H of large": ("large", 1, {"layer": 4, "moe": "1,8"}, 16, {"zero_stage": 1}),
    "1,2 4L;384H": ("base", 1, {"layer": 4, "moe": "1,2"}, 24, {"zero_stage": 1}),
    "dense 12L;384H, ZeRO-2": ("base", 2, {"layer": 12, "moe": "1,1"}, 12, {"zero_stage": 2}),
    "2,1 6L;384H bf16": (
        "base", 1, {"layer": 6, "moe": "2,1"}, 24, {"zero_stage": 1, "precision": "bf16"},
    ),
    "1,4 4L;768H, ZeRO-0": (
        "small", 1, {"layer": 4, "hidden": 768, "moe": "1,4"}, 16, {"zero_stage": 0},
    ),
    "2,2 6L;384H of large, ZeRO-1": (
        "large", 2, {"layer": 6, "moe": "2,2"}, 8, {"zero_stage": 1},
    ),
    "1,8 3L;384H bf16, ZeRO-2": (
        "base", 2, {"layer": 3, "moe": "1,8"}, 16, {"zero_stage": 2, "precision": "bf16"},
    ),
    "dense 4L;768H": ("base", 1, {"layer": 4, "hidden": 768, "moe": "1,1"}, 16, {"zero_stage": 1}),
    # Those above have shaped the prediction; those below had no part in it.
    "1,2 6L;384H of large, bf16": (
        "large", 1, {"layer": 6, "moe": "1,2"}, 16, {"zero_stage": 1, "precision": "bf16"},
    ),
    "dense 6L;384H, ZeRO-3": ("base", 2, {"layer": 6, "moe": "1,1"}, 16, {"zero_stage": 3}),
    "2,4 4L;384H, EP 2, bf16": (
        "base", 2, {"layer": 4, "moe": "2,4"}, 16,
        {"zero_stage": 1, "expert_parallel_size": 2, "precision": "bf16"},
    ),
    "1,4 3L;768H, ZeRO-2": (
        "base", 1, {"layer": 3, "hidden": 768, "moe": "1,4"}, 12, {"zero_stage": 2},
    ),
    "dense 12L;384H, ZeRO-0": (
        "small", 2, {"layer": 12, "moe": "1,1"}, 12, {"zero_stage": 0},
    ),
}  # fmt: skip


def make_teacher(folder: Path, size: str) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizer

    target = folder / f"teacher_{size}"
    if (target / "model.safetensors").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"word{index}" for index in range(VOCABULARY - len(special))]
    (target / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(vocab=str(target / "vocab.txt")).save_pretrained(target)
    sizes = TEACHERS[size]
    config = BertConfig(vocab_size=VOCABULARY, intermediate_size=4 * sizes["hidden_size"], **sizes)
    BertModel(config).save_pretrained(target)
    return target


def make_corpus(folder: Path, tokenizer: Path) -> Path:
    import numpy as np

    from minimoe_dist.corpus.tokenizing import describe_tokenizer, load_tokenizer
    from minimoe_dist.data.indexed_writing import IndexedCorpusWriter

    prefix = folder / "corpus"
    if prefix.with_suffix(".idx").exists():
        return prefix
    generator = np.random.default_rng(1)
    record = describe_tokenizer(load_tokenizer(str(tokenizer)), tokenizer.name)
    with IndexedCorpusWriter(str(prefix), VOCABULARY, tokenizer=record) as writer:
        for _ in range(300):
            lengths = generator.integers(10, 40, generator.integers(10, 40))
            writer.add_document([generator.integers(5, VOCABULARY, n) for n in lengths])
    return prefix


def write_recipe(folder: Path, name: str) -> tuple[Path, int]:
    size, ranks, student, batch, parallel = CONFIGURATIONS[name]
    teacher = make_teacher(folder, size)
    slug = "".join(letter if letter.isalnum() else "_" for letter in name)
    dense = student["moe"] == "1,1"
    recipe = {
        "model_type": "bert_minilm" if dense else "moebert_minilm",
        "output_dir": str(folder / "runs" / slug),
        "resume": "never",
        "teacher": {"model_name_or_path": str(teacher), "dtype": "float32"},
        "students": [{"hidden": 384, "heads": 12, **student}],
        "data": {
            "record_path_or_regex": str(make_corpus(folder, teacher)),
            "short_sequence_probability": 0.0,
        },
        "training": {
            "per_device_train_batch_size": batch,
            "max_steps": 8,
            "log_interval": 1,
            "save_interval": 4,
        },
        "parallel": {"use_cpu": True, **parallel},
    }
    path = folder / f"{slug}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path, ranks


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held so far; 0 for one that is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in text.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return 1024 * int(line.split()[1])


def measure(recipe: Path, ranks: int) -> float:
    """The peak in bytes of the rank that holds most."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    log, processes, peaks = recipe.with_suffix(".log").open("w"), [], [0] * ranks
    command = [sys.executable, "-m", "minimoe_dist", "distill", "--config", str(recipe)]
    for rank in range(ranks):
        launch = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        launch |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **(launch if ranks > 1 else {})}
        processes.append(
            subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        )
    while any(process.poll() is None for process in processes):
        now = [peak_bytes(process.pid) for process in processes]
        peaks = [max(pair) for pair in zip(peaks, now, strict=True)]
        time.sleep(POLL_SECONDS)
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{recipe} failed: see {log.name}")
    return max(peaks)


def predict(recipe: Path, ranks: int) -> float:
    """The plan's bytes of a rank."""
    from minimoe_dist.bench.machines import machine_folders
    from minimoe_dist.config import load_run_config
    from minimoe_dist.planning.corpora import corpus_of
    from minimoe_dist.planning.machine import load_machine
    from minimoe_dist.planning.plan import Planner
    from minimoe_dist.recipes.meta_passes import MetaPasses

    config = load_run_config(str(recipe))
    machine = load_machine("2core", machine_folders(), {"ranks_per_node": ranks})
    planner = Planner(config, corpus_of(config, None), passes=MetaPasses(config, {}))
    return planner.plan(machine).recipe.memory_total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(CONFIGURATIONS), help="names")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/plan"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("| configuration | teacher | ranks | predicted MiB | measured MiB | off |")
    print("|---|---|---|---|---|---|")
    for name in arguments.only:
        recipe, ranks = write_recipe(arguments.folder, name)
        predicted, measured = predict(recipe, ranks) / 2**20, measure(recipe, ranks) / 2**20
        print(
            f"| {name} | {CONFIGURATIONS[name][0]} | {ranks} | {predicted:,.0f} | "
            f"{measured:,.0f} | {predicted / measured - 1:+.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
