"""Draws a chunk of the sequential rule without walking the corpus.

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

The weights only decide how often step 3 rejects; ``minimoe_dist.data.chunks`` fits them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from .compiling import entry, filled, inner
from .corpus import (
    CORPUS,
    DAMAGED,
    FOUND,
    NOT_FOUND,
    STATUS,
    CorpusArrays,
    count_present,
    is_sound,
    token_start,
)
from .mersenne import below, new_generator, seed_generator, uniform

_WARM_UP_TARGETS = 4
_REPLAYS = 3
MOST_TRIES = 100_000

# Target lengths that are drawn alike, and what a window weighs under them.
TARGET_GROUP = np.dtype(
    [
        ("low", np.int64),  # smallest target length, in tokens
        ("high", np.int64),  # largest target length
        ("window_sentences", np.int64),  # sentences of a whole window
        ("per_token", np.float64),  # weight of one token
        ("per_sentence", np.float64),  # weight of one sentence
        ("per_document", np.float64),  # weight of a document's start
        ("total_weight", np.float64),  # weight of all windows of the corpus
        ("bound", np.float64),  # a window of `bound` × weight chunks a replay is always kept
        ("cumulative_share", np.float64),  # share of all chunks in this group and those before
    ]
)
TARGET_GROUPS = types.Array(numba.from_dtype(TARGET_GROUP), 1, "C", readonly=True)


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
    number of loaded tokens before it (one entry more than sentences); both int64. What is loaded
    is all of [low, high); nothing is where the index is damaged there.
    """

    sentences: np.ndarray
    offsets: np.ndarray
    first: int
    last: int
    low: int
    high: int
    starts_document: bool
    weight: float
    is_sound: bool


@inner
def _weight_before(corpus: CorpusArrays, group: np.record, sentence: int) -> float:
    """Returns the weight of the tokens and sentences before a sentence."""
    return group.per_token * token_start(corpus, sentence) + group.per_sentence * sentence


@inner
def _load(
    corpus: CorpusArrays,
    group: np.record,
    begin: int,
    end: int,
    first: int,
    last: int,
    weight: float,
) -> Window:
    """Loads sentences [first, last) of document [begin, end) with what replaying needs."""
    low, high = first, last
    enough = token_start(corpus, first) - _WARM_UP_TARGETS * group.high
    while low > begin and token_start(corpus, low) > enough:
        low = max(begin, low - group.window_sentences)
    enough = token_start(corpus, last) + group.high
    while high < end and token_start(corpus, high) < enough:
        high = min(end, high + group.window_sentences)
    sound = is_sound(corpus, low, high)
    present = count_present(corpus, low, high) if sound else 0
    sentences = np.empty(present, dtype=np.int64)
    offsets = np.empty(present + 1, dtype=np.int64)
    offsets[0] = count = 0
    sentence = low
    while count < present:
        if corpus.lengths[sentence]:
            sentences[count] = sentence
            offsets[count + 1] = offsets[count] + corpus.lengths[sentence]
            count += 1
        sentence += 1
    return Window(sentences, offsets, first, last, low, high, first == begin, weight, sound)


@inner
def find_window(corpus: CorpusArrays, group: np.record, at: float) -> Window:
    """Finds the window that covers cumulative weight ``at``."""
    starts = corpus.document_starts
    document, beyond = 0, len(starts) - 2
    while document < beyond:
        middle = (document + beyond) // 2
        before = _weight_before(corpus, group, starts[middle + 1])
        if at < before + group.per_document * (middle + 1):
            beyond = middle
        else:
            document = middle + 1
    begin, end = starts[document], starts[document + 1]
    at -= group.per_document * (document + 1)
    sentence, beyond = begin, max(begin, end - 1)
    while sentence < beyond:
        middle = (sentence + beyond) // 2
        if at < _weight_before(corpus, group, middle + 1):
            beyond = middle
        else:
            sentence = middle + 1
    first = sentence - (sentence - begin) % group.window_sentences
    last = min(first + group.window_sentences, end)
    weight = _weight_before(corpus, group, last) - _weight_before(corpus, group, first)
    if first == begin:
        weight += group.per_document
    return _load(corpus, group, begin, end, first, last, weight)


@inner
def _first_reaching(offsets: np.ndarray, tokens: int, low: int) -> int:
    """Finds the first offset from ``low`` on that is at least ``tokens``, or the last one."""
    high = len(offsets) - 1
    while low < high:
        middle = (low + high) // 2
        if offsets[middle] < tokens:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def _replay(window: Window, target: int, generator: np.ndarray, chunks: np.ndarray) -> int:
    sentences, offsets = window.sentences, window.offsets
    start, num_sentences, num_chunks = 0, len(sentences), 0
    while start < num_sentences and sentences[start] < window.last:
        end = _first_reaching(offsets, offsets[start] + target, start + 1)
        size = end - start
        middle, is_random_next = start + 1, True
        if size > 1:
            middle = start + 1 + below(generator, size - 1)
            is_random_next = uniform(generator) < 0.5
        if sentences[start] >= window.first:
            chunks[num_chunks, 0] = sentences[start]
            chunks[num_chunks, 1] = sentences[middle - 1] + 1
            chunks[num_chunks, 2] = sentences[end - 1] + 1
            chunks[num_chunks, 3] = is_random_next
            chunks[num_chunks, 4] = target
            num_chunks += 1
        start = middle if is_random_next else end
    return num_chunks


@inner
def replay_all(window: Window, group: np.record, generator: np.ndarray, chunks: np.ndarray) -> int:
    """Applies the sequential rule _REPLAYS times, each with a target of its own.

    Args:
        window: where.
        group: whose targets are drawn.
        generator: source of randomness.
        chunks: int64 [at least _REPLAYS × the window's sentences, 5], gets Chunk's fields.

    Returns:
        How many chunks start inside the window, all replays together.
    """
    num_chunks = 0
    for _ in range(_REPLAYS):
        target = group.low + below(generator, group.high - group.low + 1)
        num_chunks += _replay(window, target, generator, chunks[num_chunks:])
    return num_chunks


@inner
def _draw_group(groups: np.ndarray, generator: np.ndarray) -> np.record:
    share = uniform(generator)
    for i in range(len(groups) - 1):
        if share < groups[i].cumulative_share:
            return groups[i]
    return groups[len(groups) - 1]


@inner
def draw_chunk(
    corpus: CorpusArrays, groups: np.ndarray, position: float, generator: np.ndarray
) -> tuple[int, Chunk]:
    """Draws a chunk.

    Args:
        corpus: the sentences.
        groups: of type TARGET_GROUP [n].
        position: in [0, 1), where in the corpus to look first; uniform over many draws.
        generator: source of all other randomness.

    Returns:
        FOUND and a chunk; NOT_FOUND after MOST_TRIES windows; or DAMAGED, with the sentences
        [start, end) whose pointers are wrong in place of the chunk.
    """
    group = _draw_group(groups, generator)
    for _ in range(MOST_TRIES):
        window = find_window(corpus, group, position * group.total_weight)
        if not window.is_sound:
            return DAMAGED, Chunk(window.low, window.low, window.high, False, 0)
        chunks = np.empty((_REPLAYS * (window.last - window.first), 5), dtype=np.int64)
        num_chunks = replay_all(window, group, generator, chunks)
        if uniform(generator) * group.bound * window.weight * _REPLAYS < num_chunks:
            start, middle, end, is_random_next, target = chunks[below(generator, num_chunks)]
            return FOUND, Chunk(start, middle, end, is_random_next != 0, target)
        # A retry near the first position would even out regions of unequal yield.
        position = uniform(generator)
    return NOT_FOUND, Chunk(0, 0, 0, False, 0)


@entry(STATUS, CORPUS, TARGET_GROUPS, types.int64, filled(types.float64, 2), filled(types.float64))
def sample_windows(
    corpus: tuple[Any, ...],
    groups: np.ndarray,
    seed: int,
    features: np.ndarray,
    counts: np.ndarray,
) -> tuple[int, int, int]:
    """Replays the rule in windows that lie evenly in the corpus, and counts chunks.

    Args:
        corpus: the fields of CorpusArrays.
        groups: of type TARGET_GROUP [1], what the windows are drawn with.
        seed: at least 0.
        features: float64 [windows, 3], zeros; gets tokens, sentences and starts of documents of
            each window over its weight where the window has tokens.
        counts: float64 [windows], zeros; gets the mean number of chunks of its replays over its
            weight there.

    Returns:
        FOUND and two zeros, or DAMAGED and the sentences, from and to, whose pointers are wrong.
    """
    arrays, group = CorpusArrays(*corpus), groups[0]
    generator = new_generator()
    seed_generator(generator, 0, 0, seed)
    for i in range(len(counts)):
        position = (i + uniform(generator)) / len(counts)
        window = find_window(arrays, group, position * group.total_weight)
        if not window.is_sound:
            return DAMAGED, window.low, window.high
        tokens = token_start(arrays, window.last) - token_start(arrays, window.first)
        if tokens == 0:
            continue
        features[i, 0] = tokens / window.weight
        features[i, 1] = (window.last - window.first) / window.weight
        features[i, 2] = window.starts_document / window.weight
        chunks = np.empty((_REPLAYS * (window.last - window.first), 5), dtype=np.int64)
        counts[i] = replay_all(window, group, generator, chunks) / (window.weight * _REPLAYS)
    return FOUND, 0, 0
