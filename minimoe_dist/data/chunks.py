"""Where the sequential rule's chunks lie: drawing one without walking the corpus.

The rule (BERT's) goes through a document once. It draws one target length for the document,
gathers sentences until the target is reached or the document ends (a *chunk*), cuts the chunk
into A and the rest, and either keeps the rest as B or puts it back and takes B elsewhere. How
many chunks a document gives is therefore random, and no table of chunks can be had without a pass
over the corpus.

A drawn sample must be any chunk of that random pass with equal chance. Here this is done exactly,
by rejection: (1) take a *window* (a run of sentences of one document) with a probability
proportional to a weight that is linear in its tokens, its sentences and its being the first of
its document, so that cumulative weights follow from the corpus's cumulative counts and a binary
search finds the window; (2) replay the rule there, from the start of the document or, in a long
one, from four target lengths before the window; (3) keep the window with a probability
proportional to (chunks that start in it) / weight, and pick one of them evenly. Step 2 is done
three times and the chunks are thrown together: their number varies less, so fewer windows are
rejected. Short targets give many chunks a document, so targets fall into groups, each with its
own weights.

The weights only decide how often step 3 rejects; the number of chunks an epoch holds is a
Hansen-Hurwitz estimate from a few thousand windows, made once when a corpus is opened.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, Protocol

import numpy as np

_WINDOW_CHUNKS = 6
_WARM_UP_TARGETS = 4
_PILOT_WINDOWS = 6000
_GROUP_WINDOWS = 500
_REPLAYS = 3
_PILOT_SENTENCE_WEIGHT = 0.25
_PILOT_SHARE = 0.05
_CLIPPED_SHARE = 0.001
_MOST_TRIES = 100_000


class Corpus(Protocol):
    """What is asked of a corpus of tokenised sentences grouped into documents."""

    @property
    def prefix(self) -> str:
        """Path prefix, for messages."""

    @property
    def num_sentences(self) -> int:
        """Number of sentences."""

    @property
    def num_documents(self) -> int:
        """Number of documents, empty ones included."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""

    @property
    def sentence_lengths(self) -> np.ndarray:
        """Tokens of each sentence, int32 [num_sentences]."""

    @property
    def document_starts(self) -> np.ndarray:
        """First sentence of each document and the end, int64 [num_documents + 1]."""

    def token_start(self, i: int, /) -> int:
        """Number of tokens before sentence ``i``; of all tokens for ``num_sentences``."""

    def tokens(self, first: int, last: int, /) -> np.ndarray:
        """Copy of the tokens of sentences [first, last), int64."""


class Chunk(NamedTuple):
    """A chunk by sentence numbers: A is [start, middle), the rest [middle, end)."""

    start: int
    middle: int
    end: int
    is_random_next: bool
    target: int


class Window(NamedTuple):
    """Sentences [first, last) of a document, loaded with what a replay around them needs.

    ``sentences[i]`` is the number of the i-th loaded sentence that has tokens, ``offsets[i]`` the
    number of loaded tokens before it (one entry more than sentences).
    """

    sentences: list[int]
    offsets: list[int]
    first: int
    last: int
    starts_document: bool


@dataclass(frozen=True)
class TargetGroup:
    """Target lengths drawn alike, with the weights of a window under them.

    Attributes:
        low: smallest target length, in tokens.
        high: largest target length.
        window_sentences: sentences of a whole window.
        per_token: weight of one token.
        per_sentence: weight of one sentence.
        per_document: weight of a document's start.
        expected_chunks: chunks of one pass over the corpus, were all targets of this group.
        bound: a window with ``bound`` × weight chunks a replay is always kept.
    """

    low: int
    high: int
    window_sentences: int
    per_token: float
    per_sentence: float
    per_document: float = 0.0
    expected_chunks: float = 1.0
    bound: float = 1.0

    def draw_target(self, rng: Random) -> int:
        """Draws a target length of the group."""
        return self.low + int(rng.random() * (self.high - self.low + 1))


def replay(window: Window, target: int, rng: Random) -> list[Chunk]:
    """Applies the sequential rule; returns the chunks that start inside the window."""
    sentences, offsets, first, last, _ = window
    chunks = []
    start, count = 0, len(sentences)
    while start < count and sentences[start] < last:
        end = min(bisect_left(offsets, offsets[start] + target, start + 1), count)
        size = end - start
        middle, is_random_next = start + 1, True
        if size > 1:
            middle = start + 1 + int(rng.random() * (size - 1))
            is_random_next = rng.random() < 0.5
        if sentences[start] >= first:
            chunks.append(
                Chunk(
                    sentences[start],
                    sentences[middle - 1] + 1,
                    sentences[end - 1] + 1,
                    is_random_next,
                    target,
                )
            )
        start = middle if is_random_next else end
    return chunks


class ChunkSampler:
    """Draws chunks as evenly as a full pass of the sequential rule would give them.

    Opening costs about a second whatever the size of the corpus, and O(1) memory. The result of
    opening depends on the corpus only.

    Args:
        corpus: the sentences.
        room: tokens that A and B may have together, at least 2.
        short_sequence_probability: chance that a document's target is uniform in [2, room].
    """

    def __init__(self, corpus: Corpus, room: int, short_sequence_probability: float) -> None:
        assert room >= 2 and 0.0 <= short_sequence_probability <= 1.0
        if corpus.num_tokens == 0 or corpus.num_documents == 0:
            raise ValueError(f"{corpus.prefix}: the corpus has no tokens; build it from text first")
        self.corpus = corpus
        self._groups: list[TargetGroup] = []
        expected = []
        for low, high, share in _target_ranges(room, short_sequence_probability):
            group = self._calibrate(low, high, share)
            self._groups.append(group)
            expected.append(share * group.expected_chunks)
        self.chunks_per_pass: float = sum(expected)
        self._cumulative_share = (np.cumsum(expected) / self.chunks_per_pass).tolist()

    def draw(self, position: float, rng: Random) -> Chunk:
        """Draws a chunk.

        Args:
            position: in [0, 1), where in the corpus to look first; uniform over many draws.
            rng: source of all other randomness.
        """
        chosen = bisect_right(self._cumulative_share, rng.random())
        group = self._groups[min(chosen, len(self._groups) - 1)]
        total = self._total_weight(group)
        for _ in range(_MOST_TRIES):
            window, weight = self._find_window(position * total, group)
            chunks = []
            for _ in range(_REPLAYS):
                chunks += replay(window, group.draw_target(rng), rng)
            if rng.random() * group.bound * weight * _REPLAYS < len(chunks):
                return chunks[int(rng.random() * len(chunks))]
            # A retry near the first position would even out regions of unequal yield.
            position = rng.random()
        raise RuntimeError(f"{self.corpus.prefix}: no chunk found in {_MOST_TRIES} tries")

    def _total_weight(self, group: TargetGroup) -> float:
        return (
            group.per_token * self.corpus.num_tokens
            + group.per_sentence * self.corpus.num_sentences
            + group.per_document * self.corpus.num_documents
        )

    def _find_window(self, at: float, group: TargetGroup) -> tuple[Window, float]:
        """Finds the window that covers cumulative weight ``at``, and its weight."""
        corpus = self.corpus
        starts, token_start = corpus.document_starts, corpus.token_start
        per_token, per_sentence = group.per_token, group.per_sentence
        per_document = group.per_document

        # Half of a draw's time goes into these two searches: their keys call nothing else.
        def weight_before_document(document: int) -> float:
            sentence = int(starts[document])
            return (
                per_token * token_start(sentence)
                + per_sentence * sentence
                + per_document * document
            )

        def weight_before_sentence(sentence: int) -> float:
            return per_token * token_start(sentence) + per_sentence * sentence

        document = bisect_right(range(1, corpus.num_documents), at, key=weight_before_document)
        begin, end = (int(s) for s in corpus.document_starts[document : document + 2])
        at -= per_document * (document + 1)
        sentence = begin + bisect_right(range(begin + 1, end), at, key=weight_before_sentence)
        first = sentence - (sentence - begin) % group.window_sentences
        last = min(first + group.window_sentences, end)
        weight = weight_before_sentence(last) - weight_before_sentence(first)
        if first == begin:
            weight += per_document
        return self._load(begin, end, first, last, group), weight

    def _load(self, begin: int, end: int, first: int, last: int, group: TargetGroup) -> Window:
        """Loads sentences [first, last) of document [begin, end) with what replaying needs."""
        low, high = first, last
        enough = self.corpus.token_start(first) - _WARM_UP_TARGETS * group.high
        while low > begin and self.corpus.token_start(low) > enough:
            low = max(begin, low - group.window_sentences)
        enough = self.corpus.token_start(last) + group.high
        while high < end and self.corpus.token_start(high) < enough:
            high = min(end, high + group.window_sentences)
        lengths = np.asarray(self.corpus.sentence_lengths[low:high])
        sentences = list(range(low, high))
        if not lengths.all():
            present = np.flatnonzero(lengths)
            sentences, lengths = (present + low).tolist(), lengths[present]
        offsets = np.zeros(len(sentences) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return Window(sentences, offsets.tolist(), first, last, first == begin)

    def _calibrate(self, low: int, high: int, share: float) -> TargetGroup:
        """Counts chunks in a sample of windows and fits a group's weights to the counts."""
        corpus = self.corpus
        mean_length = corpus.num_tokens / corpus.num_sentences
        window_sentences = int(min(max(_WINDOW_CHUNKS * high / mean_length, 8), 8192))
        pilot = TargetGroup(low, high, window_sentences, 1.0 / high, _PILOT_SENTENCE_WEIGHT)
        total = self._total_weight(pilot)
        windows = _PILOT_WINDOWS if share > 0.2 else _GROUP_WINDOWS
        rng = Random(low * 1_000_003 + high)
        features = np.zeros((windows, 3))
        counts = np.zeros(windows)
        for i in range(windows):
            window, weight = self._find_window((i + rng.random()) / windows * total, pilot)
            tokens = self.corpus.token_start(window.last) - self.corpus.token_start(window.first)
            if tokens == 0:
                continue
            features[i] = (tokens, window.last - window.first, window.starts_document)
            features[i] /= weight
            for _ in range(_REPLAYS):
                counts[i] += len(replay(window, pilot.draw_target(rng), rng))
            counts[i] /= weight * _REPLAYS
        if not counts.any():
            raise ValueError(f"{corpus.prefix}: hardly a sentence has tokens; build it from text")
        fitted = _nonnegative_fit(features, counts)
        weights = (1.0 - _PILOT_SHARE) * fitted
        weights += _PILOT_SHARE * np.array([pilot.per_token, pilot.per_sentence, 0.0])
        return TargetGroup(
            low,
            high,
            window_sentences,
            per_token=_shorten(weights[0]),
            per_sentence=_shorten(weights[1]),
            per_document=_shorten(weights[2]),
            expected_chunks=_shorten(counts.mean() * total),
            bound=_shorten(_smallest_bound(counts, features @ weights)),
        )


def _target_ranges(room: int, short_probability: float) -> list[tuple[int, int, float]]:
    """Splits the documents' target lengths into (low, high, share of documents)."""
    ranges = [(room, room, 1.0 - short_probability)]
    low = 2
    while low <= room:
        high = min(2 * low - 1, room)
        ranges.append((low, high, short_probability * (high - low + 1) / (room - 1)))
        low = high + 1
    return [entry for entry in ranges if entry[2] > 0.0]


def _nonnegative_fit(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least squares with coefficients ≥ 0, by trying every support (there are few columns)."""
    columns = features.shape[1]
    best, smallest = np.zeros(columns), np.inf
    for support_size in range(1, columns + 1):
        for support in itertools.combinations(range(columns), support_size):
            chosen = list(support)
            solution, *_ = np.linalg.lstsq(features[:, chosen], values, rcond=None)
            error = float(np.square(features[:, chosen] @ solution - values).sum())
            # Ties (all sentences alike) go to the first support, on every machine.
            if (solution >= 0.0).all() and error < smallest * (1.0 - 1e-6):
                smallest = error
                best = np.zeros(columns)
                best[chosen] = solution
    return best


def _shorten(value: float) -> float:
    # Machines differ in the last bits of sums and solvers; ranks must agree on every sample.
    return float(f"{value:.6g}")


def _smallest_bound(counts: np.ndarray, weights: np.ndarray) -> float:
    """Smallest b so that min(count, b·weight) loses at most a thousandth of all chunks.

    Args:
        counts: mean number of chunks of each window's replays, float64 [windows].
        weights: weight of each window, float64 [windows]; both per unit of the pilot's weight.
    """
    has_chunks = counts > 0.0
    low, high = 0.0, float((counts[has_chunks] / weights[has_chunks]).max())
    for _ in range(40):
        middle = (low + high) / 2
        lost = np.maximum(counts - middle * weights, 0.0).sum()
        if lost > _CLIPPED_SHARE * counts.sum():
            low = middle
        else:
            high = middle
    return high
