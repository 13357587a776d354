"""Bad inputs by the real command line: each must be refused in one line and in seconds."""

import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.commands import support
from tests.commands.support import Workshop

from .bad_inputs import BAD_INPUTS, BadInput, Bench
from .clock import Clock
from .goals import refusal_problem

PATIENCE, _AT_A_TIME = 60.0, 4
_BAR = re.compile(r"^$|^\w+: .*B/s(\]|$|, .* left$)")


def try_inputs(workshop: Workshop, clock: Clock, chooser: random.Random) -> dict[str, Any]:
    """All bad inputs, in random order, as many as fit into the time, some at a time."""
    tried: list[tuple[BadInput, dict[str, Any], str]] = []
    pending = chooser.sample(BAD_INPUTS, len(BAD_INPUTS))
    lock = threading.Lock()

    def work(number: int) -> None:
        while True:
            with lock:
                if not pending or (clock.left <= 0 and tried):
                    return
                bad = pending.pop()
            result, said = _try(bad, workshop, workshop.folder / f"bad_{number}")
            with lock:
                tried.append((bad, result, said))
                clock.counted()

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        list(pool.map(work, range(_AT_A_TIME)))
    tried.sort(key=lambda one: one[0].name)
    return {
        "inputs": [result for _, result, _ in tried],
        "known": len(BAD_INPUTS),
        "faults": [
            f"{bad.name}: {result['problem']}\n{said[-800:]}"
            for bad, result, said in tried
            if result["problem"]
        ],
    }


def _try(bad: BadInput, workshop: Workshop, folder: Path) -> tuple[dict[str, Any], str]:
    shutil.rmtree(folder, ignore_errors=True)
    bench = Bench.set_up(folder, workshop)
    bad.prepare(bench)
    status, said, seconds = run(bench.command(bad), folder / "said")
    problem = refusal_problem(status, said, bad.says, seconds, bad.status)
    if not problem and (bench.output_dir / "metrics.jsonl").exists():
        problem = "began to train"
    result = {
        "name": bad.name,
        "command": bad.words[0],
        "seconds": round(seconds, 2),
        "problem": problem,
    }
    return result, said


def run(command: list[str], log: Path) -> tuple[int | None, str, float]:
    """Runs a command.

    Args:
        command: the words behind the interpreter.
        log: a file for what it says.

    Returns:
        Its status, None for one that did not end; what it said; its seconds by the clock, without
        those that it stood ready and something else had the processor.
    """
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            env=support.clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
        has_ended = None
        while has_ended is None and time.monotonic() - started < PATIENCE:
            time.sleep(0.005)
            # Not reaped yet, or what it waited for would be gone.
            has_ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        seconds = time.monotonic() - started - _ready_seconds(process.pid)
        if has_ended is None:
            process.kill()
        status = process.wait()
    # How far a tool has read is no part of what it says of its inputs.
    lines = log.read_text("utf-8", "replace").splitlines(keepends=True)
    said = "".join(line for line in lines if not _BAR.search(line))
    return None if has_ended is None else status, said, seconds


def _ready_seconds(pid: int) -> float:
    """How long a process has waited for a processor, where Linux counts that."""
    try:
        _, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    except (OSError, ValueError):
        return 0.0
    return int(waited) / 1e9
