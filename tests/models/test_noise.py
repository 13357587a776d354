"""Dropout and router noise: a function of seed, sample, position and site, and fit as noise."""

import math

import pytest
import torch

from minimoe_dist.models.noise import NoiseKeys, sample_keys

SEED = 776
ROWS, COLUMNS = 4096, 64


def keys_of(samples, length, mask=None, seed=SEED):
    rows = None if mask is None else mask.flatten().nonzero().squeeze(-1)
    return NoiseKeys(sample_keys(seed, torch.as_tensor(samples), length), rows)


def row_masks(keys, columns=32, site=3, probability=0.3):
    """What dropout lets through of ones, per packed token."""
    return keys.dropout(torch.ones(len(keys.token_keys), columns), probability, site)


def attention_masks(samples, length, heads=3):
    ones = torch.ones(len(samples), heads, length, length)
    return keys_of(samples, length).dropout_attention(ones, 0.3, 1)


def uniforms(seed=SEED, first_sample=0, site=3):
    """[ROWS, COLUMNS]: 64 positions of each of 64 samples."""
    samples = torch.arange(first_sample, first_sample + ROWS // 64)
    return keys_of(samples, 64, seed=seed).uniform(COLUMNS, site)


def correlation(first, second) -> float:
    return torch.corrcoef(torch.stack([first.flatten(), second.flatten()]).double())[0, 1].item()


def test_a_samples_masks_do_not_depend_on_its_batch_or_its_padding() -> None:
    alone = row_masks(keys_of([41], 8))
    together = row_masks(keys_of([7, 41, 3], 24)).unflatten(0, (3, 24))
    assert torch.equal(together[1, :8], alone)


def test_packed_tokens_get_what_they_get_unpacked() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    whole = keys_of([5, 6, 7], 4).uniform(4, 2).unflatten(0, (3, 4))
    assert torch.equal(keys_of([5, 6, 7], 4, mask).uniform(4, 2), whole[mask])


def test_a_samples_attention_masks_do_not_depend_on_its_batch_or_its_padding() -> None:
    alone, together = attention_masks([41], 8), attention_masks([7, 41, 3], 24)
    assert torch.equal(together[1:2, :, :8, :8], alone)


@pytest.mark.parametrize(
    "other",
    [
        lambda: row_masks(keys_of([41], 8, seed=SEED + 1)),
        lambda: row_masks(keys_of([42], 8)),
        lambda: row_masks(keys_of([41 + 2**32], 8)),
        lambda: row_masks(keys_of([41], 8), site=4),
        lambda: row_masks(keys_of([41], 9))[1:],
    ],
    ids=["seed", "sample", "sample beyond 32 bits", "site", "position"],
)
def test_masks_differ_by(other) -> None:
    kept, other_kept = row_masks(keys_of([41], 8)) > 0, other() > 0
    # Of independent masks, 0.3 · 0.7 · 2 of the elements differ.
    assert (kept != other_kept).float().mean() == pytest.approx(0.42, abs=0.1)


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5, 0.9])
def test_the_drop_rate_is_the_probability_to_three_sigma(probability) -> None:
    masks = row_masks(keys_of(range(256), 64), 64, probability=probability)
    sigma = math.sqrt(probability * (1 - probability) / masks.numel())
    assert abs((masks == 0).double().mean().item() - probability) < 3 * sigma


def test_the_attentions_drop_rate_is_the_probability_to_three_sigma() -> None:
    masks = attention_masks(range(16), 64, heads=12)
    sigma = math.sqrt(0.3 * 0.7 / masks.numel())
    assert abs((masks == 0).double().mean().item() - 0.3) < 3 * sigma


def test_what_is_kept_is_scaled_to_keep_the_expectation() -> None:
    values = torch.full((64, 8), 3.0)
    kept = keys_of([1], 64).dropout(values, 0.25, 0)
    assert set(kept.unique().tolist()) == {0.0, 4.0}


def test_half_precision_keeps_the_expectation_too() -> None:
    values = torch.full((4096, 64), 1.0, dtype=torch.bfloat16)
    mean = keys_of(range(64), 64).dropout(values, 0.1, 0).double().mean().item()
    # The scale itself is rounded to bfloat16's 8 bits.
    assert mean == pytest.approx(1.0, abs=2**-8)


def test_gradients_pass_where_values_passed() -> None:
    values = torch.ones(64, 8, requires_grad=True)
    kept = keys_of([1], 64).dropout(values, 0.25, 0)
    kept.sum().backward()
    assert torch.equal(values.grad, kept.detach())


def test_uniforms_lie_in_zero_to_one_without_one() -> None:
    values = uniforms()
    assert values.dtype == torch.float32
    assert values.min() >= 0.0 and values.max() < 1.0


def test_uniforms_are_spread_evenly() -> None:
    values = uniforms().double()
    count = values.numel()
    assert values.mean().item() == pytest.approx(0.5, abs=4 / math.sqrt(12 * count))
    assert values.var().item() == pytest.approx(1 / 12, abs=4 * math.sqrt(1 / 180 / count))
    bins = torch.histc(values, 64, 0, 1)
    chi_square = ((bins - count / 64) ** 2 / (count / 64)).sum().item()
    assert chi_square < 63 + 5 * math.sqrt(2 * 63)


def test_means_of_rows_and_columns_scatter_as_those_of_independent_numbers() -> None:
    values = uniforms().double()
    for axis, count in ((0, ROWS), (1, COLUMNS)):
        scaled = (values.mean(axis) - 0.5) * math.sqrt(12 * count)
        assert scaled.var().item() == pytest.approx(1.0, abs=0.75 if axis == 0 else 0.12)
        assert scaled.abs().max() < 5


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda: uniforms()[:-1], lambda: uniforms()[1:]),
        (lambda: uniforms()[:-64], lambda: uniforms()[64:]),
        (lambda: uniforms()[:, :-1], lambda: uniforms()[:, 1:]),
        (lambda: uniforms()[:, ::2], lambda: uniforms()[:, 1::2]),
        (uniforms, lambda: uniforms(site=4)),
        (lambda: uniforms()[:, 1:], lambda: uniforms(site=4)[:, :-1]),
        (uniforms, lambda: uniforms(seed=SEED + 1)),
        (uniforms, lambda: uniforms(first_sample=1_000_000)),
        (uniforms, lambda: uniforms(first_sample=2**33)),
    ],
    ids=[
        "rows",
        "samples",
        "columns",
        "column pairs",
        "sites",
        "shifted sites",
        "seeds",
        "far",
        "further",
    ],
)
def test_correlation_is_negligible_between(first, second) -> None:
    first, second = first(), second()
    assert abs(correlation(first, second)) < 4 / math.sqrt(first.numel())


def test_correlation_is_negligible_between_heads_queries_and_keys() -> None:
    masks = attention_masks(range(16), 64, heads=4)
    above = torch.ones(64, 64).triu(1).bool()
    pairs = [
        (masks[:, 1:], masks[:, :-1]),
        (masks[:, :, 1:], masks[:, :, :-1]),
        (masks[..., 1:], masks[..., :-1]),
        (masks[..., above], masks.transpose(-1, -2)[..., above]),
    ]
    for first, second in pairs:
        assert abs(correlation(first, second)) < 4 / math.sqrt(first.numel())
