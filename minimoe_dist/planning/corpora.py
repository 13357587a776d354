"""Measures how much text a recipe's corpora hold, as far as a plan needs it."""

import numpy as np

from ..config import RunConfig
from ..data.indexed import IndexedCorpus, find_corpora
from ..data.pairs import PairSource
from ..errors import UserError
from .plan import Corpus

_SAMPLED_PAIRS = 512


def corpus_of(config: RunConfig, tokens: int | None) -> Corpus | None:
    """Counts samples and their mean length, in the recipe's corpora or in assumed text.

    Args:
        config: the run.
        tokens: number of tokens to assume instead of the recipe's corpora.

    Returns:
        The counts; None where a corpus is missing.

    Raises:
        ConfigError: a corpus is damaged.
    """
    data = config.data
    if tokens is not None:
        # A chunk of a document that is cut short by its end, or aims at less, is on average this.
        length = data.max_length * (1 - data.short_sequence_probability / 2)
        return Corpus(max(1, round(tokens / length)), length, known=False)
    samples, total = 0, 0.0
    for entry in data.record_path_or_regex:
        try:
            prefixes = find_corpora(entry.path)
        except (UserError, OSError):
            return None
        for prefix in prefixes:
            pairs = PairSource(
                IndexedCorpus.open(prefix),
                data.max_length,
                config.seed,
                data.short_sequence_probability,
            )
            samples += pairs.num_samples
            total += pairs.num_samples * _mean_length(pairs)
    return Corpus(samples, total / samples)


def _mean_length(pairs: PairSource) -> float:
    step = max(1, pairs.num_samples // _SAMPLED_PAIRS)
    numbers = np.arange(0, pairs.num_samples, step)
    return float(pairs.draw(np.zeros_like(numbers), numbers).lengths.mean())
