"""Chunks against the sequential rule, and what they cost on a corpus that is large."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from minimoe_dist.data.pairs import PairSource
from tests.data.memory_corpus import MemoryCorpus

ROOM = 125
MAX_LENGTH = ROOM + 3


class Lengths(NamedTuple):
    first: np.ndarray
    second: np.ndarray
    is_random_next: np.ndarray
    samples_per_epoch: float


def stratified_targets(count: int, short_probability: float, rng: random.Random) -> list[int]:
    """Targets of documents, in random order but in their exact proportions: less noise."""
    targets = []
    for i in range(count):
        u = (i + rng.random()) / count
        short = u < short_probability
        targets.append(2 + int(u / short_probability * (ROOM - 1)) if short else ROOM)
    rng.shuffle(targets)
    return targets


def walk_sequentially(documents: list[list[int]], passes: int, rng: random.Random) -> Lengths:
    """The rule as the project's facts state it, on lengths instead of tokens."""
    samples = []
    targets = stratified_targets(passes * len(documents), 0.1, rng)
    for own, document in [*enumerate(documents)] * passes:
        target = targets.pop()
        gathered: list[int] = []
        length = i = 0
        while i < len(document):
            gathered.append(document[i])
            length += document[i]
            i += 1
            if length < target and i < len(document):
                continue
            first_count = rng.randint(1, len(gathered) - 1) if len(gathered) > 1 else 1
            first = sum(gathered[:first_count])
            is_random_next = len(gathered) == 1 or rng.random() < 0.5
            if is_random_next:
                other = own
                while other == own:
                    other = rng.randrange(len(documents))
                second = 0
                for sentence in documents[other][rng.randrange(len(documents[other])) :]:
                    second += sentence
                    if second >= target - first:
                        break
                i -= len(gathered) - first_count
            else:
                second = sum(gathered[first_count:])
            while first + second > ROOM:
                if first > second:
                    first -= 1
                else:
                    second -= 1
            samples.append((first, second, is_random_next))
            gathered, length = [], 0
    columns = np.array(samples)
    return Lengths(columns[:, 0], columns[:, 1], columns[:, 2], len(samples) / passes)


def draw_pairs(documents: list[list[int]], count: int) -> Lengths:
    source = PairSource(MemoryCorpus(documents), MAX_LENGTH, seed=3)
    pairs = source.draw(*np.divmod(np.arange(count), source.num_samples))
    lengths = pairs.first_lengths, pairs.second_lengths
    return Lengths(*lengths, pairs.is_random_next, source.num_samples)


def sentence_length(rng: random.Random) -> int:
    return max(1, round(rng.lognormvariate(2.9, 0.6)))


DOCUMENT_SIZES: dict[str, tuple[int, Callable[[random.Random], int]]] = {
    "long": (400, lambda rng: rng.randint(60, 240)),
    "short": (4000, lambda rng: rng.randint(1, 9)),
    "mixed": (1000, lambda rng: rng.choice([1, 4, 12, 40, 200])),
}


@pytest.fixture(scope="module", params=sorted(DOCUMENT_SIZES))
def drawn_and_walked(request: pytest.FixtureRequest) -> tuple[Lengths, Lengths]:
    rng = random.Random(5)
    count, size = DOCUMENT_SIZES[request.param]
    documents = []
    for _ in range(count):
        # Styles differ between documents, so that long sentences keep each other's company.
        scale = rng.choice([0.6, 1.0, 1.5])
        documents.append([max(1, int(scale * sentence_length(rng))) for _ in range(size(rng))])
    passes = -(-400_000 // sum(map(len, documents)))
    return draw_pairs(documents, 30_000), walk_sequentially(documents, passes, rng)


def largest_cdf_difference(one: np.ndarray, other: np.ndarray) -> float:
    points = np.arange(ROOM + 1)
    shares = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def test_samples_per_epoch_match_the_sequential_rule(
    drawn_and_walked: tuple[Lengths, Lengths],
) -> None:
    drawn, walked = drawn_and_walked
    assert drawn.samples_per_epoch == pytest.approx(walked.samples_per_epoch, rel=0.02)


def test_share_of_random_next_segments_matches_the_sequential_rule(
    drawn_and_walked: tuple[Lengths, Lengths],
) -> None:
    drawn, walked = drawn_and_walked
    expected = walked.is_random_next.mean()
    assert drawn.is_random_next.mean() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("segment", ["first", "second"])
def test_mean_segment_length_matches_the_sequential_rule(
    drawn_and_walked: tuple[Lengths, Lengths], segment: str
) -> None:
    drawn, walked = (getattr(lengths, segment).mean() for lengths in drawn_and_walked)
    assert drawn == pytest.approx(walked, rel=0.02)


@pytest.mark.parametrize("segment", ["first", "second"])
def test_distribution_of_segment_lengths_matches_the_sequential_rule(
    drawn_and_walked: tuple[Lengths, Lengths], segment: str
) -> None:
    drawn, walked = (getattr(lengths, segment) for lengths in drawn_and_walked)
    assert largest_cdf_difference(drawn, walked) < 0.02


def test_distribution_of_pair_lengths_matches_the_sequential_rule(
    drawn_and_walked: tuple[Lengths, Lengths],
) -> None:
    drawn, walked = (lengths.first + lengths.second for lengths in drawn_and_walked)
    assert largest_cdf_difference(drawn, walked) < 0.02


# Run without numba's compiler, the core reads anything that looks like an array.
READS_OF_AN_OPENING = """
import sys
import numpy as np
from minimoe_dist.data import chunks
from minimoe_dist.data.compiled.corpus import CorpusArrays

class Formula:
    reads = 0

    def __init__(self, size, formula):
        self.size, self.formula = size, formula

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        Formula.reads += 1
        return self.formula(index)

sentences = int(sys.argv[1])
corpus = CorpusArrays(
    lengths=Formula(sentences, lambda i: 21),
    pointers=Formula(sentences, lambda i: 42 * i),
    document_starts=Formula(sentences // 50 + 1, lambda i: 50 * i),
    ids=Formula(42 * sentences, lambda i: 0),
    id_shift=1,
    id_sign=0,
    num_tokens=21 * sentences,
    word_marks=np.empty(0, np.uint8),
)
chunks._PILOT_WINDOWS = 600  # without the compiler, each takes a millisecond
found = chunks.calibrate("formulas", corpus, 125, 0.0)
print(Formula.reads, found.chunks_per_pass / sentences)
"""


def test_opening_reads_as_little_of_a_huge_corpus_as_of_a_small_one() -> None:
    found = []
    for sentences in (10**4, 10**9):
        command = [sys.executable, "-c", READS_OF_AN_OPENING, str(sentences)]
        environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
        out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
        found.append([float(word) for word in out.split()])
    (small, small_share), (huge, huge_share) = found
    assert huge_share == pytest.approx(small_share, rel=0.02)
    # The windows that are looked at are as many for any corpus; only binary searches grow.
    assert huge < 1.5 * small
