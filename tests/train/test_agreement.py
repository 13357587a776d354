"""One rank decides, all learn."""

import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from minimoe_dist.errors import UserError
from minimoe_dist.runtime import StopRequest
from minimoe_dist.train import agreement
from minimoe_dist.train.agreement import (
    StopRequestedError,
    decided_by_rank_0,
    worked_out_by_rank_0,
)
from tests.distributed import run_distributed


def ranks_that_decide() -> tuple[int, int]:
    asked = 0

    def decide() -> int:
        nonlocal asked
        asked += 1
        return 7 + dist.get_rank()

    return decided_by_rank_0(decide), asked


def test_rank_0_is_asked_and_all_learn() -> None:
    assert run_distributed(ranks_that_decide, 2) == [(7, 1), (7, 0)]


def refusals(kind: type[Exception]) -> str:
    def decide() -> None:
        raise kind("recipe: gone: copy it again")

    try:
        decided_by_rank_0(decide)
    except (UserError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def test_what_keeps_rank_0_from_deciding_ends_all() -> None:
    for kind in (UserError, OSError):
        said = f"{kind.__name__}: recipe: gone: copy it again"
        assert run_distributed(refusals, 2, kind) == [said, said]


def long_work(seconds: float, kind: type[Exception] | None) -> str:
    agreement._LOOK_SECONDS = 0.2
    # Stands for a limit of minutes, which work of hours outlasts.
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1.5), dist.group.WORLD)

    def work(go_on: Callable[[], None]) -> int:
        go_on()
        time.sleep(seconds)
        if kind is not None:
            raise kind("teacher: gone: copy it again")
        return 7 + dist.get_rank()

    try:
        return str(worked_out_by_rank_0(work, StopRequest(), torch.device("cpu")))
    except (UserError, OSError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("kind", [None, UserError, OSError])
def test_work_may_take_longer_than_a_collective(kind: type[Exception] | None) -> None:
    expected = "7" if kind is None else f"{kind.__name__}: teacher: gone: copy it again"
    assert run_distributed(long_work, 2, 4.0, kind) == [expected, expected]


def endless_work(asked_rank: int) -> str:
    agreement._LOOK_SECONDS = 0.1
    stop = StopRequest()
    stop.requested = dist.get_rank() == asked_rank

    def work(go_on: Callable[[], None]) -> None:
        while True:
            go_on()
            time.sleep(0.01)

    try:
        worked_out_by_rank_0(work, stop, torch.device("cpu"))
    except StopRequestedError:
        return "stopped"
    return "done"


@pytest.mark.parametrize("asked_rank", [0, 1])
def test_work_ends_where_any_rank_is_asked_to_stop(asked_rank: int) -> None:
    assert run_distributed(endless_work, 2, asked_rank) == ["stopped", "stopped"]
