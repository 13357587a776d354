"""The watch over a node's ranks that have not met yet: killed, ending and met ones."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from minimoe_dist import roll_call
from minimoe_dist.runtime import Launch
from tests.commands import support
from tests.commands.support import Workshop
from tests.distributed import _context

STUCK_SECONDS = 30.0


def _called(rank: int, port: int, folder: Path, body: str) -> None:
    os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    roll_call.begin(Launch(rank + 4, 8, rank, 3, "127.0.0.1", port, "torchrun"))
    (folder / f"came_{rank}").touch()
    while len(list(folder.glob("came_*"))) < 3:
        time.sleep(0.01)
    time.sleep(0.5)  # in which each finds the others
    if rank == 2:
        (folder / "moment").write_text(str(time.monotonic()))
    globals()[body](rank)
    roll_call.end(have_met=False)
    os._exit(3)


def _last_is_killed(rank: int) -> None:
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(STUCK_SECONDS)


def _last_ends(rank: int) -> None:
    if rank != 2:
        time.sleep(STUCK_SECONDS)


def _all_end(rank: int) -> None:
    time.sleep(rank)


def _last_is_killed_once_all_have_met(rank: int) -> None:
    roll_call.end(have_met=True)
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1.5)


def run(body: str, folder: Path) -> tuple[list[int | None], str, float]:
    """Statuses of ranks 4 to 6 of 8, what they said, seconds from rank 6's end to the last's."""
    context, port = _context(), support.free_port()
    processes = [
        context.Process(target=_called, args=(rank, port, folder, body)) for rank in range(3)
    ]
    for process in processes:
        process.start()
    started = time.monotonic()
    for process in processes:
        process.join(max(0.0, started + STUCK_SECONDS - 10 - time.monotonic()))
    seconds = time.monotonic() - float((folder / "moment").read_text())
    statuses = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return statuses, (folder / "log").read_text(), seconds


@pytest.mark.parametrize(
    ("body", "last", "how", "limit"),
    [("_last_is_killed", -9, "died", 2.0), ("_last_ends", 3, "ended", 7.0)],
)
def test_a_rank_that_is_gone_before_all_have_met_ends_the_others(
    body: str, last: int, how: str, limit: float, tmp_path: Path
) -> None:
    statuses, said, seconds = run(body, tmp_path)
    assert statuses == [1, 1, last]
    assert said.count("\n") == 1
    assert f"rank 6 has {how} before all ranks had met" in said
    assert seconds < limit


@pytest.mark.parametrize(
    ("body", "statuses"),
    [("_all_end", [3, 3, 3]), ("_last_is_killed_once_all_have_met", [3, 3, -9])],
)
def test_ranks_that_end_alike_or_have_met_are_left_alone(
    body: str, statuses: list[int], tmp_path: Path
) -> None:
    assert run(body, tmp_path)[:2] == (statuses, "")


def _goes(how: str, port: int, folder: Path) -> None:
    roll_call.begin(Launch(4, 8, 0, 2, "127.0.0.1", port, "torchrun"))
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    roll_call.end(have_met=how == "met")
    os._exit(3)


def _comes_later(port: int, folder: Path) -> None:
    os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    while not (folder / "is_gone").exists():
        time.sleep(0.01)
    roll_call.begin(Launch(5, 8, 1, 2, "127.0.0.1", port, "torchrun"))
    time.sleep(7)
    roll_call.end(have_met=False)
    os._exit(3)


@pytest.mark.parametrize(
    ("how", "pause", "status", "said"),
    [
        ("killed", 0.0, 1, "rank 4 has died before all ranks had met"),
        ("ended", 0.0, 1, "rank 4 has ended before all ranks had met"),
        ("met", 0.0, 3, ""),
        ("killed", 0.5, 3, ""),  # of an earlier start by hand at the same port
    ],
)
def test_a_rank_learns_who_was_gone_before_it_began(
    how: str, pause: float, status: int, said: str, tmp_path: Path
) -> None:
    context, port = _context(), support.free_port()
    first = context.Process(target=_goes, args=(how, port, tmp_path))
    second = context.Process(target=_comes_later, args=(port, tmp_path))
    first.start()
    time.sleep(pause)
    second.start()
    try:
        first.join(10)
        assert first.exitcode == (-signal.SIGKILL if how == "killed" else 3)
        (tmp_path / "is_gone").touch()
        began = time.monotonic()
        second.join(20)
        assert second.exitcode == status
        assert how != "killed" or status == 3 or time.monotonic() - began < 2
        assert said in (tmp_path / "log").read_text()
        assert bool(said) == bool((tmp_path / "log").read_text())
    finally:
        second.kill()
        second.join()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_does_not_wait_for_a_rank_that_was_killed_at_its_start(
    victim: int, workshop: Workshop, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run", parallel={"expert_parallel_size": 1})
    variables = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}  # the third one never comes
    with support.start(recipe, environment=variables) as ranks:
        support.wait_for(lambda: _ranks_that_know_each_other(ranks) == 2, ranks.said)
        killed = ranks.signal(signal.SIGKILL, victim)
        assert ranks.wait(1 - victim) == [1]
        assert time.monotonic() - killed < 2
        assert "Traceback" not in ranks.said()
        assert f"rank {victim} has died before all ranks had met" in ranks.said()
    assert support.finish(recipe)


def _ranks_that_know_each_other(ranks: support.Ranks) -> int:
    """Of those that were started: each has a connection of the other's, and one of its own."""
    sockets = Path("/proc/net/unix").read_text().splitlines()
    inodes = {line.split()[6]: line for line in sockets[1:] if "@minimoe-dist." in line}
    found = 0
    for process in ranks.processes[:2]:
        names = []
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since
                names.append(os.readlink(descriptor))
        own = [inodes[name[8:-1]] for name in names if name[8:-1] in inodes]
        found += any(line.split()[5] == "03" for line in own)
    return found
