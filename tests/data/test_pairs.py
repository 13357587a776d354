"""Which pairs a corpus and a blend of corpora give."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from minimoe_dist.data.indexed import IndexedCorpus
from minimoe_dist.data.indexed_writing import IndexedCorpusWriter
from minimoe_dist.data.pairs import BlendedPairs, Pair, PairBatch, PairSource
from tests.data.memory_corpus import MemoryCorpus
from tests.data.pair_batches import batch_of, draw_one

ROOM = 125
MAX_LENGTH = ROOM + 3


def plain_documents(count: int, sentences: int = 20, length: int = 12) -> list[list[int]]:
    return [[length] * sentences for _ in range(count)]


def same_pair(one: Pair, other: Pair) -> bool:
    return (
        one.is_random_next == other.is_random_next
        and np.array_equal(one.first, other.first)
        and np.array_equal(one.second, other.second)
    )


def all_pairs(source: PairSource | BlendedPairs, epoch: int = 0) -> list[Pair]:
    numbers = np.arange(source.num_samples)
    return list(source.draw(np.full_like(numbers, epoch), numbers))


def test_a_pair_does_not_depend_on_what_was_drawn_before() -> None:
    corpus = MemoryCorpus(plain_documents(30))
    one, other = (PairSource(corpus, MAX_LENGTH, seed=1) for _ in range(2))
    forward = [draw_one(one, 2, k) for k in range(40)]
    backward = [draw_one(other, 2, k) for k in reversed(range(40))][::-1]
    assert all(map(same_pair, forward, backward))


def test_epochs_draw_different_pairs() -> None:
    source = PairSource(MemoryCorpus(plain_documents(30)), MAX_LENGTH, seed=1)
    assert sum(same_pair(draw_one(source, 0, k), draw_one(source, 1, k)) for k in range(60)) < 5


def test_seeds_draw_different_pairs_but_equally_many() -> None:
    corpus = MemoryCorpus(plain_documents(30))
    one, other = (PairSource(corpus, MAX_LENGTH, seed=seed) for seed in (1, 2))
    assert one.num_samples == other.num_samples
    assert sum(same_pair(draw_one(one, 0, k), draw_one(other, 0, k)) for k in range(60)) < 5


def test_an_actual_next_segment_follows_the_first_in_its_document() -> None:
    corpus = MemoryCorpus(plain_documents(30, length=5))
    source = PairSource(corpus, 60, seed=1, short_sequence_probability=0.0)
    for pair in all_pairs(source):
        if not pair.is_random_next:
            # At most 60 tokens are gathered of which 57 stay: no more than 3 fall in the gap.
            assert 1 <= pair.second[0] - pair.first[-1] <= 4
            assert corpus.document_of_token(pair.first[0]) == corpus.document_of_token(
                pair.second[-1]
            )


def test_segments_are_runs_of_consecutive_tokens_of_one_document() -> None:
    corpus = MemoryCorpus(plain_documents(30, length=17))
    for pair in all_pairs(PairSource(corpus, 40, seed=1)):
        for segment in pair[:2]:
            assert (np.diff(segment) == 1).all()
            assert corpus.document_of_token(segment[0]) == corpus.document_of_token(segment[-1])


def test_a_random_next_segment_comes_from_another_document() -> None:
    corpus = MemoryCorpus(plain_documents(3))
    for pair in all_pairs(PairSource(corpus, MAX_LENGTH, seed=1)):
        if pair.is_random_next:
            own, other = (corpus.document_of_token(segment[0]) for segment in pair[:2])
            assert own != other


def test_a_single_document_gives_its_own_random_next_segments() -> None:
    source = PairSource(MemoryCorpus(plain_documents(1, sentences=400)), MAX_LENGTH, seed=1)
    pairs = all_pairs(source)
    assert 0.2 < np.mean([pair.is_random_next for pair in pairs]) < 0.8


def test_a_corpus_of_one_sentence_gives_one_pair_of_it_twice() -> None:
    source = PairSource(MemoryCorpus([[9]]), MAX_LENGTH, seed=1)
    assert source.num_samples == 1
    assert (
        draw_one(source, 0, 0).first.tolist()
        == draw_one(source, 0, 0).second.tolist()
        == [*range(9)]
    )


def test_documents_of_one_sentence_have_only_random_next_segments_one_each() -> None:
    source = PairSource(MemoryCorpus([[7 + i % 30] for i in range(500)]), MAX_LENGTH, seed=1)
    assert source.num_samples == pytest.approx(500, rel=0.02)
    assert all(pair.is_random_next for pair in all_pairs(source))


def test_empty_documents_and_empty_sentences_change_no_number_of_samples() -> None:
    documents = plain_documents(200, sentences=11)
    padded = [d for document in documents for d in ([], [0, *document[:5], 0, 0, *document[5:]])]
    plain, holey = (
        PairSource(MemoryCorpus(d), MAX_LENGTH, seed=1).num_samples for d in (documents, padded)
    )
    assert holey == pytest.approx(plain, rel=0.02)


def test_empty_documents_and_empty_sentences_give_no_empty_segment() -> None:
    documents = [[], [0, 3, 0], [0], [5, 0, 0, 6], [], [4], [0, 0, 2, 2, 2, 0]] * 20
    for pair in all_pairs(PairSource(MemoryCorpus(documents), 12, seed=1)):
        assert len(pair.first) and len(pair.second)


def test_sentences_longer_than_the_room_are_cut_to_it() -> None:
    source = PairSource(MemoryCorpus([[1000, 3000], [500]] * 10), MAX_LENGTH, seed=1)
    assert source.num_samples == pytest.approx(30, rel=0.02)
    assert {len(p.first) + len(p.second) for p in all_pairs(source)} == {ROOM}


def test_the_smallest_room_holds_one_token_each() -> None:
    pairs = all_pairs(PairSource(MemoryCorpus(plain_documents(5)), 5, seed=1))
    assert {(len(p.first), len(p.second)) for p in pairs} == {(1, 1)}


def test_a_max_length_without_room_for_two_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length is 4"):
        PairSource(MemoryCorpus([[3]]), 4, seed=1)


def test_a_short_sequence_probability_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"short_sequence_probability is 1\.5"):
        PairSource(MemoryCorpus([[3]]), MAX_LENGTH, seed=1, short_sequence_probability=1.5)


@pytest.mark.parametrize("documents", [[], [[], []], [[0, 0]]])
def test_a_corpus_without_tokens_is_refused(documents: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="memory: the corpus has no tokens"):
        PairSource(MemoryCorpus(documents), MAX_LENGTH, seed=1)


def test_an_epoch_takes_equally_many_pairs_from_every_tenth_of_the_corpus() -> None:
    corpus = MemoryCorpus(plain_documents(1000, sentences=15))
    source = PairSource(corpus, MAX_LENGTH, seed=1)
    tenths = [int(p.first[0]) * 10 // corpus.num_tokens for p in all_pairs(source)]
    counts = np.bincount(tenths, minlength=10)
    assert counts == pytest.approx(source.num_samples / 10, rel=0.12)


def test_the_first_pairs_of_an_epoch_lie_all_over_the_corpus() -> None:
    corpus = MemoryCorpus(plain_documents(1000, sentences=15))
    source = PairSource(corpus, MAX_LENGTH, seed=1)
    tenths = [int(draw_one(source, 0, k).first[0]) * 10 // corpus.num_tokens for k in range(100)]
    assert np.bincount(tenths, minlength=10).min() >= 4


class NumberedPairs:
    """Pairs that say which they are."""

    def __init__(self, name: int, num_samples: int) -> None:
        self.name = name
        self.num_samples = num_samples

    def draw(self, epochs: np.ndarray, numbers: np.ndarray) -> PairBatch:
        assert ((numbers >= 0) & (numbers < self.num_samples)).all()
        both = np.stack([epochs, numbers], axis=1)
        return batch_of([Pair(np.array([self.name]), row, False) for row in both])


def names_and_numbers(blend: BlendedPairs, epoch: int) -> list[tuple[int, ...]]:
    return [(int(p.first[0]), *p.second.tolist()) for p in all_pairs(blend, epoch)]


def test_a_blend_of_equal_weights_reads_every_pair_of_every_source_once() -> None:
    blend = BlendedPairs([NumberedPairs(0, 30), NumberedPairs(1, 7)], [1.0, 1.0])
    expected = [(0, 2, k) for k in range(30)] + [(1, 2, k) for k in range(7)]
    assert sorted(names_and_numbers(blend, 2)) == expected


def test_weight_two_reads_a_source_in_two_of_its_epochs() -> None:
    blend = BlendedPairs([NumberedPairs(0, 5), NumberedPairs(1, 4)], [2.0, 1.0])
    taken = [entry for entry in names_and_numbers(blend, 1) if entry[0] == 0]
    assert sorted(taken) == [(0, 2 + i, k) for i in range(2) for k in range(5)]


def test_a_weight_below_one_goes_on_in_the_next_epoch_where_it_stopped() -> None:
    blend = BlendedPairs([NumberedPairs(0, 20)], [0.25])
    taken = [number for epoch in range(4) for number in names_and_numbers(blend, epoch)]
    assert sorted(taken) == [(0, 0, k) for k in range(20)]


def test_sources_keep_their_shares_in_every_prefix_of_an_epoch() -> None:
    blend = BlendedPairs([NumberedPairs(0, 9000), NumberedPairs(1, 1000)], [1.0, 1.0])
    names = [int(draw_one(blend, 0, k).first[0]) for k in range(1000)]
    assert sum(names) == pytest.approx(100, abs=5)
    assert sum(islice(names, 100)) == pytest.approx(10, abs=3)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")]])
def test_a_blend_with_wrong_weights_is_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        BlendedPairs([NumberedPairs(0, 5), NumberedPairs(1, 4)], weights)


def test_pairs_of_an_indexed_corpus_equal_those_of_the_same_corpus_in_memory(
    tmp_path: Path,
) -> None:
    documents = [[3 + (i * 7 + j) % 11 for j in range(1 + i % 6)] for i in range(40)]
    memory = MemoryCorpus(documents)
    with IndexedCorpusWriter(str(tmp_path / "corpus"), vocab_size=memory.num_tokens) as writer:
        sentence = 0
        for document in documents:
            numbers = range(sentence, sentence + len(document))
            writer.add_document([memory.tokens(i, i + 1) for i in numbers])
            sentence += len(document)
    indexed = IndexedCorpus.open(str(tmp_path / "corpus"))
    stored, kept = (PairSource(corpus, 32, seed=9) for corpus in (indexed, memory))
    assert stored.num_samples == kept.num_samples
    assert all(map(same_pair, all_pairs(stored), all_pairs(kept)))


def test_marks_stay_with_their_tokens() -> None:
    corpus = MemoryCorpus([[7, 9, 30], [12, 5], [40, 3, 3, 8]])

    word_marks = np.packbits(corpus.ids % 3 == 0, bitorder="little")
    plain = PairSource(corpus, 20, seed=1)
    marked = PairSource(corpus, 20, seed=1, word_marks=word_marks)
    for k in range(plain.num_samples):
        one, other = draw_one(plain, 0, k), draw_one(marked, 0, k)
        assert one.first_continues is None
        for tokens, same, marks in (
            (one.first, other.first, other.first_continues),
            (one.second, other.second, other.second_continues),
        ):
            assert np.array_equal(tokens, same)
            assert marks is not None and np.array_equal(marks, tokens % 3 == 0)
