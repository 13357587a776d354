"""Ranks that are stopped, and what a restart from nothing costs."""

import contextlib
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.commands import support
from tests.commands.support import Workshop

from .clock import Clock
from .shop import STUCK_SECONDS, last_step, merged, until

TIMEOUT = 4
FAR = 100_000  # more steps than any trial does
BETWEEN = 100
STEP_SECONDS, LEAST_STEP_SECONDS = 2.0, 0.2  # of the run whose useful time is measured
STARTS_SECONDS = 90
ALONE = {"parallel": {"expert_parallel_size": 1}}


def try_stops(workshop: Workshop, clock: Clock, chooser: random.Random) -> dict[str, Any]:
    """Stops one of two ranks in a step, again and again until the time is over."""
    figures: dict[str, Any] = {"timeout": TIMEOUT, "seconds": [], "named": 0, "faults": []}
    while clock.left > 0 or not figures["seconds"]:
        output_dir = workshop.folder / "stopped"
        shutil.rmtree(output_dir, ignore_errors=True)
        sections = {"training": {"max_steps": FAR}, "parallel": {"timeout_seconds": TIMEOUT}}
        victim = chooser.randrange(2)
        with support.start(workshop.recipe(output_dir, **sections)) as ranks:
            target = chooser.randint(2, 40)
            until(lambda: last_step(output_dir) >= target, ranks)  # noqa: B023 - used at once
            stopped = ranks.signal(signal.SIGSTOP, victim)
            statuses = ranks.wait(1 - victim, seconds=60)
            figures["seconds"].append(round(time.monotonic() - stopped, 3))
            said = ranks.said()
            is_named = f"rank {victim} has given no sign of life for {TIMEOUT} s" in said
            figures["named"] += is_named
            if statuses != [1] or "Traceback" in said or not is_named:
                figures["faults"].append(f"rank {victim} stopped: {statuses}\n{said[-1500:]}")
        clock.counted()
    return figures


@contextlib.contextmanager
def from_nothing(recipe: Path, world_size: int = 2) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Starts a run as srun would, one new interpreter a rank; kills what is left at the end."""
    output_dir = recipe.with_suffix("")
    port, processes = str(support.free_port()), []
    with (output_dir.parent / f"{output_dir.name}.{port}.log").open("wb") as log:
        for rank in range(world_size):
            variables = {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }  # fmt: skip
            command = [sys.executable, "-m", "minimoe_dist", "distill", "--config", str(recipe)]
            environment = support.clean_environment() | variables
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _wait_for_step(
    output_dir: Path, step: int, processes: list[subprocess.Popen[bytes]], seconds: float
) -> float:
    """Waits for the record of a step, and returns when it was there."""
    deadline = time.monotonic() + seconds
    while last_step(output_dir) < step:
        assert time.monotonic() < deadline, f"no step {step} in {seconds:.0f} s"
        assert all(process.poll() is None for process in processes), "a rank ended"
        time.sleep(0.005)
    return time.monotonic()


def try_starts(workshop: Workshop, clock: Clock, chooser: random.Random) -> dict[str, Any]:
    """Clean starts and restarts behind a kill, two ranks from nothing each, until time is over."""
    figures: dict[str, Any] = {"clean": [], "restart": [], "forked": [], "imports": []}
    while clock.left > 0 or not figures["restart"]:
        output_dir = workshop.folder / "restarted"
        shutil.rmtree(output_dir, ignore_errors=True)
        recipe = workshop.recipe(output_dir, training={"max_steps": FAR})
        started = time.monotonic()
        with from_nothing(recipe) as processes:
            at = _wait_for_step(output_dir, 1, processes, STUCK_SECONDS)
            figures["clean"].append(round(at - started, 2))
            _wait_for_step(output_dir, chooser.randint(11, 19), processes, STUCK_SECONDS)
        done, started = last_step(output_dir), time.monotonic()
        with from_nothing(recipe) as processes:
            at = _wait_for_step(output_dir, done + 1, processes, STUCK_SECONDS)
            figures["restart"].append(round(at - started, 2))
        done, started = last_step(output_dir), time.monotonic()
        with support.start(recipe) as ranks:
            until(lambda: last_step(output_dir) > done, ranks)  # noqa: B023 - used at once
            figures["forked"].append(round(time.monotonic() - started, 2))
        clock.counted(2)
        figures["imports"].append(round(_import_seconds(), 2))
    return figures


def _import_seconds() -> float:
    """Of what every start imports, in two interpreters at a time as on a start of two ranks."""
    code = "import torch, deepspeed, transformers, minimoe_dist.commands.distill"
    environment = {**support.clean_environment(), "DS_ACCELERATOR": "cpu"}
    started = time.monotonic()
    imports = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    for process in imports:
        assert process.wait() == 0
    return time.monotonic() - started


def try_useful_time(workshop: Workshop, clock: Clock, chooser: random.Random) -> dict[str, Any]:
    """A run of long steps that is killed every hundred, as often as fits into the time.

    A cycle reaches from its first step to the first new step behind the restart. What its hundred
    steps take by themselves is useful. In little time steps are shorter, and say nothing of the
    goal.
    """
    figures: dict[str, Any] = {"cycles": 0, "useful": 0.0, "wall": 0.0, "between": BETWEEN}
    output_dir = workshop.folder / "useful"
    # Two starts and a calibration take their time too.
    wanted = min(STEP_SECONDS, (clock.left - STARTS_SECONDS) / (1.2 * BETWEEN))
    if wanted < LEAST_STEP_SECONDS:
        return figures
    figures["step_of_goal"] = STEP_SECONDS
    sections = _long_steps(workshop, wanted)
    shutil.rmtree(output_dir, ignore_errors=True)
    recipe = workshop.recipe(output_dir, **sections)
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(from_nothing(recipe))
        first, began = 1, _wait_for_step(output_dir, 1, processes, STUCK_SECONDS)
        costs, repeats = [], []
        while clock.left > 1.2 * BETWEEN * wanted or not figures["cycles"]:
            # Somewhere behind the last save, on average in the middle of an interval.
            target = first + BETWEEN - chooser.randint(0, _interval(sections) - 1)
            _wait_for_step(output_dir, target, processes, 4 * BETWEEN * STEP_SECONDS)
            stack.close()  # kills
            done, killed = last_step(output_dir), time.monotonic()
            repeated = done - max(support.checkpoints(output_dir), default=0)
            steps = _step_seconds(output_dir, first, done)
            processes = stack.enter_context(from_nothing(recipe))
            now = _wait_for_step(output_dir, done + 1, processes, STUCK_SECONDS)
            step = sum(steps) / len(steps)
            figures["cycles"] += 1
            figures["useful"] += sum(steps) + step  # with the first new step
            figures["wall"] += now - began
            costs.append(now - killed - (repeated + 1) * step)
            repeats.append(repeated)
            figures |= {
                "step": step,
                "restart": sum(costs) / len(costs),
                "repeated": sum(repeats) / len(repeats),
            }
            first, began = done + 2, now
            clock.counted(BETWEEN)
    return figures


def _interval(sections: dict[str, Any]) -> int:
    return int(sections["training"]["save_interval"])


def _long_steps(workshop: Workshop, seconds: float) -> dict[str, Any]:
    """Sections of a recipe whose step takes some seconds on two ranks of this machine."""
    output_dir = workshop.folder / "calibrated"
    shutil.rmtree(output_dir, ignore_errors=True)
    training: dict[str, Any] = {
        "max_steps": FAR, "save_interval": 5, "eval_interval": FAR,
        "per_device_train_batch_size": 64,
    }  # fmt: skip
    sections = merged({"training": training}, ALONE)
    with support.start(workshop.recipe(output_dir, **sections)) as ranks:
        until(lambda: last_step(output_dir) >= 12, ranks)
    alone = sorted(_step_seconds(output_dir, 3, 12))[4]
    accumulation = max(1, math.ceil(seconds / alone))
    return merged(sections, {"training": {"num_grad_accum_steps": accumulation}})


def _step_seconds(output_dir: Path, first: int, last: int) -> list[float]:
    """What each step took by the run's own rates, without saves and evaluations."""
    records = [one for one in support.records(output_dir) if "students" in one]
    sizes = {"sequences": _sequences(output_dir)}
    return [
        sizes["sequences"] / one["sequences_per_second"]
        for one in records
        if first <= one["step"] <= last and one["sequences_per_second"]
    ]


def _sequences(output_dir: Path) -> int:
    """Of a step on two ranks."""
    import yaml

    training = yaml.safe_load(output_dir.with_suffix(".yaml").read_text())["training"]
    accumulation = training.get("num_grad_accum_steps", 1)
    return 2 * int(training["per_device_train_batch_size"]) * int(accumulation)


def cpu_count() -> int:
    return len(os.sched_getaffinity(0))
