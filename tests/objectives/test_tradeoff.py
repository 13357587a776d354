"""MiniDisc's choice of an assistant."""

import math

import pytest

from minimoe_dist.objectives.tradeoff import best_candidate, relation_performance, tradeoff


def test_the_tradeoff_adds_a_share_of_the_sparsity() -> None:
    assert tradeoff(0.8, 0.5) == pytest.approx(0.9)
    assert tradeoff(0.8, 0.5, weight=0.4) == pytest.approx(1.0)


def test_a_smaller_candidate_wins_where_it_loses_little() -> None:
    losses = {"s50": 0.10, "s70": 0.12, "s90": 0.60}
    sparsities = {"s50": 0.5, "s70": 0.7, "s90": 0.9}
    assert best_candidate(losses, sparsities, 0.2)[0] == "s70"
    assert best_candidate(losses, sparsities, 0.0)[0] == "s50"
    assert best_candidate(losses, sparsities, 5.0)[0] == "s90"


def test_every_candidates_score_is_told() -> None:
    _, scores = best_candidate({"a": 0.0}, {"a": 0.5}, 0.2)
    assert scores == {"a": {"performance": 1.0, "sparsity": 0.5, "tradeoff": pytest.approx(1.1)}}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_candidate_that_diverged_kept_nothing(loss: float) -> None:
    assert relation_performance(loss) == 0.0
