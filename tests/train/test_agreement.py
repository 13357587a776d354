"""One rank decides, all learn."""

import torch.distributed as dist

from minimoe_dist.errors import UserError
from minimoe_dist.train.agreement import decided_by_rank_0
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
