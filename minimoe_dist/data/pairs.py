"""Segment pairs, drawn when they are read: sample k of epoch e is a function of (seed, e, k).

The corpus stores sentences and documents. A pair is a chunk of a document's sentences cut into A
and B, or A with a B from a random place of a random other document, as BERT's sequential rule
makes them; ``chunks`` says how a chunk is drawn without walking the corpus. Nothing is kept per
epoch and nothing is built at the start, so one corpus serves every length, seed and epoch.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple, Protocol

import numpy as np

from minimoe_dist.data.chunks import Chunk, ChunkSampler, Corpus
from minimoe_dist.data.keyed import spread_stride, stream_key

_SPECIAL_TOKENS_OF_A_PAIR = 3
_OTHER_DOCUMENT_TRIES = 10
_NON_EMPTY_TRIES = 1000
# Above every id: ids are int32 at most.
_MARK = np.int64(1) << np.int64(32)


class Pair(NamedTuple):
    """Two segments, without special tokens.

    ``first`` (A) and ``second`` (B) are int64 arrays of at least one token each;
    ``is_random_next`` says that B does not follow A in the corpus. ``first_continues`` and
    ``second_continues`` say which tokens go on with the word of the token before them, bool, of
    the same lengths; None where the corpus is not asked for that.
    """

    first: np.ndarray
    second: np.ndarray
    is_random_next: bool
    first_continues: np.ndarray | None = None
    second_continues: np.ndarray | None = None


class Pairs(Protocol):
    """Anything that has numbered pairs in every epoch."""

    @property
    def num_samples(self) -> int:
        """Pairs of an epoch."""

    def pair(self, epoch: int, k: int) -> Pair:
        """Returns pair ``k`` in [0, num_samples) of an epoch."""


class PairSource:
    """The pairs of one corpus.

    Consecutive k are far apart in the corpus and any k in [0, m) cover it evenly. The random B of
    a corpus with a single document comes from a random place of that document, as in the
    sequential rule.

    Args:
        corpus: sentences and documents; sentences without tokens and empty documents are skipped.
        max_length: length of ``[CLS] A [SEP] B [SEP]``, at least 5.
        seed: the run's seed; ``num_samples`` does not depend on it.
        short_sequence_probability: share of documents whose chunks aim at a length that is drawn
            uniformly from [2, max_length - 3] instead of max_length - 3.
        word_continuations: which tokens of the sentences [first, last) go on with a word, bool
            [tokens]; pairs carry that if it is given.

    Raises:
        ValueError: an option out of range, or a corpus without tokens.
    """

    def __init__(
        self,
        corpus: Corpus,
        max_length: int,
        seed: int,
        short_sequence_probability: float = 0.1,
        word_continuations: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        if max_length < _SPECIAL_TOKENS_OF_A_PAIR + 2:
            raise ValueError(
                f"data.max_length is {max_length}; a pair needs at least "
                f"{_SPECIAL_TOKENS_OF_A_PAIR + 2}: two tokens and three special ones"
            )
        if not 0.0 <= short_sequence_probability <= 1.0:
            raise ValueError(
                f"data.short_sequence_probability is {short_sequence_probability}; "
                "give a probability between 0 and 1"
            )
        self._corpus = corpus
        self._word_continuations = word_continuations
        self._room = max_length - _SPECIAL_TOKENS_OF_A_PAIR
        self._seed = seed
        self._sampler = ChunkSampler(corpus, self._room, short_sequence_probability)
        self._num_samples = max(1, round(self._sampler.chunks_per_pass))
        self._stride = spread_stride(self._num_samples)

    @property
    def num_samples(self) -> int:
        """Pairs of an epoch: as many as one pass of the sequential rule gives on average."""
        return self._num_samples

    def pair(self, epoch: int, k: int) -> Pair:
        """Draws pair ``k`` of an epoch.

        Args:
            epoch: any integer ≥ 0.
            k: in [0, num_samples).

        Returns:
            A and B, together at most max_length - 3 tokens.
        """
        assert 0 <= k < self._num_samples
        rng = Random(stream_key(self._seed, epoch, k))
        stratum = k * self._stride % self._num_samples
        chunk = self._sampler.draw((stratum + rng.random()) / self._num_samples, rng)
        if chunk.is_random_next:
            first = self._tokens(chunk.start, chunk.middle)
            second = self._random_next(chunk, len(first), rng)
        else:
            both = self._tokens(chunk.start, chunk.end)
            cut = self._corpus.token_start(chunk.middle) - self._corpus.token_start(chunk.start)
            first, second = both[:cut], both[cut:]
        first, second = truncate_pair(first, second, self._room, rng)
        if self._word_continuations is None:
            return Pair(first, second, chunk.is_random_next)
        marks = first >= _MARK, second >= _MARK
        return Pair(first % _MARK, second % _MARK, chunk.is_random_next, *marks)

    def _tokens(self, first: int, last: int) -> np.ndarray:
        """Ids of sentences; with the mark added, so that both are cut alike, where one is due."""
        tokens = self._corpus.tokens(first, last)
        if self._word_continuations is not None:
            tokens += self._word_continuations(first, last) * _MARK
        return tokens

    def _random_next(self, chunk: Chunk, first_length: int, rng: Random) -> np.ndarray:
        """Takes a B from a random sentence on, long enough to reach the chunk's target."""
        corpus, tokens_before = self._corpus, self._corpus.token_start
        starts = corpus.document_starts
        wanted = max(chunk.target - first_length, 1)
        for attempt in range(_NON_EMPTY_TRIES):
            document = int(rng.random() * corpus.num_documents)
            begin, end = int(starts[document]), int(starts[document + 1])
            is_own = begin <= chunk.start < end
            if begin == end or (is_own and attempt < _OTHER_DOCUMENT_TRIES):
                continue
            start = begin + int(rng.random() * (end - begin))
            reached = tokens_before(start) + wanted
            stop = bisect_left(range(start + 1, end), reached, key=tokens_before) + start + 1
            if tokens_before(stop) > tokens_before(start):
                return self._tokens(start, stop)
        # Hardly any document has tokens: A's own sentences are the only ones surely there.
        return self._tokens(chunk.start, chunk.middle)


class BlendedPairs:
    """Pairs of several corpora, each taken ``weight`` times an epoch.

    An epoch holds round(weight · num_samples) pairs of every source (at least one): weight 1 for
    all is the plain union, in proportion to the corpora's sizes; weight 2 reads a source twice an
    epoch, weight 0.1 a tenth of it, another tenth in the next epoch. The sources' shares are exact
    in an epoch and nearly so in every prefix of it.

    Args:
        sources: one for each corpus.
        weights: one positive number for each source.

    Raises:
        ValueError: no source, or a weight that is missing or not positive.
    """

    def __init__(self, sources: Sequence[Pairs], weights: Sequence[float]) -> None:
        if not sources or len(sources) != len(weights):
            raise ValueError(
                f"data.record_path_or_regex: {len(sources)} corpora and {len(weights)} weights; "
                "give at least one corpus and one weight for each"
            )
        for weight in weights:
            if not 0.0 < weight < float("inf"):
                raise ValueError(
                    f"data.record_path_or_regex: weight {weight}; give a positive number"
                )
        self._sources = list(sources)
        self._quotas = [
            max(1, round(weight * source.num_samples))
            for source, weight in zip(sources, weights, strict=True)
        ]
        self._ends = list(accumulate(self._quotas))
        self._stride = spread_stride(self.num_samples)

    @property
    def num_samples(self) -> int:
        """Pairs of an epoch, all sources together."""
        return self._ends[-1]

    def pair(self, epoch: int, k: int) -> Pair:
        """Draws pair ``k`` in [0, num_samples) of an epoch from the source whose turn it is."""
        assert 0 <= k < self.num_samples
        slot = k * self._stride % self.num_samples
        index = bisect_right(self._ends, slot)
        source, quota = self._sources[index], self._quotas[index]
        drawn_before = epoch * quota + slot - (self._ends[index] - quota)
        return source.pair(*divmod(drawn_before, source.num_samples))


def truncate_pair(
    first: np.ndarray, second: np.ndarray, room: int, rng: Random
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a pair down to ``room`` tokens, the way the token-by-token rule would.

    That rule takes a token off the longer segment (off ``second`` at a tie) until both fit, each
    time off its front or its back with equal chance. The lengths it ends at follow from the
    lengths alone; how many of a segment's lost tokens came off its front is binomial.

    Args:
        first: tokens [a], a ≥ 1.
        second: tokens [b], b ≥ 1.
        room: tokens that may stay, at least 2.
        rng: source of randomness.

    Returns:
        Views of the two arrays.
    """
    kept_first = min(len(first), max((room + 1) // 2, room - len(second)))
    kept_second = min(len(second), max(room // 2, room - len(first)))
    return _cut(first, kept_first, rng), _cut(second, kept_second, rng)


def _cut(tokens: np.ndarray, kept: int, rng: Random) -> np.ndarray:
    lost = len(tokens) - kept
    from_front = rng.getrandbits(lost).bit_count() if lost else 0
    return tokens[from_front : from_front + kept]
