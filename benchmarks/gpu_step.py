"""Distillation steps on one GPU: ours, the published way, pieces, and the whole command.

    python benchmarks/gpu_step.py [--cases ours published …] [--minutes 6] [--json FILE]

Every case is a process of its own: models with random weights, one batch of random ids, steps that
warm up (and compile), then blocks of steps by the clock, whose numbers are read a step behind as
training does. Of each, the fastest and the median block, the share of the limit that matrix
products of the same types set, waits of the host for the device, launches, and peak memory; of ours
also the parts of a step by the device's clock, and its kernels by time. The case named first is
measured again at the end, so that a drift of the machine shows. What the time does not suffice for
is left out and named. `--device cpu --size tiny` tries the script where there is no GPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpu_shapes import CASES, Case

AGAIN = "{} (again)"


def sized(case: Case, size: str) -> Case:
    """The case, or one for trying the script."""
    if size == "full":
        return case
    return replace(case, teacher="tiny", student=(2, 32), batch=8, length=32)


def measure(case: Case, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Starts a case's process; what it printed, or why it failed."""
    script = Path(__file__).with_name("gpu_cases.py")
    command = [sys.executable, str(script), "--case", json.dumps(asdict(case))]
    command += ["--device", options.device, "--folder", options.folder]
    command += ["--steps", str(options.steps), "--blocks", str(options.blocks)]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        return {"case": name, "failed": "took more than 240 s"}
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return {"case": name, "failed": said[-1], "said": said[-40:]}
    seconds = round(time.perf_counter() - started, 1)
    warnings = [line for line in done.stderr.splitlines() if "not compiled" in line
                or "not recorded" in line]  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    return {"case": name, **found, "took": seconds, "fallbacks": warnings}


def shown(row: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    """A line of the table."""
    name = row["case"]
    if "failed" in row:
        return f"{name:26} failed: {row['failed']}"
    if row["way"] == "limit":
        rates = ", ".join(f"{key} {value:.0f}" for key, value in row["tflops"].items())
        return f"{name:26} TFLOP/s: {rates}; memory {row['gb_per_second']:.0f} GB/s"
    if row["way"] == "command":
        return (
            f"{name:26} {row['sequences_per_second']:9.0f} sequences/s, "
            f"{row['of_the_step']:.2f} of the bare step on the same batches"
        )
    text = f"{name:26} {row['ms']:8.2f} ms {row['sequences_per_second']:9.0f} sequences/s"
    rates = results.get("limit", {}).get("tflops")
    if rates and row["flop"]:
        limit = sum(row["flop"][kind] / rates[kind] / 1e9 for kind in row["flop"])
        text += f" {limit / row['ms']:5.0%} of the limit"
    first = results.get("ours")
    if first is not None and first is not row:
        text += f" {row['ms'] / first['ms']:6.2f} x ours"
    return text + f" {row['peak_gb']:6.2f} GB {row['waits']:3} waits {row['launches']:5} launches"


def run_all(options: argparse.Namespace) -> None:
    """Measures cases one after the other while there is time, and writes what was found."""
    names = options.cases or list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.exit(f"--cases {unknown[0]}: there is no such case; give some of {', '.join(CASES)}")
    report: dict[str, Any] = {"started": time.strftime("%Y-%m-%d %H:%M"), "cases": []}
    results: dict[str, dict[str, Any]] = {}
    ends = time.monotonic() + 60 * options.minutes
    again = [AGAIN.format(names[0])] if len(names) > 1 else []
    for name in names + again:
        if time.monotonic() > ends:
            report.setdefault("left_out", []).append(name)
            continue
        case = sized(CASES[names[0] if name in again else name], options.size)
        results[name] = row = measure(case, name, options)
        report["device"] = row.get("device", report.get("device"))
        report["cases"].append(row)
        print(shown(row, results), flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if "left_out" in report:
        print("no time was left for:", ", ".join(report["left_out"]))
    print("on", report.get("device"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", help="some of: " + ", ".join(CASES))
    parser.add_argument("--minutes", type=float, default=6, help="starts no case after that")
    parser.add_argument("--steps", type=int, default=20, help="in a block")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--json", help="file for all numbers")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", default="full", choices=("full", "tiny"))
    parser.add_argument("--folder", help="where models are kept; by default a temporary one")
    options = parser.parse_args()
    if options.folder:
        run_all(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        run_all(options)


if __name__ == "__main__":
    main()
