"""Decisions that one rank makes for all, or any of them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import UserError

Decision = TypeVar("Decision")
_LOOK_SECONDS = 2.0


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
        UserError, OSError: ``decide`` raised it; all ranks then do.
    """
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = decide()
        except (UserError, OSError) as error:
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


def worked_out_by_rank_0(work: Callable[[], Decision]) -> Decision:
    """Does as :func:`decided_by_rank_0` what may take longer than a collective's limit.

    Rank 0 works in a thread, and the others hear of it every few seconds.

    Raises:
        UserError, OSError: ``work`` raised it; all ranks then do.
    """
    with ThreadPoolExecutor(1, "rank-0-work") as threads:
        futures = [threads.submit(work)] if dist.get_rank() == 0 else []
        while not decided_by_rank_0(lambda: bool(wait(futures, _LOOK_SECONDS).done)):
            pass
        return decided_by_rank_0(lambda: futures[0].result())
