"""Memory of each rank of a run, by the teacher's layout, measured from outside.

    python benchmarks/teacher_memory.py --teacher FOLDER [--layouts replicated,zero3,tensor]
        [--ranks 2] [--dtype bfloat16] [--batch 4] [--length 64] [--steps 4] [--relation_layer -1]

Each layout is a run of its own: `minimoe-dist distill` under torchrun on CPUs, on random text of
the teacher's vocabulary, with a 6L;384H 1,4E student (ZeRO-1, experts over two ranks if there are
as many). While it runs, every rank's /proc entry is read ten times a second. "resident" is the
kernel's own record of the peak (VmHWM) and counts a file's pages that several ranks map once for
each; "proportional" shares them out (PSS), "own" leaves them out (RssAnon + RssShmem). With
`--relation_layer 1` next to nothing of the teacher is loaded: what is left is the rest of the run.
"""

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml


def make_text(folder: Path, teacher: str) -> tuple[Path, Path]:
    """A tokenizer of as many words as the teacher knows, and a corpus of random ones."""
    from transformers import BertTokenizer

    from minimoe_dist.corpus.tokenizing import describe_tokenizer, load_tokenizer
    from minimoe_dist.data.indexed_writing import IndexedCorpusWriter

    vocabulary = json.loads((Path(teacher) / "config.json").read_text())["vocab_size"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"word{index}" for index in range(vocabulary - len(special))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = folder / "tokenizer"
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(tokenizer)
    shutil.copy(Path(teacher) / "config.json", tokenizer)  # makes it a model's folder
    record = describe_tokenizer(load_tokenizer(str(tokenizer)), "random words")
    generator = np.random.default_rng(0)
    with IndexedCorpusWriter(str(folder / "text"), vocabulary, tokenizer=record) as writer:
        for _ in range(500):
            lengths = generator.integers(5, 30, 6)
            writer.add_document([generator.integers(5, vocabulary, length) for length in lengths])
    return tokenizer, folder / "text"


def write_recipe(folder: Path, given: argparse.Namespace, tokenizer: Path, text: Path) -> Path:
    student = {"layer": 6, "hidden": 384, "heads": 12, "moe": "1,4"}
    values = {
        "output_dir": str(folder / "run"),
        "teacher": {
            "model_name_or_path": given.teacher,
            "tokenizer_name_or_path": str(tokenizer),
            "dtype": given.dtype,
            "relation_layer": given.relation_layer,
        },
        "students": [student],
        "data": {"record_path_or_regex": str(text), "max_length": given.length},
        "training": {
            "per_device_train_batch_size": given.batch,
            "max_steps": given.steps,
            "log_interval": 1,
            "save_interval": given.steps,
        },
        "parallel": {
            "use_cpu": True,
            "expert_parallel_size": 1 if given.ranks % 2 else 2,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def ranks_of(agent: int) -> list[int]:
    """Process ids of the ranks that torchrun started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"\nPPid:\t{agent}\n" in path.read_text():
                found.append(int(path.parent.name))
    return sorted(found)


def memory_of(pid: int) -> dict[str, int]:
    """Bytes, now; the resident peak is the kernel's."""
    status = Path(f"/proc/{pid}/status").read_text()
    field = {key: int(kilo) * 1024 for key, kilo in re.findall(r"(\w+):\s+(\d+) kB", status)}
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    shared_out = int(rollup.split("\nPss:")[1].split()[0]) * 1024
    own = field["RssAnon"] + field["RssShmem"]
    return {"resident": field["VmHWM"], "proportional": shared_out, "own": own}


def measure(recipe: Path, layout: str, ranks: int) -> tuple[list[dict[str, int]], float]:
    """Each rank's peaks, and the run's seconds."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(ranks), "-m", "minimoe_dist", "distill",
        "--config", str(recipe), "--resume=never", f"--teacher_layout={layout}",
    ]  # fmt: skip
    peaks: dict[int, dict[str, int]] = {}
    started = time.perf_counter()
    with subprocess.Popen(command) as agent:
        while agent.poll() is None:
            for pid in ranks_of(agent.pid):
                with contextlib.suppress(OSError, KeyError, IndexError):
                    now = memory_of(pid)
                    before = peaks.get(pid, now)
                    peaks[pid] = {key: max(before[key], now[key]) for key in now}
            time.sleep(0.1)
    if agent.returncode:
        raise SystemExit(f"{layout}: the run ended with {agent.returncode}")
    return [peaks[pid] for pid in sorted(peaks)], time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", required=True, help="model folder with safetensors")
    parser.add_argument("--layouts", default="replicated,zero3,tensor")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=4, help="of a rank")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--relation_layer", type=int, default=-1)
    given = parser.parse_args()
    from minimoe_dist.runs.folder import RunFolder
    from minimoe_dist.runs.summaries import Summary

    print("| layout | teacher's weights | resident | proportional | own | seconds a step |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_recipe(folder, given, *make_text(folder, given.teacher))
        for layout in given.layouts.split(","):
            peaks, _ = measure(recipe, layout, given.ranks)
            summary = Summary.read(RunFolder(folder / "run").summary)
            columns = [
                f"{summary.teacher_bytes_per_rank / 1e9:.2f}",
                *(
                    " / ".join(f"{peak[key] / 1e9:.2f}" for peak in peaks)
                    for key in ("resident", "proportional", "own")
                ),
                f"{given.batch * given.ranks / summary.sequences_per_second:.1f}",
            ]
            print(f"| {layout} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
