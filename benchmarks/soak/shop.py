"""What the trials' runs are made of, and what they look at while one goes on."""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minimoe_dist.last_words import shared_prefix
from tests.commands import support
from tests.commands.support import Ranks, Workshop
from tests.distributed import _context

POLL_SECONDS = 0.001
STUCK_SECONDS = 120.0


def make_workshop(folder: Path) -> Workshop:
    """A tiny teacher and tiny corpora."""
    teacher = support.make_teacher(folder / "teacher")
    train = support.make_corpus(folder / "train", teacher)
    heldout = support.make_corpus(folder / "heldout", teacher, seed=2, documents=30)
    return Workshop(folder, teacher, train, heldout)


def preload() -> None:
    """Starts the server that ranks are forked from, which no trial's time is for."""
    process = _context().Process(target=time.time)
    process.start()
    process.join()


def last_step(output_dir: Path) -> int:
    """Of the last whole line of ``metrics.jsonl``; 0 where there is none."""
    try:
        with (output_dir / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 8192))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return 0
    for line in reversed(lines):
        if line.endswith(b"\n") and line.startswith(b"{"):
            return int(json.loads(line)["step"])
    return 0


def until(condition: Callable[[], bool], ranks: Ranks, seconds: float = STUCK_SECONDS) -> bool:
    """Waits for something; False where every rank ended before, or the time was over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or not any(one.is_alive() for one in ranks.processes):
            return condition()
        time.sleep(POLL_SECONDS)
    return True


def has_begun(rank: Any) -> bool:
    """Whether a process of several has left its note for those that begin later."""
    try:
        links = [os.readlink(one) for one in Path(f"/proc/{rank.pid}/fd").iterdir()]
    except OSError:  # it has ended, or it closed one meanwhile
        return False
    return any(f"/{shared_prefix()}roll." in link for link in links)


def unfinished(output_dir: Path) -> set[str]:
    """Names in the folder of checkpoints that are no finished checkpoint's."""
    try:
        names = {path.name for path in (output_dir / "checkpoints").iterdir()}
    except FileNotFoundError:
        return set()
    return {name for name in names if not re.fullmatch(r"step_\d+|latest", name)}


def broken_checkpoints(output_dir: Path) -> list[str]:
    """Checkpoints under a final name that are not whole, by their manifests."""
    folders = (output_dir / "checkpoints").glob("step_*")
    named = [folder for folder in folders if re.fullmatch(r"step_\d+", folder.name)]
    return [folder.name for folder in named if not _is_whole(folder)]


def _is_whole(folder: Path) -> bool:
    """Looks for itself, not by the code that is tried."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        return all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == facts["sha256"]
            for name, facts in files.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def resumed_at(said: str) -> int:
    """The step that a start's log says it went on from; 0 for a new beginning."""
    found = re.search(r"resumed from .* at step (\d+)", said)
    return int(found[1]) if found else 0


def difference(one: Path, other: Path) -> str:
    """What two finished runs differ in; empty where they agree bitwise."""
    try:
        support.assert_same_run(one, other)
    except (AssertionError, OSError) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return ""


def lost_and_doubled(output_dir: Path, unbroken: Path) -> tuple[int, int]:
    """Steps whose numbers are not an unbroken run's or are missing, and steps that stand twice."""
    steps = [one["step"] for one in support.records(output_dir) if "students" in one]
    found, wanted = support.losses(output_dir), support.losses(unbroken)
    lost = sum(found.get(step) != numbers for step, numbers in wanted.items())
    return lost, len(steps) - len(set(steps))


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a recipe's sections, section by section."""
    values = dict(one)
    for name, section in other.items():
        values[name] = {**values.get(name, {}), **section}
    return values
