"""Marks the tokens that go on with a word in text without spaces, for masks of whole words.

Words come from rjieba, the Rust edition of jieba: the same words, 20 times faster. English needs
none of this: its word pieces (`##`) tell by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import UserError
from ..runtime import logger

if TYPE_CHECKING:
    from .tokenizing import CorpusTokenizer

_log = logger("corpus")
# The ideographs that BERT's tokenizers put spaces around, [first, last].
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
_TRIAL = (
    "我们中出了一个叛徒，他穿着T恤唱卡拉OK。",
    "清华大学位于北京市海淀区，创建于1911年。",
    "A mixed 句子 with English words，3.14和ＡＢＣ。",
    "𠀀𪜀是生僻字；豈是兼容字。",
    "no ideographs at all, playing naïvely",
    "龘靐齉爩鱻麤龗 unknown☃characters 叛☃徒",
)


class WordMarker(Protocol):
    """Marks the tokens that go on with the word of the token before them."""

    def __call__(self, texts: Sequence[str], tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Marks the tokens of sentences.

        Args:
            texts: the sentences.
            tokens: ids of all of them in a row, integers [tokens].
            lengths: tokens of each sentence, [sentences].

        Returns:
            bool [tokens].
        """
        ...


def segmenter_name() -> str:
    """Returns the segmenter's name and version, as manifests say them."""
    return f"rjieba {version('rjieba')}"


def word_starts(text: str) -> np.ndarray:
    """Marks the characters at which a word, Chinese or not, starts: bool [characters]."""
    import rjieba

    ends = np.cumsum(np.fromiter(map(len, rjieba.cut(text, True)), np.int64))
    starts = np.zeros(len(text) + 1, np.bool_)
    starts[0] = True
    starts[ends] = True
    assert not text or int(ends[-1]) == len(text), "the segmenter keeps all characters"
    return starts[:-1]


def are_ideographs(text: str) -> np.ndarray:
    """Marks the characters that stand for themselves in BERT's vocabularies: bool [characters]."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    marks = np.zeros(codes.size, np.bool_)
    for first, last in _IDEOGRAPHS:
        # One comparison: what is below `first` wraps to large numbers.
        marks |= (codes - np.uint32(first)) <= np.uint32(last - first)
    return marks


class OffsetMarks:
    """Marks tokens by the places that a Hugging Face fast tokenizer gives them.

    Args:
        tokenizer: a fast one.
        ideographs_only: whether only tokens that begin or follow ideographs are marked, because
            the vocabulary itself tells of the others.

    Raises:
        UserError: a slow tokenizer.
    """

    def __init__(self, tokenizer: CorpusTokenizer, ideographs_only: bool) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"--whole_words: the tokenizer {tokenizer.name_or_path} does not tell where its "
                "tokens lie in the text; give one with tokenizer.json"
            )
        self._tokenizer = tokenizer
        self._ideographs_only = ideographs_only

    def __call__(self, texts: Sequence[str], tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Marks the tokens of sentences."""
        if not texts:
            return np.zeros(0, np.bool_)
        encoded: Any = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        by_text = [
            self._mark(text, np.array(offsets, np.int64).reshape(-1, 2))
            for text, offsets in zip(texts, encoded["offset_mapping"], strict=True)
        ]
        all_marks = np.concatenate(by_text)
        assert [marks.size for marks in by_text] == lengths.tolist(), "one tokenizer for both"
        return all_marks

    def _mark(self, text: str, offsets: np.ndarray) -> np.ndarray:
        starts, ends = offsets[:, 0], offsets[:, 1]
        inside = np.flatnonzero((starts < ends) & (starts > 0))
        first = starts[inside]
        marks = np.zeros(starts.size, np.bool_)
        marks[inside] = ~word_starts(text)[first]
        if self._ideographs_only:
            ideographs = are_ideographs(text)
            marks[inside] &= ideographs[first] | ideographs[first - 1]
        return marks


class IdeographMarks:
    """Marks tokens where each ideograph is a token of its own, without asking for places.

    The n-th token that is an ideograph belongs to the n-th ideograph of the text. Sentences where
    unknown characters leave a doubt go to `exact`.

    Args:
        tokenizer: of that kind.
        exact: marks any sentence.
    """

    def __init__(self, tokenizer: CorpusTokenizer, exact: WordMarker) -> None:
        vocabulary = tokenizer.get_vocab()
        self._kinds = np.zeros(max(vocabulary.values()) + 1, np.uint8)
        for token, index in vocabulary.items():
            if len(token) == 1 and are_ideographs(token)[0]:
                self._kinds[index] = 1
        if tokenizer.unk_token_id is not None:
            self._kinds[tokenizer.unk_token_id] = 2
        self._exact = exact

    def __call__(self, texts: Sequence[str], tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Marks the tokens of sentences."""
        marks = np.zeros(tokens.size, np.bool_)
        kinds = self._kinds[tokens]
        ends = np.cumsum(lengths)
        num_known, num_unknown = _per_sentence(kinds == 1, ends), _per_sentence(kinds == 2, ends)
        sentences = np.flatnonzero(num_known + num_unknown)
        if not sentences.size:
            return marks
        # The line end closes the last word of each sentence.
        text = "\n".join([*(texts[i] for i in sentences.tolist()), ""])
        ideographs = are_ideographs(text)
        text_ends = np.cumsum([len(texts[i]) + 1 for i in sentences.tolist()])
        num_in_text = _per_sentence(ideographs, text_ends)
        num_known, num_unknown = num_known[sentences], num_unknown[sentences]
        clear = (num_in_text == num_known) | (num_in_text == num_known + num_unknown)
        takes_unknown = np.zeros(lengths.size, np.bool_)
        takes_unknown[sentences] = num_in_text != num_known
        is_clear = np.zeros(lengths.size, np.bool_)
        is_clear[sentences] = clear
        candidates = (kinds == 1) | ((kinds == 2) & np.repeat(takes_unknown, lengths))
        token_numbers = np.flatnonzero(candidates & np.repeat(is_clear, lengths))
        sizes = np.diff(text_ends, prepend=0)
        characters = np.flatnonzero(ideographs & np.repeat(clear, sizes))
        starts = word_starts(text)
        marks[token_numbers] = ~starts[characters]
        # What follows an ideograph inside a word, as in 阿Q.
        following = ~starts[characters + 1] & ~ideographs[characters + 1]
        marks[np.minimum(token_numbers[following] + 1, marks.size - 1)] = True
        marks[(ends - lengths)[lengths > 0]] = False
        for i in sentences[~clear].tolist():
            span = slice(ends[i] - lengths[i], ends[i])
            marks[span] = self._exact([texts[i]], tokens[span], lengths[i : i + 1])
        return marks


def _per_sentence(flags: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Counts the flags that are set in each of the runs that end at `ends`."""
    sums = np.concatenate([[0], np.cumsum(flags)])[ends]
    return np.diff(sums, prepend=0)


def build_word_marker(tokenizer: CorpusTokenizer, sample: Sequence[str] = ()) -> WordMarker:
    """Builds the fastest marker that is right for a tokenizer.

    Args:
        tokenizer: whose tokens are marked.
        sample: texts of the corpus to try the fast marker on, besides built-in ones.

    Raises:
        UserError: the tokenizer does not tell where its tokens lie.
    """
    pieces_tell = any(token.startswith("##") for token in tokenizer.get_vocab())
    exact = OffsetMarks(tokenizer, ideographs_only=pieces_tell)
    if not pieces_tell:
        return exact
    fast = IdeographMarks(tokenizer, exact)
    texts = [*_TRIAL, *sample]
    encoded: Any = tokenizer(texts, add_special_tokens=False, verbose=False)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]], np.int64)
    tokens = np.array([token for ids in encoded["input_ids"] for token in ids], np.int64)
    if np.array_equal(fast(texts, tokens, lengths), exact(texts, tokens, lengths)):
        return fast
    _log.warning("--whole_words: the tokenizer joins ideographs; the slow way is taken")
    return exact
