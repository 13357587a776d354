"""Preprocessing that is killed at random moments: the corpus must be that of an unbroken build."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.commands import support
from tests.commands.support import Workshop

from .clock import Clock

TOOL = Path(__file__).parents[2] / "tools" / "preprocess" / "build_indexed.py"
FILES, LINES = 6, 40_000
LONGEST_LIFE = 12  # kills, before a build is left to come to its end
GONE_SECONDS = 10.0


def write_text(folder: Path, chooser: random.Random) -> None:
    """Sentences of the tiny teacher's words, a document every ten lines."""
    folder.mkdir(parents=True)
    for number in range(FILES):
        with (folder / f"{number}.format").open("w") as file:
            for line in range(LINES):
                words = " ".join(f"word{chooser.randrange(190)}" for _ in range(6))
                file.write(f"{words}\n" if line % 10 else f"{words}\n\n")


def contents(folder: Path) -> dict[str, str]:
    """Hashes of what stands under final names."""
    if not folder.exists():
        return {}
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.suffix != ".partial"
    }


def try_kills(workshop: Workshop, clock: Clock, chooser: random.Random) -> dict[str, Any]:
    """One corpus after another until the time is over; kills of the tool, a worker, or all."""
    text = workshop.folder / "text"
    if not text.exists():
        write_text(text, random.Random(1))
    whole = workshop.folder / "corpus_unbroken"
    shutil.rmtree(whole, ignore_errors=True)
    started = time.monotonic()
    process = _start(workshop, whole)
    assert process.wait() == 0, process.args
    usual, wanted = time.monotonic() - started, contents(whole)
    figures: dict[str, Any] = {
        "kills": 0, "lives": 0, "differing": 0, "early_names": 0, "seconds": round(usual, 2),
        "left_behind": 0, "faults": [],
    }  # fmt: skip
    while clock.left > 0 or not figures["kills"]:
        _live(workshop, clock, chooser, usual, wanted, figures)
    return figures


def _start(workshop: Workshop, output_dir: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, str(TOOL), "--input_dir", str(workshop.folder / "text"),
        "--input_regex", "*.format", "--output_dir", str(output_dir), "--num_processors", "2",
        "--tokenizer_name_or_path", str(workshop.teacher), "--heldout_fraction", "0.1",
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        env=support.clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _live(
    workshop: Workshop,
    clock: Clock,
    chooser: random.Random,
    usual: float,
    wanted: dict[str, str],
    figures: dict[str, Any],
) -> None:
    folder = workshop.folder / "corpus"
    shutil.rmtree(folder, ignore_errors=True)
    for _ in range(LONGEST_LIFE):
        process = _start(workshop, folder)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chooser.uniform(0, 1.1 * usual))
        if process.poll() is not None:
            break
        _kill(process, chooser, figures)
        figures["kills"] += 1
        early = {name: one for name, one in contents(folder).items() if one != wanted.get(name)}
        figures["early_names"] += len(early)
        clock.counted()
        if clock.left <= 0:
            break
    status = _start(workshop, folder).wait(timeout=60 + 10 * usual)
    figures["lives"] += 1
    if status != 0 or contents(folder) != wanted:
        figures["differing"] += 1
        figures["faults"].append(f"status {status}, {sorted(contents(folder))}")


def _kill(
    process: subprocess.Popen[bytes], chooser: random.Random, figures: dict[str, Any]
) -> None:
    """Kills the tool, one of its workers, or all; what is left must end by itself."""
    workers = _members(process.pid) - {process.pid}
    victim = chooser.choice(["tool", "worker", "all"])
    if victim == "worker" and workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(chooser.choice(sorted(workers)), signal.SIGKILL)
    elif victim == "tool":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + GONE_SECONDS
    while process.poll() is None or _members(process.pid):
        if time.monotonic() > deadline:
            figures["left_behind"] += 1
            figures["faults"].append(f"{victim} killed, left {_members(process.pid)}")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.01)


def _members(group: int) -> set[int]:
    """Living processes of a process group."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state not in "ZX":
                found.add(int(path.parent.name))
    return found
