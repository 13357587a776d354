"""TinyBERT's squared errors against the plain formula and autograd's gradients."""

import pytest
import torch

from minimoe_dist.objectives.tinybert import States, tinybert_counts, tinybert_loss_sums

HEADS, WIDTH = 3, 10
MASK = torch.arange(7) < torch.tensor([7, 4, 0, 5])[:, None]


def draw(attention_width, seed, dtype=torch.float32, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    widths = (WIDTH, WIDTH, attention_width, attention_width)
    values = (torch.randn(*MASK.shape, w, generator=generator).to(dtype) for w in widths)
    return States(*(x.requires_grad_(requires_grad) for x in values))


def scores(states):
    query, key = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in states[2:])
    return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5


def plain_sums(student, teacher):
    """The formula as it stands: all scores at once."""
    states = sum(((s - t) ** 2)[MASK].sum() for s, t in zip(student[:2], teacher[:2], strict=True))
    pairs = (MASK[:, None, :, None] & MASK[:, None, None, :]).expand(-1, HEADS, -1, -1)
    return states, ((scores(student) - scores(teacher)) ** 2)[pairs].sum()


@pytest.mark.parametrize("tile", [1, 2 * HEADS * 49, None], ids=["samples", "pairs", "whole"])
def test_sums_and_gradients_are_the_plain_formulas(tile) -> None:
    student = draw(6, 0, torch.float64, requires_grad=True)
    teacher = draw(12, 1, torch.float64)
    ours = tinybert_loss_sums(student, teacher, MASK, HEADS, tile_elements=tile)
    states, attention = plain_sums(student, teacher)
    torch.testing.assert_close(ours.states, states)
    torch.testing.assert_close(ours.scores, attention)
    given = torch.autograd.grad(2.0 * ours.states + 0.3 * ours.scores, student)
    wanted = torch.autograd.grad(2.0 * states + 0.3 * attention, student)
    torch.testing.assert_close(given, wanted)


def test_gradients_pass_gradcheck() -> None:
    student, teacher = draw(6, 0, torch.float64, True), draw(6, 1, torch.float64)

    def loss(*states):
        return tinybert_loss_sums(States(*states), teacher, MASK, HEADS).mean()

    assert torch.autograd.gradcheck(loss, tuple(student))


def test_counts_are_of_real_tokens_and_real_pairs() -> None:
    counts = tinybert_counts(MASK, WIDTH, HEADS)
    assert counts == (2 * 16 * WIDTH, HEADS * (49 + 16 + 25))


def test_compat_seed_counts_scores_to_padding_as_well() -> None:
    counts = tinybert_counts(MASK, WIDTH, HEADS, padded_length=128)
    assert counts == (2 * 16 * WIDTH, HEADS * 16 * 128)


def test_sums_over_micro_batches_are_those_of_the_whole_batch() -> None:
    student, teacher = draw(6, 0), draw(12, 1)
    whole = tinybert_loss_sums(student, teacher, MASK, HEADS)
    parts = [
        tinybert_loss_sums(
            States(*(x[rows] for x in student)),
            States(*(x[rows] for x in teacher)),
            MASK[rows],
            HEADS,
        )
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(whole.states, parts[0].states + parts[1].states)
    torch.testing.assert_close(whole.scores, parts[0].scores + parts[1].scores)
    assert whole.counts == tuple(map(sum, zip(*(p.counts for p in parts), strict=True)))


def test_padding_may_hold_anything() -> None:
    student, teacher = draw(6, 0, requires_grad=True), draw(12, 1)
    clean = tinybert_loss_sums(student, teacher, MASK, HEADS).mean()
    hole = torch.where(MASK, 0.0, torch.nan)[:, :, None]
    spoiled = tinybert_loss_sums(
        States(*(x + hole for x in student)), States(*(x + hole for x in teacher)), MASK, HEADS
    ).mean()
    assert torch.equal(spoiled, clean)
    for gradient in torch.autograd.grad(spoiled, student):
        assert torch.count_nonzero(gradient[~MASK]) == 0
        assert gradient.isfinite().all()


def test_a_teacher_in_half_precision_is_compared_in_float32() -> None:
    student, teacher = draw(6, 0), States(*(x.bfloat16() for x in draw(12, 1)))
    ours = tinybert_loss_sums(student, teacher, MASK, HEADS)
    wide = tinybert_loss_sums(student, States(*(x.float() for x in teacher)), MASK, HEADS)
    assert torch.equal(ours.scores, wide.scores) and torch.equal(ours.states, wide.states)
