"""Training runs that are killed at random moments, and must end as if nothing had happened."""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.commands import support
from tests.commands.support import Ranks, Workshop

from .clock import Clock
from .shop import (
    broken_checkpoints,
    difference,
    has_begun,
    last_step,
    lost_and_doubled,
    merged,
    resumed_at,
    until,
)

STEPS, INTERVAL = 60, 10
BEGIN_SECONDS = 2.0
GONE_SECONDS = 20.0  # after which survivors are taken for hung
MOST_FAULTS = 10  # that are told
LAYOUTS: Mapping[str, tuple[int, dict[str, dict[str, Any]]]] = {
    "two ranks, ZeRO-1, expert-parallel 2": (2, {"parallel": {"expert_parallel_size": 2}}),
    "two ranks, ZeRO-2, bf16": (
        2,
        {"parallel": {"expert_parallel_size": 1, "zero_stage": 2, "precision": "bf16"}},
    ),
    "two ranks, ZeRO-3": (2, {"parallel": {"expert_parallel_size": 1, "zero_stage": 3}}),
    "one rank": (1, {"parallel": {"expert_parallel_size": 1, "zero_stage": 0}}),
}


@dataclass
class Figures:
    """What is told of all kills."""

    kinds: Counter[str] = field(default_factory=Counter)
    victims: Counter[str] = field(default_factory=Counter)
    others_gone: list[float] = field(default_factory=list)
    others_gone_at_start: list[float] = field(default_factory=list)
    repeated_after_signal: list[int] = field(default_factory=list)
    repeated_after_crash: list[int] = field(default_factory=list)
    lives: int = 0
    differing: int = 0
    lost: int = 0
    doubled: int = 0
    faults: list[str] = field(default_factory=list)

    def fault(self, words: str) -> None:
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(words)

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "save_interval": INTERVAL}


@dataclass(frozen=True)
class Unbroken:
    """A run that nothing happened to, and how long its parts took."""

    folder: Path
    start_seconds: float
    save_seconds: float
    export_seconds: float


def try_kills(workshop: Workshop, clock: Clock, chooser: random.Random) -> dict[str, Any]:
    """One life after another until the time is over."""
    figures, unbroken = Figures(), {}
    names = list(LAYOUTS)
    while clock.left > 0:
        name = names[figures.lives % len(names)]
        world_size, changes = LAYOUTS[name]
        if name not in unbroken:
            unbroken[name] = _unbroken(workshop, figures.lives, world_size, changes)
        life = Life(workshop, world_size, changes, unbroken[name], figures, chooser)
        life.live(clock)
    return figures.as_json()


def _recipe(workshop: Workshop, output_dir: Path, changes: Mapping[str, Any]) -> Path:
    sections = {
        "training": {"max_steps": STEPS, "save_interval": INTERVAL, "eval_interval": STEPS},
        "parallel": {"timeout_seconds": round(GONE_SECONDS)},
    }
    return workshop.recipe(output_dir, **merged(sections, changes))


def _unbroken(
    workshop: Workshop, number: int, world_size: int, changes: Mapping[str, Any]
) -> Unbroken:
    output_dir = workshop.folder / f"unbroken_{number}"
    shutil.rmtree(output_dir, ignore_errors=True)
    recipe = _recipe(workshop, output_dir, changes)
    first_save = output_dir / "checkpoints" / f"step_{INTERVAL:08d}"
    with support.start(recipe, world_size=world_size) as ranks:
        until(lambda: last_step(output_dir) >= 1, ranks)
        started = time.monotonic()
        until(lambda: last_step(output_dir) >= INTERVAL, ranks)
        recorded = time.monotonic()
        until(first_save.exists, ranks)
        saved = time.monotonic()
        until(lambda: STEPS in support.heldout(output_dir), ranks)
        evaluated = time.monotonic()
        statuses = ranks.wait()
        assert set(statuses) == {0}, ranks.said()
        return Unbroken(
            output_dir,
            started - ranks.started,
            saved - recorded,
            time.monotonic() - evaluated,
        )


class Life:
    """A run that is started again and again, killed each time but the last.

    Args:
        workshop: what it is made of.
        world_size: number of ranks.
        changes: of the recipe.
        unbroken: what it is held against.
        figures: are added to.
        chooser: of moments and victims.
    """

    def __init__(
        self,
        workshop: Workshop,
        world_size: int,
        changes: Mapping[str, Any],
        unbroken: Unbroken,
        figures: Figures,
        chooser: random.Random,
    ) -> None:
        self._output_dir = workshop.folder / "life"
        shutil.rmtree(self._output_dir, ignore_errors=True)
        self._recipe = _recipe(workshop, self._output_dir, changes)
        self._world_size = world_size
        self._unbroken = unbroken
        self._figures = figures
        self._chooser = chooser
        self._done_before = 0  # steps at the end of the start before
        self._saved_before = 0
        self._after_signal: bool | None = None  # what ended the start before

    def live(self, clock: Clock) -> None:
        """Kills in random order, at the end while it exports, then lets the run end."""
        plan = ["at start-up"] * 2 + ["in a step"] * 3 + ["in a save"] * 3 + ["signal"] * 2
        self._chooser.shuffle(plan)
        for kind in (*plan, "at an export", "at an export"):
            is_late = clock.left <= 0 and self._figures.kinds
            if is_late or not self._start_and_end(kind):
                break
            clock.counted(kind != "signal")
        self._finish()

    def _start_and_end(self, kind: str) -> bool:
        """Starts the run and ends it; returns whether it can be started again."""
        with support.start(self._recipe, world_size=self._world_size) as ranks:
            if kind == "at start-up":
                if self._world_size > 1:
                    until(lambda: all(map(has_begun, ranks.processes)), ranks, BEGIN_SECONDS)
                time.sleep(self._chooser.uniform(0, self._unbroken.start_seconds))
            else:
                self._reach(kind, ranks)
            if all(one.exitcode == 0 for one in ranks.processes):
                return False  # it came to its end before
            if kind == "signal":
                self._signal(ranks)
            else:
                self._kill(kind, ranks)
            said = ranks.said()
        self._look_at_start(said, is_start_up=kind == "at start-up")
        self._after_signal = kind == "signal"
        self._done_before = last_step(self._output_dir)  # without what this start did again
        self._look_at_checkpoints(kind)
        return True

    def _look_at_checkpoints(self, kind: str) -> None:
        """Counts what is not whole under its name, and what was there before and is gone."""
        broken, newest = broken_checkpoints(self._output_dir), self._newest_saved()
        self._figures.lost += len(broken) + (newest < self._saved_before)
        if broken:
            self._figures.fault(f"{kind}: not whole under their names: {', '.join(broken)}")
        if newest < self._saved_before:
            self._figures.fault(f"{kind}: step {self._saved_before} was saved, now {newest} is")
        self._saved_before = max(self._saved_before, newest)

    def _reach(self, kind: str, ranks: Ranks) -> None:
        """Waits for the moment of a kill."""
        chooser, unbroken, folder = self._chooser, self._unbroken, self._output_dir
        # What the start before wrote stands there until this one has gone on from somewhere.
        if self._newest_saved():
            until(lambda: "resumed from" in ranks.said(), ranks)
        first = resumed_at(ranks.said())
        if kind == "at an export":
            until(lambda: STEPS in support.heldout(folder), ranks)
            time.sleep(chooser.uniform(0, unbroken.export_seconds))
        elif kind == "in a save":
            # Metrics still have the steps of a start that crashed: this one must be under way.
            until(lambda: "step " in ranks.said(), ranks)
            saved = min(STEPS, first + INTERVAL - first % INTERVAL)
            until(lambda: first < saved <= last_step(folder), ranks)
            time.sleep(chooser.uniform(0, 1.2 * unbroken.save_seconds))
        else:
            until(lambda: "step " in ranks.said(), ranks)
            target = min(STEPS, first + chooser.randint(1, INTERVAL + INTERVAL // 2))
            until(lambda: last_step(folder) >= target, ranks)
            time.sleep(chooser.uniform(0, 0.05))

    def _newest_saved(self) -> int:
        return max(support.checkpoints(self._output_dir), default=0)

    def _kill(self, kind: str, ranks: Ranks) -> None:
        victims = self._chooser.choice([[rank] for rank in range(self._world_size)] + [[]])
        others = [one for rank, one in enumerate(ranks.processes) if rank not in victims]
        alive = [one for one in others if one.is_alive()] if victims else []
        killed = ranks.signal(signal.SIGKILL, *victims)
        self._figures.kinds[kind] += 1
        self._figures.victims["one rank" if victims and others else "all ranks"] += 1
        if not alive:
            ranks.wait()
            return
        for one in alive:
            one.join(max(0.0, killed + GONE_SECONDS - time.monotonic()))
        seconds = time.monotonic() - killed
        at_start = kind == "at start-up"
        gone = self._figures.others_gone_at_start if at_start else self._figures.others_gone
        gone.append(round(seconds, 3))
        if any(one.is_alive() for one in alive):
            self._figures.fault(f"{kind}: rank {victims} killed, another alive {seconds:.0f} s on")
        if "Traceback" in ranks.said():
            self._figures.fault(f"{kind}: a traceback:\n{ranks.said()[-1500:]}")

    def _signal(self, ranks: Ranks) -> None:
        number = self._chooser.choice([signal.SIGTERM, signal.SIGUSR1])
        victims = self._chooser.choice([[rank] for rank in range(self._world_size)] + [[]])
        ranks.signal(number, *victims)
        statuses = ranks.wait(seconds=GONE_SECONDS * 2)
        if not set(statuses) <= {0, 75}:
            words = f"{number.name} to rank {victims or 'all'}: statuses {statuses}"
            self._figures.fault(f"{words}\n{ranks.said()[-1500:]}")

    def _look_at_start(self, said: str, is_start_up: bool) -> None:
        """Counts the steps that this start did again."""
        if self._after_signal is None or (is_start_up and "resumed from" not in said):
            return
        repeated = max(0, self._done_before - resumed_at(said))
        figures = self._figures
        where = (
            figures.repeated_after_signal if self._after_signal else figures.repeated_after_crash
        )
        where.append(repeated)

    def _finish(self) -> None:
        """Lets the run come to its end, and holds it against the unbroken one."""
        figures = self._figures
        statuses, said = support.run(self._recipe, world_size=self._world_size)
        self._look_at_start(said, is_start_up=False)
        figures.lives += 1
        if set(statuses) != {0}:
            figures.differing += 1
            figures.fault(f"the last start ended with {statuses}:\n{said[-1500:]}")
            return
        lost, doubled = lost_and_doubled(self._output_dir, self._unbroken.folder)
        figures.lost += lost
        figures.doubled += doubled
        if words := difference(self._output_dir, self._unbroken.folder):
            figures.differing += 1
            figures.fault(f"not as the unbroken run: {words}")
