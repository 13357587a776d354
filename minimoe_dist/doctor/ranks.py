"""Measures what takes several ranks: clocks, a shared folder, and the network's speed."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from ..train.agreement import decided_by_rank_0

_ROUND_TRIPS = 8
_REPEATS = 3
_MEBIBYTE = 1 << 20
_COLLECTIVES = 20  # between two looks at the clock
_SIZES = (1, 16)  # MiB
_VISIBLE_SECONDS, _POLL_SECONDS = 10.0, 0.1  # network file systems show new files late


def clock_offsets(
    ranks: Sequence[int], group: dist.ProcessGroup, clock: Callable[[], float] = time.time
) -> dict[int, tuple[float, float]]:
    """Measures how far the clocks of some ranks are ahead of rank 0's; a collective.

    Rank 0 asks one rank after the other. Of some round trips the shortest counts, and its middle is
    taken for the time of the answer.

    Args:
        ranks: ranks to be asked, without 0.
        group: process group of all ranks, on CPUs.
        clock: this rank's clock, in seconds.

    Returns:
        On rank 0: rank -> (seconds ahead, half of the round trip, which is the error's bound).
    """
    offsets: dict[int, tuple[float, float]] = {}
    rank, peer_time = dist.get_rank(), torch.zeros(1, dtype=torch.float64)
    for peer in ranks:
        trips = []
        for _ in range(_ROUND_TRIPS):
            if rank == 0:
                sent = clock()
                dist.send(peer_time, peer, group=group)
                dist.recv(peer_time, peer, group=group)
                answered = clock()
                ahead = float(peer_time) - (sent + answered) / 2
                trips.append(((answered - sent) / 2, ahead))
            elif rank == peer:
                dist.recv(peer_time, 0, group=group)
                dist.send(torch.tensor([clock()], dtype=torch.float64), 0, group=group)
        if trips:
            error, ahead = min(trips)
            offsets[peer] = (ahead, error)
    return offsets


def sees_file(folder: Path, group: dist.ProcessGroup, seconds: float = _VISIBLE_SECONDS) -> bool:
    """Tells whether this rank reads in time what rank 0 writes into `folder`; a collective."""
    path = folder / f".doctor.shared.{time.time_ns()}"

    def write() -> str | None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(path.name)
        except OSError:
            return None
        return path.name

    note = decided_by_rank_0(write, group)
    is_visible = note is not None and _appears(folder / note, note, seconds)
    dist.barrier(group=group)
    if dist.get_rank() == 0:
        path.unlink(missing_ok=True)
    return is_visible


def _appears(path: Path, content: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if path.read_text() == content:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)


def bandwidths(device: torch.device) -> dict[str, dict[str, float]]:
    """Measures GB/s that a rank sends in all-reduce and all-to-all, by size; a collective.

    The training's own process group is used: NCCL on GPUs, gloo on CPUs. Of n ranks an all-reduce
    counts as 2 (n - 1) / n of its bytes, an all-to-all as (n - 1) / n.
    """
    world = dist.get_world_size()
    share = (world - 1) / world
    result: dict[str, dict[str, float]] = {"all-reduce": {}, "all-to-all": {}}
    for size in _SIZES:
        elements = size * _MEBIBYTE // 4 // world * world
        values = torch.ones(elements, device=device)
        target = torch.empty_like(values)
        reduced = _seconds(partial(dist.all_reduce, values), device)
        sent = _seconds(partial(dist.all_to_all_single, target, values), device)
        result["all-reduce"][f"{size} MiB"] = 2 * share * values.nbytes / reduced / 1e9
        result["all-to-all"][f"{size} MiB"] = share * values.nbytes / sent / 1e9
    return result


def latency(device: torch.device) -> float:
    """Measures the seconds of an all-reduce of one number; a collective."""
    value = torch.ones(1, device=device)

    def several() -> None:
        for _ in range(_COLLECTIVES):
            dist.all_reduce(value)

    return _seconds(several, device) / _COLLECTIVES


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of the fastest of some runs after one that warms up."""
    times = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])
