"""Which numbers of steps are told as wrong, when that is over, and what ends a run."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch

from minimoe_dist.config.schema import HealthConfig
from minimoe_dist.errors import UserError
from minimoe_dist.runs.health import HealthRecord
from minimoe_dist.train.health import HealthWatch, Router, teacher_records, tell
from minimoe_dist.train.step_metrics import StepMetrics, StudentMetrics
from minimoe_dist.train.teacher_signals import SignalFault, find_faults
from tests.distributed import run_distributed

ROUTERS = [Router(1, "attention"), Router(1, "feed-forward")]
EVEN = [[50.0, 50.0], [25.0] * 4]


def metrics(
    norm: float = 1.0, blocks: Sequence[Sequence[float]] = EVEN, applied: bool = True
) -> StepMetrics:
    student = StudentMetrics(1.0, {}, 1.0, norm, applied, [list(block) for block in blocks])
    return StepMetrics(0.1, 1, 100, False, {"s": student})


def watched(steps: Iterable[StepMetrics], **options: Any) -> list[HealthRecord]:
    """What is found in steps, each by its number from 1."""
    watch = HealthWatch(HealthConfig(window=10).model_copy(update=options), {"s": ROUTERS})
    return [record for step, one in enumerate(steps, 1) for record in watch.step(step, one)]


def norms(*values: float, **options: Any) -> list[tuple[int, bool, int]]:
    found = watched([metrics(norm) for norm in values], **options)
    return [(record.step, record.is_over, record.since) for record in found]


def test_a_norm_far_above_the_windows_median_is_told_once_until_it_is_over() -> None:
    usual = [1.0, 2.0, 3.0] * 4
    assert norms(*usual, 21.0, 30.0, 25.0, 2.0, 2.0) == [(13, False, 13), (16, True, 13)]


def test_a_norm_below_the_factor_is_usual() -> None:
    assert norms(*[2.0] * 12, 19.0) == []
    assert norms(*[2.0] * 12, 19.0, exploding_factor=9.0) == [(13, False, 13)]


def test_what_explodes_for_long_does_not_become_usual() -> None:
    assert norms(*[1.0] * 12, *[50.0] * 40) == [(13, False, 13)]


def test_the_first_norms_are_held_against_the_largest_so_far() -> None:
    assert norms(1.0, 9.0, 80.0, 901.0) == [(4, False, 4)]


def test_a_norm_of_a_step_that_was_left_out_says_nothing() -> None:
    steps = [metrics(1.0)] * 12 + [metrics(math.inf, applied=False), metrics(1e9, applied=False)]
    assert watched(steps) == []


def test_gradients_of_zero_have_no_usual_norm() -> None:
    assert norms(*[0.0] * 12, 1.0) == []


def test_an_expert_is_judged_by_its_share_of_a_window() -> None:
    one_step = [metrics(blocks=[[50.0, 50.0], [100.0, 0.0, 0.0, 0.0]])]
    assert watched(one_step * 8 + [metrics()] * 2) == []
    dead, alive = [[50.0, 50.0], [34.0, 33.0, 0.0, 33.0]], EVEN
    found = watched([metrics(blocks=dead)] * 20 + [metrics(blocks=alive)] * 20)
    told = [(one.step, one.is_over, one.since, one.layer, one.block, one.expert) for one in found]
    assert told == [(10, False, 1, 1, "feed-forward", 3), (30, True, 1, 1, "feed-forward", 3)]


def test_an_overloaded_expert_is_told_beside_the_dead() -> None:
    found = watched([metrics(blocks=[[0.5, 99.5], [25.0] * 4])] * 10, dead_share=0.02)
    told = {(one.health, one.block, one.expert, one.value) for one in found}
    assert told == {
        ("dead_expert", "attention", 1, 0.005),
        ("overloaded_expert", "attention", 2, 0.995),
    }


def test_a_few_tokens_say_nothing_of_experts() -> None:
    few = [[9.0, 9.0], [9.0, 0.0, 0.0, 0.0]]
    assert watched([metrics(blocks=few)] * 10) == []


@pytest.mark.parametrize("reaction", ["exploding_gradient", "dead_expert", "overloaded_expert"])
def test_what_is_off_is_not_found(reaction: str) -> None:
    steps = [metrics(blocks=[[0.0, 100.0], [25.0] * 4])] * 20 + [metrics(99.0)]
    found = {record.health for record in watched(steps)}
    assert {record.health for record in watched(steps, **{reaction: "off"})} == found - {reaction}
    assert reaction in found


def test_a_watch_goes_on_where_it_was_saved() -> None:
    dead = [[50.0, 50.0], [34.0, 33.0, 0.0, 33.0]]
    steps = [metrics(blocks=dead)] * 15 + [metrics(99.0)] * 3 + [metrics()] * 14
    watch = HealthWatch(HealthConfig(window=10), {"s": ROUTERS})
    found = []
    for step, one in enumerate(steps, 1):
        found += watch.step(step, one)
        saved = json.loads(json.dumps(watch.state()))
        watch = HealthWatch(HealthConfig(window=10), {"s": ROUTERS})
        watch.restore(saved)
    assert found == watched(steps)
    assert [record.is_over for record in found] == [False, False, True, True]


def test_many_experts_are_one_line() -> None:
    routers = {"s": [Router(1, "feed-forward")]}
    watch = HealthWatch(HealthConfig(window=2), routers)
    blocks = [[1e5] * 4 + [0.0] * 60]
    found = [record for step in (1, 2) for record in watch.step(step, metrics(blocks=blocks))]
    (line,) = tell(found, HealthConfig())
    assert line.startswith("step 2: s: layer 1 feed-forward expert 5 gets 0 % of the tokens (dead ")
    assert line.endswith("; and 57 more: since step 1")


def test_an_end_comes_behind_the_warnings_and_names_option_and_remedy() -> None:
    found = watched([metrics(blocks=[[0.0, 100.0], [25.0] * 4])] * 10)
    lines = tell(found, HealthConfig(dead_expert="stop"))
    assert "overloaded" in next(lines)
    with pytest.raises(UserError, match=r"s: layer 1 attention expert 1 .*\.dead_expert=warn; "):
        next(lines)


def test_the_end_of_a_condition_ends_no_run() -> None:
    found = watched([metrics()] * 12 + [metrics(99.0), metrics()])
    (line,) = tell(found[1:], HealthConfig(exploding_gradient="stop"))
    assert line.endswith("over, it began at step 13")


def test_a_teacher_that_fails_now_and_then_ends_no_run() -> None:
    found = teacher_records(3, "t", [SignalFault("queries", 0.5), SignalFault("keys", 0.5)])
    (line,) = tell(found, HealthConfig())
    assert line == (
        "step 3: the queries, keys of the teacher t are not finite for 50 % of what it reads: "
        "since step 3"
    )


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_teacher_that_teaches_nothing_ends_a_run(share: float) -> None:
    with pytest.raises(UserError, match=r"step 1: the keys of the teacher t .*broken_teacher=warn"):
        list(tell(teacher_records(1, "t", [SignalFault("keys", share)]), HealthConfig()))


def test_no_in_yaml_is_off() -> None:
    assert HealthConfig.model_validate({"dead_expert": False}).dead_expert == "off"


def faults_of_ranks() -> list[SignalFault]:
    rank = torch.distributed.get_rank()
    varied = torch.randn(6, 4, generator=torch.Generator().manual_seed(rank))
    signals = {
        "good": varied,
        "constant": torch.full((6, 4), 3.0),
        "zero": torch.zeros(6, 4, dtype=torch.bfloat16),
        "rounded": torch.full((6, 4), 3.0) * (1 + 1e-7 * varied),
        "offset": 100.0 + varied,
        "scores": varied[:, 0],
        "half": varied if rank else varied * torch.nan,
        "nan": varied * torch.inf * 0,
        "single": varied[:1],
    }
    return find_faults([signals, signals], torch.device("cpu"))


def test_signals_are_judged_over_all_ranks() -> None:
    first, second = run_distributed(faults_of_ranks, 2)
    assert first == second
    assert [tuple(fault) for fault in first] == [
        ("constant", 1.0),
        ("zero", 1.0),
        ("rounded", 1.0),
        ("half", 0.5),
        ("nan", 0.0),
    ]
