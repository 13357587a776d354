"""Draws segment pairs when they are read: sample k of epoch e is a function of (seed, e, k).

The corpus stores sentences and documents. A pair is a chunk of a document's sentences cut into A
and B, or A with a B from a random place of a random other document, as BERT's sequential rule
makes them; ``compiled.windows`` says how a chunk is drawn without walking the corpus. Nothing is
kept per epoch and nothing is built at the start, so one corpus serves every length, seed and epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from ..errors import UserError
from .chunks import calibrate, check_status
from .keyed import as_int64, spread, spread_stride

if TYPE_CHECKING:
    from .compiled.corpus import CorpusArrays

_SPECIAL_TOKENS_OF_A_PAIR = 3
NO_MARKS = np.empty((0, 0), dtype=np.bool_)


class Corpus(Protocol):
    """A corpus of tokenised sentences grouped into documents."""

    @property
    def prefix(self) -> str:
        """Path prefix, for messages."""

    @property
    def sentence_lengths(self) -> np.ndarray:
        """Tokens of each sentence, int32 [sentences]."""

    @property
    def sentence_pointers(self) -> np.ndarray:
        """Bytes of ids before each sentence, int64 [sentences]."""

    @property
    def document_starts(self) -> np.ndarray:
        """First sentence of each document and the end, rising, int64 [documents + 1]."""

    @property
    def ids(self) -> np.ndarray:
        """All ids, of an integer type that an index may have [tokens]."""


class Pair(NamedTuple):
    """Holds two segments, without special tokens.

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


@dataclass(frozen=True)
class PairBatch:
    """Holds pairs that were drawn together in the rows of arrays, and iterates over them.

    Attributes:
        tokens: int64 [b, T], A's tokens and behind them B's; what follows has no meaning.
        first_lengths: int64 [b], tokens of A.
        second_lengths: int64 [b], tokens of B.
        is_random_next: bool [b].
        continues: bool [b, T], which tokens go on with a word; None where no corpus is asked.
    """

    tokens: np.ndarray
    first_lengths: np.ndarray
    second_lengths: np.ndarray
    is_random_next: np.ndarray
    continues: np.ndarray | None

    @classmethod
    def empty(cls, count: int, room: int, with_marks: bool) -> PairBatch:
        """Allocates arrays for pairs of at most ``room`` tokens, to be filled."""
        return cls(
            tokens=np.empty((count, room), dtype=np.int64),
            first_lengths=np.empty(count, dtype=np.int64),
            second_lengths=np.empty(count, dtype=np.int64),
            is_random_next=np.empty(count, dtype=np.bool_),
            continues=np.zeros((count, room), dtype=np.bool_) if with_marks else None,
        )

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of ``[CLS] A [SEP] B [SEP]``, int64 [b]."""
        return self.first_lengths + self.second_lengths + _SPECIAL_TOKENS_OF_A_PAIR

    def __len__(self) -> int:
        return len(self.first_lengths)

    def __getitem__(self, row: int) -> Pair:
        first = int(self.first_lengths[row])
        total = first + int(self.second_lengths[row])
        pair = Pair(
            self.tokens[row, :first], self.tokens[row, first:total], bool(self.is_random_next[row])
        )
        if self.continues is None:
            return pair
        marks = self.continues[row]
        return pair._replace(first_continues=marks[:first], second_continues=marks[first:total])

    def __iter__(self) -> Iterator[Pair]:
        return (self[row] for row in range(len(self)))

    @classmethod
    def merge(cls, parts: Sequence[tuple[np.ndarray, PairBatch]], count: int) -> PairBatch:
        """Puts batches together.

        Args:
            parts: of each batch the rows that it gets, int64 [b_i], and the batch of b_i pairs.
            count: pairs of all batches.
        """
        if len(parts) == 1:
            return parts[0][1]
        room = max((part.tokens.shape[1] for _, part in parts), default=0)
        with_marks = any(part.continues is not None for _, part in parts)
        merged = cls.empty(count, room, with_marks)
        for rows, part in parts:
            width = part.tokens.shape[1]
            merged.tokens[rows, :width] = part.tokens
            merged.first_lengths[rows] = part.first_lengths
            merged.second_lengths[rows] = part.second_lengths
            merged.is_random_next[rows] = part.is_random_next
            if merged.continues is not None and part.continues is not None:
                merged.continues[rows, :width] = part.continues
        return merged


class Pairs(Protocol):
    """Gives numbered pairs in every epoch."""

    @property
    def num_samples(self) -> int:
        """The number of pairs of an epoch."""

    def draw(self, epochs: np.ndarray, numbers: np.ndarray) -> PairBatch:
        """Returns the pairs of these numbers, in [0, num_samples), of these epochs; int64 [b]."""


class PairSource:
    """Draws the pairs of one corpus.

    Consecutive k are far apart in the corpus and any k in [0, m) cover it evenly. The random B of
    a corpus with a single document comes from a random place of that document, as in the
    sequential rule.

    Args:
        corpus: sentences and documents; sentences without tokens and empty documents are skipped.
        max_length: length of ``[CLS] A [SEP] B [SEP]``, at least 5.
        seed: the run's seed; ``num_samples`` does not depend on it.
        short_sequence_probability: share of documents whose chunks aim at a length that is drawn
            uniformly from [2, max_length - 3] instead of max_length - 3.
        word_marks: which tokens go on with the word of the token before them, a bit each, the
            first in the lowest, uint8 [tokens / 8, rounded up]; pairs carry that if it is given.

    Raises:
        UserError: an option out of range, or a corpus without tokens or with a damaged index.
    """

    def __init__(
        self,
        corpus: Corpus,
        max_length: int,
        seed: int,
        short_sequence_probability: float = 0.1,
        word_marks: np.ndarray | None = None,
    ) -> None:
        if max_length < _SPECIAL_TOKENS_OF_A_PAIR + 2:
            raise UserError(
                f"data.max_length is {max_length}; a pair needs at least "
                f"{_SPECIAL_TOKENS_OF_A_PAIR + 2}: two tokens and three special ones"
            )
        if not 0.0 <= short_sequence_probability <= 1.0:
            raise UserError(
                f"data.short_sequence_probability is {short_sequence_probability}; "
                "give a probability between 0 and 1"
            )
        self._prefix = corpus.prefix
        arrays = _arrays_of(corpus, word_marks)
        self._arrays = tuple(arrays)
        self._has_marks = word_marks is not None
        self._room = max_length - _SPECIAL_TOKENS_OF_A_PAIR
        self._seed = as_int64(seed)
        self._groups, chunks = calibrate(
            corpus.prefix, arrays, self._room, short_sequence_probability
        )
        self._num_samples = max(1, round(chunks))
        self._stride = spread_stride(self._num_samples)

    @property
    def num_samples(self) -> int:
        """The number of pairs of an epoch: the average of one pass of the sequential rule."""
        return self._num_samples

    def draw(self, epochs: np.ndarray, numbers: np.ndarray) -> PairBatch:
        """Draws pairs; A and B have together at most max_length - 3 tokens.

        Args:
            epochs: int64 [b], at least 0.
            numbers: int64 [b], in [0, num_samples).

        Raises:
            UserError: the index of the corpus turns out to be damaged.
        """
        from .compiled.drawing import draw_pairs

        batch = PairBatch.empty(len(numbers), self._room, self._has_marks)
        continues = NO_MARKS if batch.continues is None else batch.continues
        status = draw_pairs(
            self._arrays,
            self._groups,
            self._seed,
            self._num_samples,
            epochs,
            numbers,
            spread(numbers, self._num_samples, self._stride),
            (
                batch.tokens,
                continues,
                batch.first_lengths,
                batch.second_lengths,
                batch.is_random_next,
            ),
        )
        check_status(self._prefix, status)
        return batch


def _arrays_of(corpus: Corpus, word_marks: np.ndarray | None) -> CorpusArrays:
    from .compiled.corpus import CorpusArrays

    ids = corpus.ids
    assert len(corpus.sentence_lengths) == len(corpus.sentence_pointers)
    assert word_marks is None or len(word_marks) == -(-len(ids) // 8)
    return CorpusArrays(
        lengths=corpus.sentence_lengths,
        pointers=corpus.sentence_pointers,
        document_starts=corpus.document_starts,
        ids=ids.view(np.uint8),
        id_shift=ids.itemsize.bit_length() - 1,
        id_sign=np.iinfo(ids.dtype).min,
        num_tokens=len(ids),
        word_marks=np.empty(0, dtype=np.uint8) if word_marks is None else word_marks,
    )


class RepeatedPairs:
    """Draws the pairs of the first epochs again and again.

    Attributes:
        epochs: after so many the first one's pairs come again, in another order.

    Args:
        pairs: whose epochs differ.
        epochs: see above.
    """

    def __init__(self, pairs: Pairs, epochs: int) -> None:
        self._pairs = pairs
        self.epochs = epochs

    @property
    def num_samples(self) -> int:
        """The number of pairs of an epoch."""
        return self._pairs.num_samples

    @property
    def num_distinct(self) -> int:
        """The number of pairs that are not alike, of all epochs."""
        return self.epochs * self.num_samples

    def distinct(self, epochs: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Returns which of the distinct pairs these are, in [0, num_distinct); int64 [b]."""
        return epochs % self.epochs * self.num_samples + numbers

    def draw_distinct(self, numbers: np.ndarray) -> PairBatch:
        """Draws pairs by the numbers that :meth:`distinct` gives, int64 [b]."""
        return self._pairs.draw(*np.divmod(numbers, self.num_samples))

    def draw(self, epochs: np.ndarray, numbers: np.ndarray) -> PairBatch:
        """Draws pairs; arguments as of ``PairSource``."""
        return self._pairs.draw(epochs % self.epochs, numbers)


class BlendedPairs:
    """Draws pairs of several corpora, each taken ``weight`` times an epoch.

    An epoch holds round(weight · num_samples) pairs of every source (at least one): weight 1 for
    all is the plain union, in proportion to the corpora's sizes; weight 2 reads a source twice an
    epoch, weight 0.1 a tenth of it, another tenth in the next epoch. The sources' shares are exact
    in an epoch and nearly so in every prefix of it.

    Args:
        sources: one for each corpus.
        weights: one positive number for each source.

    Raises:
        UserError: no source, or a weight that is missing or not positive.
    """

    def __init__(self, sources: Sequence[Pairs], weights: Sequence[float]) -> None:
        if not sources or len(sources) != len(weights):
            raise UserError(
                f"data.record_path_or_regex: {len(sources)} corpora and {len(weights)} weights; "
                "give at least one corpus and one weight for each"
            )
        for weight in weights:
            if not 0.0 < weight < float("inf"):
                raise UserError(
                    f"data.record_path_or_regex: weight {weight}; give a positive number"
                )
        self._sources = list(sources)
        self._sizes = np.array([source.num_samples for source in sources], dtype=np.int64)
        quotas = [
            max(1, round(weight * source.num_samples))
            for source, weight in zip(sources, weights, strict=True)
        ]
        self._quotas = np.array(quotas, dtype=np.int64)
        self._ends = np.cumsum(self._quotas)
        self._stride = spread_stride(self.num_samples)

    @property
    def num_samples(self) -> int:
        """The number of pairs of an epoch, all sources together."""
        return int(self._ends[-1])

    def draw(self, epochs: np.ndarray, numbers: np.ndarray) -> PairBatch:
        """Draws each pair from the source whose turn it is; arguments as of ``PairSource``."""
        slots = spread(numbers, self.num_samples, self._stride)
        turns = np.searchsorted(self._ends, slots, side="right")
        quotas = self._quotas[turns]
        # What was drawn from the source before says the epoch and the number of its own.
        drawn_before = epochs * quotas + slots - (self._ends[turns] - quotas)
        epochs, numbers = np.divmod(drawn_before, self._sizes[turns])
        order = np.argsort(turns, kind="stable")
        bounds = np.searchsorted(turns[order], np.arange(len(self._sources) + 1)).tolist()
        parts = []
        for source, begin, end in zip(self._sources, bounds[:-1], bounds[1:], strict=True):
            if begin < end:
                rows = order[begin:end]
                parts.append((rows, source.draw(epochs[rows], numbers[rows])))
        return PairBatch.merge(parts, len(slots))
