"""Where sentences end, in English, Chinese and mixtures."""

import pytest

from minimoe_dist.corpus.sentences import (
    SentenceRules,
    cut_long,
    last_safe_cut,
    split_sentences,
)

# Each list is the expected split of its own elements, joined by the separator.
SPACED = {
    "plain": ["He came.", "She left!", "Did they?", "Yes."],
    "semicolon": ["It rained;", "they stayed at home."],
    "closing quotes": ['"Come in."', "“Thanks!”", "He sat down (at last.)", "Then he rose."],
    "question inside": ['"Really?" he said.', "Nobody answered."],
    "decimals": ["It costs 3.14 euros.", "It was .5 before."],
    "titles": ["Dr. Smith met Mrs. Jones and Prof. Brown.", "They talked."],
    "initials": ["J. R. R. Tolkien wrote it.", "So did I.", "The end."],
    "abbreviations": ["See fig. 3, e.g. the left part, i.e. No. 5 of vol. 2.", "It is red."],
    "acronyms": ["The U.S. Army came at 5 p.m. Monday.", "It left the U.S.", "The war was over."],
    "companies": ["Apple Inc. Chief John Doe resigned.", "He owned Google Inc.", "The price fell."],
    "urls": ["See http://a.b/c?d=e;f!g and www.example.org.", "Then stop."],
    "list numbers": ["1. First things first.", "2. Second things follow."],
    "dates": ["It opened on Jan. 5.", "He went there on Feb. 7, 1999."],
    "ellipsis": ["He waited...", "Nobody came … and so on.", "Well…", "He went."],
    "lower case": ["We met approx. twenty of them at yahoo! headquarters.", "Good."],
}
JOINED = {
    "plain": ["他来了。", "她走了！", "真的吗？", "是的；", "好。"],
    "ellipsis": ["他走了……", "我不知道。"],
    "closing quotes": ["他说：“你好！”", "然后他走了。", "（完。）", "《书。》", "再见。"],
    "straight quotes": ['他说:"你好。"', "她笑。", '"在哪里？"', "他问。"],
    "latin marks": ["版本3.0有bug!", "我不知道.", "对吗?", "Yes是的。"],
    "several marks": ["什么？！", "不会吧！！！", "好。"],
    "no terminator at the end": ["第一句。", "第二句没有结束"],
}

ALL_SPACED = " ".join(" ".join(sentences) for sentences in SPACED.values())
ALL_JOINED = "".join("".join(sentences) for sentences in JOINED.values())


@pytest.mark.parametrize("case", SPACED)
def test_spaced_text_splits_into(case):
    assert split_sentences(" ".join(SPACED[case])) == SPACED[case]


@pytest.mark.parametrize("case", JOINED)
def test_chinese_text_splits_into(case):
    assert split_sentences("".join(JOINED[case])) == JOINED[case]


def test_white_space_is_collapsed():
    assert split_sentences("  One\ttwo.\u3000  Three \n") == ["One two.", "Three"]


def test_white_space_alone_gives_nothing():
    assert split_sentences(" \t ") == []


@pytest.mark.parametrize("text", [ALL_SPACED, ALL_JOINED])
def test_no_character_is_lost(text):
    assert "".join(split_sentences(text)).replace(" ", "") == text.replace(" ", "")


def test_over_long_sentences_are_cut_at_spaces():
    assert split_sentences("aaa bbb ccc ddd", longest=8) == ["aaa bbb", "ccc ddd"]


def test_over_long_words_are_cut_anyway():
    assert list(cut_long("a" * 10, 4)) == ["aaaa", "aaaa", "aa"]


@pytest.mark.parametrize(
    ("sentence", "long_enough"),
    [
        ("one two three four five six seven", False),
        ("one two three four five six seven eight", True),
        ("他今天来了。", False),
        ("他今天早上来到了北京。", True),
        ("他用 BERT base model 做了 three experiments", True),
        ("naïve café only", False),
    ],
)
def test_the_least_length_suits_the_language(sentence, long_enough):
    assert SentenceRules().is_long_enough(sentence) is long_enough


@pytest.mark.parametrize("text", [ALL_SPACED, ALL_JOINED])
def test_a_safe_cut_keeps_the_sentences_of_the_whole(text):
    whole = split_sentences(text)
    for end in range(100, len(text)):
        cut = last_safe_cut(text[:end])
        assert split_sentences(text[:cut]) + split_sentences(text[cut:]) == whole


def test_text_too_short_for_a_safe_cut_gives_zero():
    assert last_safe_cut("One. Two.") == 0
