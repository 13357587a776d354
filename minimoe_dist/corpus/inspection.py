"""Shows what is in an indexed corpus: counts, lengths, text of documents and pairs, a picture."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..data.indexed import IndexedCorpus
from ..data.pairs import PairSource
from ..durable import written
from .losses import Losses

if TYPE_CHECKING:
    from .tokenizing import CorpusTokenizer

_CHUNK = 1 << 20
_SAMPLED_PAIRS = 5000


@dataclass(frozen=True)
class Lengths:
    """Counts how often each length occurs.

    Attributes:
        lengths: int64 [n], rising.
        counts: int64 [n].
    """

    lengths: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, counter: Counter[int]) -> Lengths:
        """Makes the arrays of counts by length."""
        items = sorted(counter.items())
        return cls(*(np.array(column, np.int64) for column in zip(*items, strict=True)))

    def quantile(self, share: float) -> int:
        """Returns the length that a share of all does not exceed."""
        sums = np.cumsum(self.counts)
        return int(self.lengths[np.searchsorted(sums, share * sums[-1])])

    def mean(self) -> float:
        """Returns the average length."""
        return float(np.average(self.lengths, weights=self.counts))

    def describe(self) -> str:
        """Names the range, median, mean and 99th percentile of the lengths."""
        return (
            f"{self.lengths[0]} to {self.lengths[-1]}, median {self.quantile(0.5)}, "
            f"mean {self.mean():.1f}, 99 % up to {self.quantile(0.99)}"
        )


@dataclass(frozen=True)
class Statistics:
    """Holds lengths in tokens, and what else is measured of a corpus.

    Attributes:
        sentences: of sentences.
        documents: of documents.
        pairs: of a sample of pairs, special tokens included.
        pairs_per_epoch: how many an epoch has.
        random_next: share of pairs whose second half comes from elsewhere.
        continuations: share of tokens that go on with a word; None without word marks.
    """

    sentences: Lengths
    documents: Lengths
    pairs: Lengths
    pairs_per_epoch: int
    random_next: float
    continuations: float | None


def statistics(corpus: IndexedCorpus, max_length: int, seed: int) -> Statistics:
    """Counts all sentences and documents and a sample of pairs, in memory that does not grow."""
    source = PairSource(corpus, max_length, seed)
    numbers = np.arange(min(_SAMPLED_PAIRS, source.num_samples))
    pairs = source.draw(np.zeros_like(numbers), numbers)
    continuations = None
    if corpus.has_word_marks:
        end = corpus.sentence_of_token(min(_CHUNK, corpus.num_tokens - 1)) + 1
        continuations = float(corpus.word_continuations(0, end).mean())
    return Statistics(
        _count(_sentence_lengths(corpus)),
        _count(_document_lengths(corpus)),
        Lengths.of(Counter(pairs.lengths.tolist())),
        source.num_samples,
        float(pairs.is_random_next.mean()),
        continuations,
    )


def _count(pieces: Iterator[np.ndarray]) -> Lengths:
    counter: Counter[int] = Counter()
    for piece in pieces:
        values, counts = np.unique(piece, return_counts=True)
        counter.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return Lengths.of(counter)


def _sentence_lengths(corpus: IndexedCorpus) -> Iterator[np.ndarray]:
    for start in range(0, corpus.num_sentences, _CHUNK):
        yield corpus.sentence_lengths[start : start + _CHUNK]


def _document_lengths(corpus: IndexedCorpus) -> Iterator[np.ndarray]:
    for start in range(0, corpus.num_documents, _CHUNK // 16):
        ends = corpus.document_starts[start : start + _CHUNK // 16 + 1]
        yield np.diff([corpus.token_start(int(sentence)) for sentence in ends])


def report(corpus: IndexedCorpus, stats: Statistics) -> str:
    """Describes a corpus in lines for people."""
    size = sum(
        os.path.getsize(corpus.prefix + suffix)
        for suffix in (".bin", ".idx", ".words")
        if os.path.exists(corpus.prefix + suffix)
    )
    lines = [
        f"{corpus.prefix}: {corpus.num_documents:,} documents, {corpus.num_sentences:,} sentences, "
        f"{corpus.num_tokens:,} tokens ({corpus.dtype.name}), {size / 1e6:,.1f} MB",
        f"  tokens of a sentence: {stats.sentences.describe()}",
        f"  tokens of a document: {stats.documents.describe()}",
        f"  pairs: {stats.pairs_per_epoch:,} an epoch, {stats.random_next:.1%} with a random next "
        f"segment; tokens: {stats.pairs.describe()}",
    ]
    if stats.continuations is not None:
        lines.append(f"  word marks: {stats.continuations:.1%} of the tokens go on with a word")
    manifest = corpus.manifest
    if manifest is None:
        return "\n".join([*lines, "  no manifest: made by another program"])
    if manifest.tokenizer is not None:
        record = manifest.tokenizer
        lines.append(
            f"  tokenizer: {record.name}, {record.vocab_size:,} tokens, lower case: "
            f"{record.lower_case}, vocabulary {record.fingerprint[:12]}"
        )
    megabytes = sum(source["bytes"] for source in manifest.sources) / 1e6
    lines.append(f"  sources: {len(manifest.sources):,} files, {megabytes:,.1f} MB")
    lines.append(f"  left out or repaired: {manifest.skipped or 'nothing'}")
    losses = Losses(
        manifest.characters,
        manifest.num_tokens,
        manifest.unknown_tokens,
        corpus.num_documents,
        manifest.skipped,
    )
    lines.extend(f"  {line}" for line in losses.report())
    return "\n".join(lines)


def show_documents(corpus: IndexedCorpus, tokenizer: CorpusTokenizer, count: int) -> Iterator[str]:
    """Yields the text of documents that lie evenly in the corpus, one sentence a line."""
    count = min(count, corpus.num_documents)
    for number in (corpus.num_documents * i // count for i in range(count)):
        first, last = (int(corpus.document_starts[number + i]) for i in (0, 1))
        yield f"document {number}, sentences {first} to {last - 1}:"
        for sentence in range(first, last):
            tokens = corpus.sentence(sentence)
            if corpus.has_word_marks:
                yield "  " + _join_words(
                    tokens, corpus.word_continuations(sentence, sentence + 1), tokenizer
                )
            else:
                yield "  " + str(tokenizer.decode(tokens.tolist()))


def show_pairs(
    corpus: IndexedCorpus,
    tokenizer: CorpusTokenizer,
    count: int,
    max_length: int,
    seed: int,
) -> Iterator[str]:
    """Yields the first pairs of the first epoch as text."""
    source = PairSource(corpus, max_length, seed)
    numbers = np.arange(min(count, source.num_samples))
    for k, pair in enumerate(source.draw(np.zeros_like(numbers), numbers)):
        kind = "random next" if pair.is_random_next else "next"
        yield f"pair {k}, {kind}, {len(pair.first)} + {len(pair.second)} tokens:"
        for name, tokens in (("A", pair.first), ("B", pair.second)):
            yield f"  {name}: {tokenizer.decode(tokens.tolist())}"


def _join_words(tokens: np.ndarray, continues: np.ndarray, tokenizer: CorpusTokenizer) -> str:
    """Joins tokens with spaces between words only."""
    pieces = tokenizer.convert_ids_to_tokens(tokens.tolist())
    return "".join(
        piece.removeprefix("##") if goes_on or piece.startswith("##") else " " + piece
        for piece, goes_on in zip(pieces, continues.tolist(), strict=True)
    ).strip()


def draw_lengths(stats: Statistics, path: str, title: str) -> None:
    """Draws the three length histograms side by side into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = {
        "sentences": stats.sentences,
        "documents": stats.documents,
        f"pairs (a sample of {stats.pairs.counts.sum():,})": stats.pairs,
    }
    for axes, (name, lengths) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        longest = int(lengths.lengths[-1])
        if longest > 1000:
            edges = np.unique(np.geomspace(1, longest + 1, 41).astype(np.int64))
            axes.set_xscale("log")
        else:
            edges = np.unique(np.linspace(0, longest + 1, 65).astype(np.int64))
        axes.hist(lengths.lengths, edges, weights=lengths.counts, color="#4477aa")
        axes.axvline(lengths.quantile(0.5), color="#cc3311", linewidth=1, label="median")
        axes.set(title=name, xlabel="tokens", ylabel="count")
        axes.legend()
    figure.suptitle(title)
    with written(path) as aside:
        figure.savefig(aside, dpi=110, format="png")
