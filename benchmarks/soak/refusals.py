"""Bad inputs by the real command line: each must be refused in one line and in seconds."""

import random
import re
import shutil
import subprocess
import sys
import time
from typing import Any

from tests.commands import support
from tests.commands.support import Workshop

from .bad_inputs import BAD_INPUTS, BadInput, Bench
from .clock import Clock
from .goals import REFUSAL_SECONDS, refusal_problem

PATIENCE, TRIES = 30.0, 3
_BAR = re.compile(r"^$|^\w+: .*B/s\]$")


def try_inputs(workshop: Workshop, clock: Clock, chooser: random.Random) -> dict[str, Any]:
    """All bad inputs, in random order, as many as fit into the time."""
    figures: dict[str, Any] = {"inputs": [], "known": len(BAD_INPUTS), "faults": []}
    for bad in chooser.sample(BAD_INPUTS, len(BAD_INPUTS)):
        if clock.left <= 0 and figures["inputs"]:
            break
        result, said = _try(bad, workshop)
        figures["inputs"].append(result)
        if result["problem"]:
            figures["faults"].append(f"{bad.name}: {result['problem']}\n{said[-800:]}")
        clock.counted()
    figures["inputs"].sort(key=lambda one: one["name"])
    return figures


def _try(bad: BadInput, workshop: Workshop) -> tuple[dict[str, Any], str]:
    """Tries an input; again where it was only slow, as something else may have been at work."""
    folder = workshop.folder / "bad"
    fastest, problem, said = PATIENCE, "", ""
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        bench = Bench.set_up(folder, workshop)
        bad.prepare(bench)
        command = bench.command(bad)
        status, said, seconds = run(command)
        fastest = min(fastest, seconds)
        problem = refusal_problem(status, said, bad.says, fastest, bad.status)
        if not problem and (bench.output_dir / "metrics.jsonl").exists():
            problem = "began to train"
        if not problem or seconds <= REFUSAL_SECONDS:
            break
    result = {
        "name": bad.name,
        "command": bad.words[0],
        "seconds": round(fastest, 2),
        "problem": problem,
    }
    return result, said


def run(command: list[str]) -> tuple[int | None, str, float]:
    """Runs a command; returns its status, None for one that did not end, its words and seconds."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *command],
            env=support.clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        return None, str(error.stdout or ""), PATIENCE
    # How far a tool has read is no part of what it says of its inputs.
    said = "".join(line for line in done.stdout.splitlines(True) if not _BAR.search(line))
    return done.returncode, said, time.monotonic() - started
