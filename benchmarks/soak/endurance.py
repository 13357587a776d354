"""Thousands of steps and hundreds of saves: what a process holds must not grow; what saves cost."""

import json
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

from tests.commands import support
from tests.commands.support import Workshop

from .clock import Clock
from .goals import SAVES, STEPS, growth
from .shop import last_step, unfinished, until

INTERVAL = STEPS // SAVES
SAMPLES = 200
QUIET_STEPS = 100  # of imports, compilers and caches, before anything counts
SAVED_EVERY, SAVED_STEPS = 20, 90  # a save is over before the next one begins


def try_endurance(workshop: Workshop, clock: Clock, chooser: random.Random) -> dict[str, Any]:
    """One run on two ranks, sampled from outside until its last step or the end of the time."""
    output_dir = workshop.folder / "long"
    shutil.rmtree(output_dir, ignore_errors=True)
    recipe = workshop.recipe(
        output_dir,
        training={
            "max_steps": STEPS, "save_interval": INTERVAL, "log_interval": 10,
            "eval_interval": STEPS, "per_device_train_batch_size": 2,
        },
        data={"max_length": 16},
    )  # fmt: skip
    samples: list[tuple[int, list[tuple[int, int, int]]]] = []
    with support.start(recipe) as ranks:
        until(lambda: last_step(output_dir) >= QUIET_STEPS, ranks)
        shown = 0
        while clock.left > 0 and all(one.is_alive() for one in ranks.processes):
            step = last_step(output_dir)
            held = [_held(process.pid) for process in ranks.processes]
            if all(held):
                samples.append((step, [one for one in held if one]))
            clock.counted(step - shown)
            shown = step
            if step >= STEPS:
                break
            time.sleep(clock.seconds / SAMPLES)
        failed = [one.exitcode for one in ranks.processes if one.exitcode not in (None, 0)]
        # What is held while a run ends is no growth: it is left alone only to see that it ends.
        if not failed and samples and samples[-1][0] >= STEPS:
            failed = [status for status in ranks.wait() if status != 0]
        said = ranks.said()
    figures: dict[str, Any] = {"ranks": [], "faults": []}
    if failed or len(samples) < 10:
        figures["faults"].append(f"statuses {failed}, {len(samples)} samples\n{said[-1500:]}")
        return figures
    steps = samples[-1][0]
    figures |= {"steps": steps, "saves": steps // INTERVAL}
    for rank in range(2):
        memory, files, threads = zip(*(held[rank] for _, held in samples), strict=True)
        tenth = max(1, len(samples) // 10)
        figures["ranks"].append(
            {
                "memory": round(growth(memory), 5),
                "descriptors": _most(files[-tenth:]) - _most(files[tenth : 2 * tenth]),
                "threads": _most(threads[-tenth:]) - _most(threads[tenth : 2 * tenth]),
                "curve": [[step, held[rank][0] >> 10] for step, held in samples],
            }
        )
    return figures


def _most(values: tuple[int, ...]) -> int:
    return max(values)


def _held(pid: int) -> tuple[int, int, int] | None:
    """Resident bytes, open descriptors and threads of a process; None where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return None
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    threads = re.search(r"Threads:\s+(\d+)", status)
    return (int(resident[1]) << 10, files, int(threads[1])) if resident and threads else None


def try_saves(workshop: Workshop, clock: Clock, chooser: random.Random) -> dict[str, Any]:
    """How long steps wait for a save, by the run's summary, and how long the save takes.

    A step's record is written before the save behind it, so what the next record comes later than
    usual is the wait and what the writing beside it costs. A save goes from the first file that is
    not finished to the final name.
    """
    output_dir = workshop.folder / "saved"
    shutil.rmtree(output_dir, ignore_errors=True)
    recipe = workshop.recipe(
        output_dir,
        students=[{"layer": 3, "hidden": 256, "heads": 4, "moe": "1,4"}],
        training={
            "max_steps": SAVED_STEPS,
            "save_interval": SAVED_EVERY,
            "eval_interval": STEPS,
        },
    )
    records: dict[int, float] = {}
    begun: dict[int, float] = {}
    finished: dict[int, float] = {}
    with support.start(recipe) as ranks:
        while any(one.is_alive() for one in ranks.processes):
            now, step = time.monotonic(), last_step(output_dir)
            if step and step not in records:
                records[step] = now
                clock.counted(step % SAVED_EVERY == 0)
            for name in unfinished(output_dir):
                if found := re.match(r"step_(\d+)", name):
                    begun.setdefault(int(found[1]), now)
            for saved in support.checkpoints(output_dir):
                finished.setdefault(saved, now)
            time.sleep(0.002)
        assert set(ranks.wait()) == {0}, ranks.said()
    gaps = {step: records[step + 1] - at for step, at in records.items() if step + 1 in records}
    quiet = sorted(gap for step, gap in gaps.items() if step > 3 and step % SAVED_EVERY)
    usual = quiet[len(quiet) // 2]
    newest = max((output_dir / "checkpoints").glob("step_????????"))
    return {
        "step": usual,
        "waits": [max(0.0, gap - usual) for step, gap in gaps.items() if step % SAVED_EVERY == 0],
        "writes": [at - begun[step] for step, at in finished.items() if step in begun],
        "recorded": recorded_waits(output_dir),
        "megabytes": sum(path.stat().st_size for path in newest.iterdir()) / 1e6,
    }


def recorded_waits(output_dir: Path) -> list[float]:
    """The mean seconds of a save's wait, if the run's summary tells; else nothing."""
    saving = json.loads((output_dir / "summary.json").read_text()).get("saving") or {}
    if not saving.get("saves"):
        return []
    return [saving["waited_seconds"] / saving["saves"]]
