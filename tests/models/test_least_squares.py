"""Maps that are fitted in closed form."""

import pytest
import torch
from torch import Tensor, nn

from minimoe_dist.models.block_fits import balanced_router
from minimoe_dist.models.least_squares import (
    Affine,
    Moments,
    explained,
    fit_norm,
    least_squares,
    narrow,
    narrow_scores,
    ridge,
    second_moment_factor,
    side_by_side,
    standardised,
    way_back,
    with_ones,
)


@pytest.fixture
def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(12, 12, generator=generator)
    return torch.randn(4000, 12, generator=generator) @ mixed + torch.arange(12.0)


def an_affine(inputs: int, outputs: int, seed: int) -> Affine:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(inputs, outputs, generator=generator)
    return Affine(weight, torch.randn(outputs, generator=generator))


def test_an_affine_map_is_found_again(rows: Tensor) -> None:
    wanted = an_affine(12, 5, 1)(rows)
    assert explained(ridge(rows, wanted)(rows), wanted) > 0.999
    (found,) = least_squares(with_ones(rows), (wanted,))
    assert explained(with_ones(rows) @ found, wanted) > 0.999


def test_moments_are_those_of_all_rows(rows: Tensor) -> None:
    moments = Moments()
    for piece in rows.split(700):
        moments.add(piece)
    assert torch.allclose(moments.mean.float(), rows.mean(0), atol=1e-4)
    assert torch.allclose(moments.covariance.float(), torch.cov(rows.T, correction=0), rtol=1e-3)


def test_the_way_back_from_a_space_is_the_nearest(rows: Tensor) -> None:
    moments = Moments()
    moments.add(rows)
    directions = torch.linalg.eigh(moments.covariance)[1].flip(1)
    for width, least in ((12, 0.9999), (6, 0.6)):
        space = directions[:, :width]
        back = way_back(moments, space)(rows @ space.float())
        assert least < explained(back, rows) <= 1.0
        # What is left has nothing to do with what was kept.
        left = (rows - back).double()
        assert (left.T @ (rows.double() @ space)).abs().max() / len(rows) < 0.05


def test_maps_follow_one_another_and_lie_side_by_side(rows: Tensor) -> None:
    first, second = an_affine(12, 5, 1), an_affine(5, 3, 2)
    assert torch.allclose(first.then(second)(rows), second(first(rows)), atol=1e-3)
    both = side_by_side([first, first.of(torch.tensor([2]))])
    assert torch.allclose(both(rows)[:, -1], first(rows)[:, 2], atol=1e-4)


@pytest.mark.parametrize("size", [8, 5])
def test_scores_of_a_head_stay_in_as_many_elements_or_more(size: int, rows: Tensor) -> None:
    query, key = an_affine(12, 5, 1), an_affine(12, 5, 2)
    factor = second_moment_factor(with_ones(rows.double()))
    narrowed = narrow_scores((query, key), factor, size)
    wanted = query(rows) @ key(rows).T / 5**0.5
    got = narrowed[0](rows) @ narrowed[1](rows).T / size**0.5
    assert explained(got, wanted) > 0.999
    divided = narrow_scores((query, key), factor, size, divisor=4.0)
    assert explained(2.0 * divided[0](rows) @ divided[1](rows).T / size**0.5, wanted) > 0.999


def test_scores_of_a_narrower_head_are_the_nearest(rows: Tensor) -> None:
    query, key = an_affine(12, 6, 1), an_affine(12, 6, 2)
    factor = second_moment_factor(with_ones(rows.double()))
    wanted = query(rows) @ key(rows).T / 6**0.5

    def error(maps: tuple[Affine, Affine]) -> float:
        got = maps[0](rows) @ maps[1](rows).T / 3**0.5
        return float((got - wanted).square().mean())

    kept = torch.arange(3)
    cut = (query.of(kept), key.of(kept))
    assert error(narrow_scores((query, key), factor, 3)) < 0.8 * error(cut)


@pytest.mark.parametrize("centred", [True, False])
def test_a_map_is_narrowed_to_its_principal_components(centred: bool, rows: Tensor) -> None:
    wide = an_affine(12, 6, 3)
    same = narrow(wide, rows, 9, centred)(rows)
    assert same.shape == (4000, 9)
    # Vectors keep their products, whatever directions they are told in.
    assert torch.allclose(same @ same.T, wide(rows) @ wide(rows).T, rtol=1e-2, atol=1.0)
    few = narrow(wide, rows, 2, centred)(rows)
    assert few.var(0).sum() < wide(rows).var(0).sum()


def test_a_norm_is_fitted_to_what_it_should_give(rows: Tensor) -> None:
    norm, target = nn.LayerNorm(12), nn.LayerNorm(12)
    with torch.no_grad():
        target.weight.uniform_(0.5, 1.5)
        target.bias.uniform_(-1, 1)
        wanted = target(rows)
        fit_norm(norm, rows, wanted, keeps_variance=False)
        assert torch.allclose(norm(rows), wanted, atol=1e-4)
        noisy = rows + 3 * rows.std() * torch.randn(rows.shape)
        fit_norm(norm, noisy, wanted, keeps_variance=False)
        assert (norm(noisy).std(0) < wanted.std(0)).all()
        fit_norm(norm, noisy, wanted, keeps_variance=True)
        assert torch.allclose(norm(noisy).std(0), wanted.std(0), rtol=1e-3)


def test_standardised_rows_are_as_layer_norm_leaves_them(rows: Tensor) -> None:
    found = standardised(rows)
    assert torch.allclose(found.mean(1), torch.zeros(4000), atol=1e-5)
    assert torch.allclose(found.square().mean(1), torch.ones(4000), atol=1e-3)


@pytest.mark.parametrize("experts", [2, 4, 5])
def test_a_router_sends_equal_shares_to_its_experts(experts: int, rows: Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        router = balanced_router(rows, experts)
    probabilities = router(rows).softmax(-1)
    shares = torch.bincount(probabilities.argmax(-1), minlength=experts) / len(rows)
    assert (shares - 1 / experts).abs().max() < 0.03
    assert 1.2 / experts < probabilities.max(-1).values.mean() < 0.97
