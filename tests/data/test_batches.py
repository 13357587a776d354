"""Layout, padding and masking of micro-batches."""

import numpy as np
import pytest
import torch

from minimoe_dist.data.batches import (
    IGNORED_LABEL,
    MaskedCollate,
    MicroBatch,
    SpecialTokens,
    UnmaskedCollate,
    build_collate,
)
from minimoe_dist.data.pairs import Pair
from tests.data.pair_batches import batch_of

SPECIAL = SpecialTokens(cls=101, sep=102, pad=0, mask=103, vocab_size=1000)
FIRST_PLAIN = 200


def pair_of(first: int, second: int) -> Pair:
    return Pair(
        np.arange(FIRST_PLAIN, FIRST_PLAIN + first),
        np.arange(2 * FIRST_PLAIN, 2 * FIRST_PLAIN + second),
        False,
    )


def masked_batch(lengths: list[tuple[int, int]], seed: int = 0, start: int = 0) -> MicroBatch:
    collate = MaskedCollate(SPECIAL, 128, seed)
    ids = np.arange(start, start + len(lengths))
    return collate(batch_of([pair_of(*both) for both in lengths]), ids)


@pytest.fixture(scope="module")
def many_masked() -> MicroBatch:
    return masked_batch([(40, 60)] * 1500)


def equal_batches(one: MicroBatch, other: MicroBatch) -> bool:
    return all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("input_ids", "labels"))


def test_a_pair_is_laid_out_with_its_special_tokens() -> None:
    batch = UnmaskedCollate(SPECIAL, 128)(batch_of([pair_of(2, 3)]), np.array([7]))
    assert batch.input_ids.tolist() == [[101, 200, 201, 102, 400, 401, 402, 102]]


def test_segment_ids_change_after_the_first_separator() -> None:
    batch = UnmaskedCollate(SPECIAL, 128)(batch_of([pair_of(2, 4)]), np.array([7]))
    assert batch.token_type_ids.tolist() == [[0] * 4 + [1] * 5 + [0] * 7]


def test_the_attention_mask_covers_what_is_not_padding() -> None:
    batch = UnmaskedCollate(SPECIAL, 128)(
        batch_of([pair_of(2, 4), pair_of(1, 1)]), np.array([7, 8])
    )
    assert batch.attention_mask.sum(dim=1).tolist() == [9, 5]
    assert (batch.input_ids[~batch.attention_mask] == SPECIAL.pad).all()


@pytest.mark.parametrize(
    ("longest", "max_length", "padded"), [(9, 128, 16), (16, 128, 16), (17, 20, 20), (5, 6, 6)]
)
def test_padding_goes_to_the_next_multiple_of_eight_within_the_maximum(
    longest: int, max_length: int, padded: int
) -> None:
    batch = UnmaskedCollate(SPECIAL, max_length)(batch_of([pair_of(1, longest - 4)]), np.array([0]))
    assert batch.input_ids.shape == (1, padded)


@pytest.mark.parametrize("data_type", ["bert_nil", "bert_mlm"])
def test_batches_may_be_padded_to_the_full_length_as_published(data_type: str) -> None:
    collate = build_collate(data_type, SPECIAL, 64, 1, full_length=True)
    batch = collate(batch_of([pair_of(2, 4)]), np.array([7]))
    assert batch.input_ids.shape == (1, 64)
    assert batch.attention_mask.sum() == 9


def test_tensors_have_the_documented_types() -> None:
    batch = masked_batch([(5, 5)])
    assert batch.attention_mask.dtype == torch.bool
    assert batch.labels is not None
    integers = (batch.input_ids, batch.token_type_ids, batch.sample_ids, batch.labels)
    assert {tensor.dtype for tensor in integers} == {torch.int64}


def test_without_masking_there_are_no_labels() -> None:
    assert UnmaskedCollate(SPECIAL, 128)(batch_of([pair_of(2, 3)]), np.array([0])).labels is None


@pytest.mark.parametrize("data_type", ["bert_nil", "bert_mlm", "roberta_nil", "roberta_mlm"])
def test_a_batch_without_samples_has_eight_columns(data_type: str) -> None:
    collate = build_collate(data_type, SPECIAL, 128, 0)  # type: ignore[arg-type]
    batch = collate(batch_of([]), np.empty(0, dtype=np.int64))
    assert batch.input_ids.shape == batch.attention_mask.shape == (0, 8)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    pair = Pair(np.array([1000]), np.array([5]), False)
    with pytest.raises(ValueError, match="token id 1000 in a vocabulary of 1000"):
        UnmaskedCollate(SPECIAL, 128)(batch_of([pair]), np.array([0]))


def test_a_special_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="special token mask: id 103"):
        SpecialTokens(cls=1, sep=2, pad=0, mask=103, vocab_size=100)


def test_an_unknown_data_type_is_refused() -> None:
    with pytest.raises(ValueError, match="data_type is 'bert_nill'"):
        build_collate("bert_nill", SPECIAL, 128, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("length", "masked"), [(5, 1), (10, 2), (24, 4), (57, 9), (100, 15), (128, 19)]
)
def test_fifteen_percent_of_the_positions_are_predicted(length: int, masked: int) -> None:
    labels = masked_batch([(1, length - 4)] * 50).labels
    assert labels is not None
    expected = [min(masked, length - 3)] * 50
    assert (labels != IGNORED_LABEL).sum(dim=1).tolist() == expected


def test_at_most_twenty_positions_are_predicted() -> None:
    batch = MaskedCollate(SPECIAL, 512, 0)(batch_of([pair_of(100, 150)]), np.array([0]))
    assert batch.labels is not None
    assert int((batch.labels != IGNORED_LABEL).sum()) == 20


def test_only_tokens_of_the_segments_are_predicted() -> None:
    labels = masked_batch([(3, 4), (30, 40), (1, 1)] * 200).labels
    assert labels is not None
    assert int(labels[labels != IGNORED_LABEL].min()) >= FIRST_PLAIN


def test_labels_are_what_stood_there_before(many_masked: MicroBatch) -> None:
    plain = UnmaskedCollate(SPECIAL, 128)(batch_of([pair_of(40, 60)] * 1500), np.arange(1500))
    assert many_masked.labels is not None
    chosen = many_masked.labels != IGNORED_LABEL
    assert torch.equal(many_masked.labels[chosen], plain.input_ids[chosen])


def test_other_positions_are_left_alone(many_masked: MicroBatch) -> None:
    plain = UnmaskedCollate(SPECIAL, 128)(batch_of([pair_of(40, 60)] * 1500), np.arange(1500))
    assert many_masked.labels is not None
    others = many_masked.labels == IGNORED_LABEL
    assert torch.equal(many_masked.input_ids[others], plain.input_ids[others])


def test_eighty_ten_ten_percent_are_masked_kept_and_replaced(many_masked: MicroBatch) -> None:
    assert many_masked.labels is not None
    chosen = many_masked.labels != IGNORED_LABEL
    shown, labels = many_masked.input_ids[chosen], many_masked.labels[chosen]
    hidden, kept = shown == SPECIAL.mask, shown == labels
    shares = [float(x.float().mean()) for x in (hidden, kept, ~hidden & ~kept)]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_replacements_come_from_the_whole_vocabulary(many_masked: MicroBatch) -> None:
    assert many_masked.labels is not None
    chosen = many_masked.labels != IGNORED_LABEL
    shown, labels = many_masked.input_ids[chosen], many_masked.labels[chosen]
    replaced = shown[(shown != SPECIAL.mask) & (shown != labels)].numpy()
    assert np.histogram(replaced, bins=5, range=(0, 1000))[0] == pytest.approx(
        len(replaced) / 5, rel=0.2
    )


def test_every_position_is_predicted_equally_often(many_masked: MicroBatch) -> None:
    assert many_masked.labels is not None
    counts = (many_masked.labels != IGNORED_LABEL).sum(dim=0).numpy()
    inside = np.concatenate([counts[1:41], counts[42:102]])
    assert inside == pytest.approx(inside.mean(), abs=5 * np.sqrt(inside.mean()))


def test_masks_depend_on_the_sample_and_not_on_its_neighbours() -> None:
    together = masked_batch([(20, 21)] * 6)
    alone = masked_batch([(20, 21)] * 2, start=4)
    assert together.labels is not None
    assert alone.labels is not None
    assert torch.equal(together.labels[4:], alone.labels)
    assert torch.equal(together.input_ids[4:], alone.input_ids)


def test_masks_differ_between_samples() -> None:
    labels = masked_batch([(40, 60)] * 2).labels
    assert labels is not None
    assert not torch.equal(labels[0], labels[1])


def test_masks_differ_between_seeds() -> None:
    assert not equal_batches(masked_batch([(40, 60)], seed=1), masked_batch([(40, 60)], seed=2))


def test_separators_inside_a_segment_are_not_predicted() -> None:
    pair = Pair(np.array([SPECIAL.sep, 300]), np.array([SPECIAL.cls]), False)
    labels = MaskedCollate(SPECIAL, 128, 0)(batch_of([pair] * 50), np.arange(50)).labels
    assert labels is not None
    assert labels[labels != IGNORED_LABEL].tolist() == [300] * 50


# Words of three pieces: ids 300, 301, 302 with 301 and 302 continuing, and so on.
CONTINUATION = np.array([i >= 300 and i % 3 != 0 for i in range(1000)])


def whole_word_labels(first: list[int], second: list[int], count: int = 200) -> np.ndarray:
    collate = MaskedCollate(SPECIAL, 128, 0, continuation=CONTINUATION)
    pair = Pair(np.array(first), np.array(second), False)
    labels = collate(batch_of([pair] * count), np.arange(count)).labels
    assert labels is not None
    return labels.numpy()


def test_whole_words_are_predicted_whole() -> None:
    labels = whole_word_labels([*range(300, 330)], [*range(600, 645)])
    words = labels[:, [*range(1, 31), *range(32, 77)]].reshape(200, 25, 3) != IGNORED_LABEL
    assert set(words.sum(axis=2).ravel().tolist()) == {0, 3}


def test_whole_words_fill_the_budget_as_far_as_they_fit() -> None:
    labels = whole_word_labels([*range(300, 330)], [*range(600, 645)])
    # 78 positions: a budget of 12, that is four words of three.
    assert set((labels != IGNORED_LABEL).sum(axis=1).tolist()) == {12}


def test_a_word_does_not_go_on_behind_a_separator() -> None:
    labels = whole_word_labels([300], [301] + [303] * 8)
    both = labels[:, [1, 3]] != IGNORED_LABEL
    assert (both[:, 0] != both[:, 1]).any()


def test_a_word_that_does_not_fit_gives_one_position() -> None:
    labels = whole_word_labels([300, 301, 302], [303, 304, 305], count=20)
    assert (labels != IGNORED_LABEL).sum(axis=1).tolist() == [1] * 20


def test_marks_for_another_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="whole_word_mask"):
        MaskedCollate(SPECIAL, 128, 0, continuation=CONTINUATION[:-1])


def test_moving_a_batch_keeps_what_is_missing() -> None:
    moved = UnmaskedCollate(SPECIAL, 128)(batch_of([pair_of(2, 3)]), np.array([4])).to("meta")
    assert moved.labels is None
    assert moved.input_ids.device.type == "meta"


def test_marks_of_pairs_join_tokens_to_words() -> None:
    nothing = np.zeros(SPECIAL.vocab_size, dtype=bool)
    collate = MaskedCollate(SPECIAL, 128, 0, nothing)
    ids = np.arange(200, 232)
    odd = ids % 2 == 1
    batch = collate(batch_of([Pair(ids, ids, False, odd, odd)] * 200), np.arange(200))
    labels = batch.labels.numpy()
    chosen = labels != IGNORED_LABEL
    starts = chosen[:, :-1] & (labels[:, :-1] % 2 == 0)
    assert chosen.any()
    assert np.array_equal(starts, (chosen & (labels % 2 == 1))[:, 1:])


def test_marks_of_pieces_and_of_pairs_add_up() -> None:
    pieces = np.zeros(SPECIAL.vocab_size, dtype=bool)
    pieces[201] = True
    pair = Pair(np.array([200, 201, 202]), np.array([300]), False, np.array([0, 0, 1], bool))
    taken = set()
    for sample in range(300):
        batch = MaskedCollate(SPECIAL, 128, 0, pieces)(batch_of([pair]), np.array([sample]))
        taken.add(tuple(np.flatnonzero(batch.labels[0].numpy() != IGNORED_LABEL).tolist()))
    # One position may be masked: the word of three never fits, but is cut if it comes first.
    assert taken == {(1,), (5,)} or taken == {(5,)}


ROBERTA = SpecialTokens(cls=0, sep=2, pad=1, mask=999, vocab_size=1000)


@pytest.mark.parametrize("data_type", ["roberta_nil", "roberta_mlm"])
def test_robertas_batches_have_its_tokens_and_one_segment(data_type: str) -> None:
    collate = build_collate(data_type, ROBERTA, 128, 0)  # type: ignore[arg-type]
    batch = collate(batch_of([pair_of(2, 3), pair_of(1, 1)]), np.array([7, 8]))
    ids = batch.input_ids if batch.labels is None else batch.labels.where(
        batch.labels != IGNORED_LABEL, batch.input_ids
    )  # fmt: skip
    assert ids.tolist() == [[0, 200, 201, 2, 400, 401, 402, 2], [0, 200, 2, 400, 2, 1, 1, 1]]
    assert not batch.token_type_ids.any()


def test_robertas_masks_never_hide_its_special_tokens() -> None:
    collate = build_collate("roberta_mlm", ROBERTA, 128, 0)
    batch = collate(batch_of([pair_of(20, 30)] * 200), np.arange(200))
    assert batch.labels is not None
    assert not torch.isin(batch.labels, torch.tensor([0, 1, 2])).any()
    assert (batch.labels != IGNORED_LABEL).sum(1).tolist() == [8] * 200
