"""Commands that are run in turn or side by side; those that are done are not run again."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Job:
    """A command of `minimoe-dist`.

    Attributes:
        words: what it does.
        arguments: of the command line.
        done: a file that it writes at its end.
        cost: how long it takes, relative to others.
        environment: what it needs besides.
    """

    words: str
    arguments: Sequence[str]
    done: Path
    cost: float = 1.0
    environment: Mapping[str, str] = field(default_factory=dict)


def run_all(jobs: Sequence[Job], lanes: int, ranks: int, log: Path) -> list[str]:
    """Runs what is not done yet; returns, in a line each, what failed.

    Args:
        jobs: the first ones begin first.
        lanes: processes side by side.
        ranks: of each process.
        log: what they print is put behind it.
    """
    left = [job for job in jobs if not job.done.is_file()]
    total, started = sum(job.cost for job in left), time.monotonic()
    finished = 0.0
    failed: list[str] = []
    log.parent.mkdir(parents=True, exist_ok=True)

    def run(job: Job) -> None:
        nonlocal finished
        begin = time.monotonic()
        with log.open("ab") as file:
            done = subprocess.run(
                [*launcher(ranks), *job.arguments],
                stdout=file,
                stderr=file,
                cwd=ROOT,
                env={**os.environ, **({"OMP_NUM_THREADS": "1"} if lanes > 1 else {})}
                | dict(job.environment),
            )
        finished += job.cost
        spent = time.monotonic() - started
        minutes = spent * (total / finished - 1) / 60
        print(f"{finished / total:4.0%}  {job.words}: {time.monotonic() - begin:.0f} s, about "
              f"{minutes:.0f} min left", flush=True)  # fmt: skip
        if done.returncode or not job.done.is_file():
            failed.append(f"{job.words}: status {done.returncode}, see {log}")

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(run, left))
    return failed


def launcher(ranks: int) -> list[str]:
    """The words before a subcommand."""
    if ranks == 1:
        return [sys.executable, "-m", "minimoe_dist"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [sys.executable, *torchrun, "-m", "minimoe_dist"]
