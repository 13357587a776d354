"""The fuzzing of foreign bytes by tests/fuzz, where it is, and what its report says."""

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.commands.support import Workshop

from .clock import Clock

ROOT = Path(__file__).parents[2]


def try_fuzz(workshop: Workshop, clock: Clock, chooser: random.Random) -> dict[str, Any]:
    """Runs the fuzzers for the whole time."""
    if not (ROOT / "tests" / "fuzz").is_dir():
        return {}
    report = workshop.folder / "fuzz.json"
    report.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider",
        "tests/fuzz", f"--fuzz_seconds={max(1, round(clock.left))}",
        f"--fuzz_seed={chooser.randrange(1 << 31)}", f"--fuzz_report={report}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not report.is_file():
        words = (done.stdout + done.stderr)[-1500:]
        return {"cases": 1, "faults": [words]}
    figures = read_report(json.loads(report.read_text()))
    clock.counted(figures["cases"])
    if done.returncode and not figures["faults"]:
        # A test that failed is a fault, whatever the report counts.
        figures |= {"faults": [done.stdout[-1500:]]}
    return figures


def read_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the number of damaged files, and each format's first fault."""
    formats = report["formats"]
    return {
        "cases": sum(counts["files"] for counts in formats.values()),
        "faults": [
            f"{name}: {counts['fault'][-1500:]}"
            for name, counts in formats.items()
            if counts["faults"]
        ],
    }
