"""What is drawn, bit for bit: pairs, blends and micro-batches against golden digests."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from minimoe_dist.data.batches import build_collate
from minimoe_dist.data.loader import PairLoader
from minimoe_dist.data.pairs import BlendedPairs, PairBatch, Pairs, PairSource
from tests.data.drawn_cases import (
    ACCUMULATION_STEPS,
    BLEND,
    BLEND_WEIGHTS,
    CASES,
    DOCUMENTS,
    READING_LENGTH,
    READINGS,
    Case,
    Reading,
    continuing_pieces,
    digest_of_batches,
    digest_of_pairs,
    is_marked,
    numbers,
    special_tokens,
)
from tests.data.memory_corpus import MemoryCorpus

GOLDEN = json.loads((Path(__file__).parent / "golden" / "drawn_pairs.json").read_text())
VOCABULARY = max(sum(map(sum, DOCUMENTS[name])) for name in BLEND) + 10


def source_of(
    documents: str, max_length: int, seed: int, short_probability: float, marks: bool
) -> PairSource:
    corpus = MemoryCorpus(DOCUMENTS[documents])
    word_marks = np.packbits(is_marked(corpus.ids), bitorder="little") if marks else None
    return PairSource(corpus, max_length, seed, short_probability, word_marks)


def blend_of(weights: tuple[float, ...], max_length: int, marks: bool) -> BlendedPairs:
    # One corpus has no marks, as may be in a run too.
    sources = [source_of(d, max_length, 11, 0.1, marks and d != "long") for d in BLEND]
    return BlendedPairs(sources, weights)


def all_pairs(pairs: Pairs, epoch: int, chosen: list[int]) -> PairBatch:
    return pairs.draw(np.full(len(chosen), epoch), np.array(chosen))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_source_draws_what_it_always_drew(case: Case) -> None:
    source = source_of(
        case.documents, case.max_length, case.seed, case.short_probability, case.marks
    )
    drawn = digest_of_pairs(
        pair
        for epoch in case.epochs
        for pair in all_pairs(source, epoch, numbers(source.num_samples, case.pairs))
    )
    expected = {"num_samples": source.num_samples, "sha256": drawn}
    assert expected == GOLDEN["cases"][case.name]


@pytest.mark.parametrize("name", BLEND_WEIGHTS)
def test_a_blend_draws_what_it_always_drew(name: str) -> None:
    blend = blend_of(BLEND_WEIGHTS[name], 128, marks=False)
    drawn = digest_of_pairs(
        pair
        for epoch in (0, 3)
        for pair in all_pairs(blend, epoch, numbers(blend.num_samples, 300))
    )
    expected = {"num_samples": blend.num_samples, "sha256": drawn}
    assert expected == GOLDEN["blends"][name]


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.name)
def test_a_loader_reads_what_it_always_read(reading: Reading) -> None:
    pairs = blend_of(BLEND_WEIGHTS["weighted"], READING_LENGTH, reading.whole_words)
    collate = build_collate(
        reading.data_type,
        special_tokens(VOCABULARY),
        READING_LENGTH,
        reading.seed,
        continuing_pieces(VOCABULARY) if reading.whole_words else None,
        full_length=reading.full_length,
    )
    with PairLoader(
        pairs,
        collate,
        micro_batch_size=reading.micro_batch_size,
        accumulation_steps=ACCUMULATION_STEPS,
        rank=reading.rank,
        world_size=reading.world_size,
        seed=reading.seed,
        consumed_samples=reading.consumed_samples,
    ) as loader:
        batches = [batch for step in islice(loader, reading.steps) for batch in step.micro_batches]
    expected = {"num_samples": pairs.num_samples, "sha256": digest_of_batches(batches)}
    assert expected == GOLDEN["readings"][reading.name]
