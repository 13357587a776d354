"""Decisions that one rank makes for all, or any of them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import UserError
from ..runtime import StopRequest

Decision = TypeVar("Decision")
_LOOK_SECONDS = 2.0


class StopRequestedError(Exception):
    """Ends on all ranks what one of them was asked to stop; what it has made so far stays."""


def decided_by_rank_0(
    decide: Callable[[], Decision], group: dist.ProcessGroup | None = None
) -> Decision:
    """Calls ``decide`` on rank 0 and returns its result on every rank; a collective.

    Files, clocks and processors may differ from rank to rank, or change between two looks at them:
    what they say is asked for once.

    Args:
        decide: called on rank 0 alone; its result can be pickled.
        group: that takes part, rank 0 among them; None: all ranks.

    Raises:
        UserError, OSError, StopRequestedError: ``decide`` raised it; all ranks then do.
    """
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = decide()
        except (UserError, OSError, StopRequestedError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=group)
    decision, problem = outcome
    if problem is not None:
        raise problem
    return decision


def on_any_rank(is_so: bool, device: torch.device) -> bool:
    """Returns whether something is so on a rank at least; a collective."""
    found = torch.tensor(float(is_so), device=device)
    dist.all_reduce(found)
    return bool(found)


def worked_out_by_rank_0(
    work: Callable[[Callable[[], None]], Decision], stop: StopRequest, device: torch.device
) -> Decision:
    """Does as :func:`decided_by_rank_0` what may take longer than a collective's limit.

    Rank 0 works in a thread; every few seconds the others hear of it, and it hears of them whether
    one was asked to stop.

    Args:
        work: given a function to call between its parts, which raises where it shall end.
        stop: the signals of this rank.
        device: of this rank.

    Raises:
        UserError, OSError: ``work`` raised it; all ranks then do.
        StopRequestedError: a rank was asked to stop before the work was done.
    """
    is_asked = Event()

    def go_on() -> None:
        if is_asked.is_set():
            raise StopRequestedError

    with ThreadPoolExecutor(1, "rank-0-work") as threads:
        futures = [threads.submit(work, go_on)] if dist.get_rank() == 0 else []
        while not decided_by_rank_0(lambda: bool(wait(futures, _LOOK_SECONDS).done)):
            if on_any_rank(stop.requested, device):
                is_asked.set()
        return decided_by_rank_0(lambda: futures[0].result())
