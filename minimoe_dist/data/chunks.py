"""Fits the weights of windows to a corpus when it is opened, so that few windows are rejected.

``compiled.windows`` has the rule that the weights serve. How many chunks an epoch holds is a
Hansen-Hurwitz estimate from the same few thousand windows.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import UserError

if TYPE_CHECKING:
    from .compiled.corpus import CorpusArrays

_WINDOW_CHUNKS = 6
_PILOT_WINDOWS = 6000
_GROUP_WINDOWS = 500
_PILOT_SENTENCE_WEIGHT = 0.25
_PILOT_SHARE = 0.05
_CLIPPED_SHARE = 0.001


class Calibration(NamedTuple):
    """Holds what drawing chunks needs besides the corpus.

    Attributes:
        groups: of type ``compiled.windows.TARGET_GROUP`` [n].
        chunks_per_pass: chunks that one pass of the sequential rule gives on average.
    """

    groups: np.ndarray
    chunks_per_pass: float


def calibrate(
    prefix: str, corpus: CorpusArrays, room: int, short_sequence_probability: float
) -> Calibration:
    """Fits the weights of windows to a corpus.

    It reads as much of any corpus, and depends on nothing else.

    Args:
        prefix: of the corpus, for messages.
        corpus: the sentences.
        room: tokens that A and B may have together, at least 2.
        short_sequence_probability: chance that a document's target is uniform in [2, room].

    Raises:
        UserError: a corpus (nearly) without tokens, or with a damaged index.
    """
    from .compiled.windows import TARGET_GROUP

    assert room >= 2 and 0.0 <= short_sequence_probability <= 1.0
    if corpus.num_tokens == 0 or len(corpus.document_starts) < 2:
        raise UserError(f"{prefix}: the corpus has no tokens; build it from text first")
    ranges = _target_ranges(room, short_sequence_probability)
    groups = np.recarray(len(ranges), dtype=TARGET_GROUP)
    expected = [
        share * _fit_group(prefix, corpus, low, high, share, groups[i : i + 1])
        for i, (low, high, share) in enumerate(ranges)
    ]
    groups.cumulative_share = np.cumsum(expected) / sum(expected)
    # numba recognises an array's type at a third of a record array's cost.
    return Calibration(groups.view(np.ndarray), sum(expected))


def check_status(prefix: str, status: tuple[int, int, int]) -> None:
    """Raises what a reading function of the compiled code found.

    Raises:
        UserError: the index points outside the data (a damaged ``.idx``).
    """
    from .compiled.corpus import DAMAGED, NOT_FOUND
    from .compiled.windows import MOST_TRIES

    kind, first, last = status
    if kind == DAMAGED:
        raise UserError(f"{prefix}.idx: wrong pointers at [{first}, {last}); build again")
    if kind == NOT_FOUND:
        raise RuntimeError(f"{prefix}: no chunk found in {MOST_TRIES} tries")


def _fit_group(
    prefix: str, corpus: CorpusArrays, low: int, high: int, share: float, group: Any
) -> float:
    """Fits the weights of targets in [low, high] to chunks that are counted in sampled windows.

    Args:
        prefix: of the corpus, for messages.
        corpus: the sentences.
        low: smallest target length.
        high: largest target length.
        share: of the documents that have such a target.
        group: of type TARGET_GROUP [1], filled but for ``cumulative_share``.

    Returns:
        Chunks of one pass over the corpus, were all targets of this group.
    """
    from .compiled.windows import sample_windows

    mean_length = corpus.num_tokens / len(corpus.lengths)
    group.low, group.high = low, high
    group.window_sentences = int(min(max(_WINDOW_CHUNKS * high / mean_length, 8), 8192))
    pilot = np.array([1.0 / high, _PILOT_SENTENCE_WEIGHT, 0.0])
    total = _set_weights(corpus, group, pilot)
    windows = _PILOT_WINDOWS if share > 0.2 else _GROUP_WINDOWS
    features, counts = np.zeros((windows, 3)), np.zeros(windows)
    status = sample_windows(tuple(corpus), group, low * 1_000_003 + high, features, counts)
    check_status(prefix, status)
    if not counts.any():
        raise UserError(f"{prefix}: hardly a sentence has tokens; build it from text")
    weights = (1.0 - _PILOT_SHARE) * _nonnegative_fit(features, counts) + _PILOT_SHARE * pilot
    group.bound = _shorten(_smallest_bound(counts, features @ weights))
    _set_weights(corpus, group, np.array([_shorten(weight) for weight in weights]))
    return _shorten(counts.mean() * total)


def _set_weights(corpus: CorpusArrays, group: Any, weights: np.ndarray) -> float:
    """Sets a group's weights of a token, a sentence and a document; returns all windows'."""
    per_token, per_sentence, per_document = weights.tolist()
    group.per_token, group.per_sentence, group.per_document = weights
    total = (
        per_token * corpus.num_tokens
        + per_sentence * len(corpus.lengths)
        + per_document * (len(corpus.document_starts) - 1)
    )
    group.total_weight = total
    return total


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
    """Solves least squares with coefficients ≥ 0 by trying every support (columns are few)."""
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
    """Finds the smallest b so that min(count, b·weight) loses at most a thousandth of all chunks.

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
