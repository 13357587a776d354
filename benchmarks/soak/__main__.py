"""Runs the trials one after the other, and writes the page; see the package."""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minimoe_dist.durable import make_empty, write_json
from tests.commands.support import Workshop

from . import corpora, endurance, fuzz, kills, layouts, page, ranks, refusals
from .clock import Clock
from .goals import is_missed
from .shop import make_workshop, preload

ROOT = Path(__file__).parents[2]
WHOLE_MINUTES = 10  # a trial of less is no page of the documentation
Trial = Callable[[Workshop, Clock, random.Random], dict[str, Any]]
# name -> (trial, its share of the time, what it counts); what one leaves, later ones get
TRIALS: dict[str, tuple[Trial, float, str]] = {
    "inputs": (refusals.try_inputs, 0.12, "inputs"),
    "layouts": (layouts.try_layouts, 0.05, "layouts"),
    "saves": (endurance.try_saves, 0.02, "saves"),
    "stopped": (ranks.try_stops, 0.03, "stops"),
    "starts": (ranks.try_starts, 0.07, "starts"),
    "useful": (ranks.try_useful_time, 0.16, "steps"),
    "endurance": (endurance.try_endurance, 0.14, "steps"),
    "fuzz": (fuzz.try_fuzz, 0.04, "cases"),
    "corpora": (corpora.try_kills, 0.07, "kills"),
    "kills": (kills.try_kills, 0.32, "kills"),
}


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """When, on what, and of which revision."""
    git = ["git", "describe", "--always", "--dirty"]
    described = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": options.seed,
        "minutes": options.minutes,
        "revision": described.stdout.strip(),
        "cores": ranks.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "deepspeed": version("deepspeed"),
        "load": round(os.getloadavg()[0], 1),
        "load_after": round(os.getloadavg()[0], 1),
    }


def run_trials(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Does what is not done yet, and returns all figures."""
    kept = folder / "figures.json"
    now = facts(options)
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    same = ("seed", "minutes", "revision")
    if any(results.get("facts", {}).get(name) != now[name] for name in same):
        results = {"facts": now}
    work = folder / "work"
    make_empty(work)
    workshop = make_workshop(work)
    preload()
    wanted = [name for name in TRIALS if name in options.only and name not in results]
    spent = sum(figures.get("seconds_spent", 0) for figures in results.values())
    ends = time.monotonic() + 60 * options.minutes - spent
    for number, name in enumerate(wanted):
        trial, share, unit = TRIALS[name]
        left = max(1.0, ends - time.monotonic())
        clock = Clock(name, left * share / sum(TRIALS[one][1] for one in wanted[number:]), unit)
        try:
            results[name] = trial(workshop, clock, random.Random(f"{options.seed} {name}"))
        except AssertionError as error:
            results[name] = {"faults": [f"the trial ended early: {error}"]}
        clock.close()
        results[name]["seconds_spent"] = round(clock.elapsed)
        results["facts"]["load_after"] = round(os.getloadavg()[0], 1)
        write_json(kept, results)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=776)
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "soak")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the runs
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    results = run_trials(options, folder)
    is_whole = options.minutes >= WHOLE_MINUTES and set(TRIALS) <= set(results)
    target = ROOT / "docs" if is_whole else folder
    written = page.write(results, target)
    if set(TRIALS) <= set(results):
        (folder / "figures.json").rename(folder / "last.json")  # the next one begins anew
    print(page.table(results))
    faults = [
        f"{name}: {fault}" for name in TRIALS for fault in results.get(name, {}).get("faults", [])
    ]
    print(*faults, sep="\n", file=sys.stderr)
    print(f"written to {written}")
    return int(
        is_missed(results) or any(results[one].get("faults") for one in TRIALS if one in results)
    )


if __name__ == "__main__":
    sys.exit(main())
