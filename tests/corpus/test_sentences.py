"""Where sentences end, in English, Chinese and mixtures."""

import random

import pytest

from minimoe_dist.corpus import sentences
from minimoe_dist.corpus.sentences import (
    SentenceRules,
    cut_long,
    last_safe_cut,
    split_lines,
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
    "brackets after the stop": ["(He came (so they say!).)", "It was good."],
    "marks that are named": ["Type all(!) of it, or '.' and \"...\", 0 ... 9 of them.", "Then go."],
    "stops after closers": [
        "Use it (1, 2, ...).",
        'It is ".." or "..".',
        "It has (a, b, etc.);",
        "so be it.",
    ],
    "signs for list items": ["#. Each node has a lock.", "#. Some have two."],
    "version numbers": ["It works since 5.10.8.", "Version 2.6 did not."],
    "accents": ["Il est très âgé.", "Où est-il?", "Voilà: “Ça va.”", "Bien."],
    "lower case": ["We met approx. twenty of them at yahoo! headquarters.", "Good."],
}
JOINED = {
    "plain": ["他来了。", "她走了！", "真的吗？", "是的；", "好。"],
    "ellipsis": ["他走了……", "我不知道。"],
    "closing quotes": ["他说：“你好！”", "然后他走了。", "（完。）", "《书。》", "再见。"],
    "straight quotes": ['他说:"你好。"', "她笑。", '"在哪里？"', "他问。"],
    "full-width stop": ["还是划算的．", "下午２．５点入住．", "再来."],
    "full stop after a quote": ['评价是"太差".', '以"."开头的文件。', "好。"],
    "full stop after a bracket": ["请参见 iptables(8).", "以“.”开头的文件(*.doc)。", "好。"],
    "latin marks": ["版本3.0有bug!", "我不知道.", "对吗?", "Yes是的。"],
    "several marks": ["什么？！", "不会吧！！！", "好。"],
    "full-width digits": ["增长１０．７％，其中３．５％来自出口。", "其他不变。"],
    "dots in a row": ["他走了......", "我不知道."],
    "marks around closers": [
        "他说“好！”。",
        "他（真的！），那就算了。",
        "什么！！！？？",
        "再见。",
    ],
    "half-width ideographic stop": ["これは本です｡", "はい。"],
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


def test_mixed_text_splits_by_the_rules_of_both():
    expected = [
        "他用BERT-base做了3.5倍的实验。",
        "See https://a.b/c?d=1 for e.g. Table 3.",
        "见表3.2中的Dr. Smith的结果!",
        "Great.",
    ]
    text = "他用BERT-base做了3.5倍的实验。See https://a.b/c?d=1 for e.g. Table 3. "
    assert split_sentences(text + "见表3.2中的Dr. Smith的结果!Great.") == expected


@pytest.mark.parametrize(
    "text",
    [
        "  One\ttwo.\u3000  Three \n",
        "One\u00a0two. Three",
        "One\x1ctwo.  Three",
        " One two. Three",
        "One two.\r\nThree\u2028",
    ],
)
def test_white_space_is_collapsed(text):
    assert split_sentences(text) == ["One two.", "Three"]


def test_lines_end_sentences():
    assert split_lines(["One two", "three. Four", "", " ", "第一句。第二句"]) == [
        "One two",
        "three.",
        "Four",
        "第一句。",
        "第二句",
    ]


@pytest.mark.parametrize("text", [ALL_SPACED, ALL_JOINED])
def test_lines_together_split_as_each_alone(text):
    lines = [text, "Plain words. More.", "naïve words. More…", "中文。更多", ""] * 2
    assert split_lines(lines) == [s for line in lines for s in split_sentences(line)]


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
        ("他，她；它：你！", False),
        ("今天的天气, don't go out", True),
        ("あいうえおかき", False),
        ("あいうえおかきく", True),
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


def test_the_minimum_can_differ_between_languages():
    rules = SentenceRules(minimum_words=4, minimum_characters=10)
    assert rules.is_long_enough("one two three four")
    assert not rules.is_long_enough("今天的天气非常好")
    assert rules.is_long_enough("今天的天气 is very good")


@pytest.mark.parametrize("name", ["minimum_words", "minimum_characters", "longest"])
def test_rules_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"--{name} 0"):
        SentenceRules(**{name: 0})


NOISE = [
    "word", "approx", "中文", "e.g", "Dr", "A", "1", '"', "“", "”", "）", "(", " ", " ", ". ",
    "。", "！", "．", "!", "?", ";", "；", "……", "...", "…", "，", "x.y", "The", "long",
]  # fmt: skip


def test_sentences_are_not_split_again():
    chosen = random.Random(7)
    for text in [
        ALL_SPACED + ALL_JOINED,
        *("".join(chosen.choices(NOISE, k=90)) for _ in range(300)),
    ]:
        found = split_sentences(text)
        assert [split_sentences(sentence) for sentence in found] == [[s] for s in found]


@pytest.mark.parametrize("certain", [True, False])
def test_a_safe_cut_of_noise_keeps_the_sentences_of_the_whole(monkeypatch, certain):
    if not certain:
        monkeypatch.setattr(sentences, "_last_certain_end", lambda text: 0)
    chosen = random.Random(certain)
    for _ in range(300):
        text = "".join(chosen.choices(NOISE, k=300))
        cut = last_safe_cut(text[: chosen.randrange(300, len(text))])
        assert split_sentences(text[:cut]) + split_sentences(text[cut:]) == split_sentences(text)


def test_text_too_short_for_a_safe_cut_gives_zero():
    assert last_safe_cut("One. Two.") == 0


@pytest.mark.parametrize(
    "line",
    [
        "." * 300_000,
        "é" + ".;" * 150_000,
        "é. " + "a" * 300_000 + "一. B",
        "!" * 150_000 + ")" * 150_000,
    ],
)
def test_a_line_of_marks_or_of_one_word_is_split_in_no_time(line):
    # From each of its places to its end, it would take a quarter of an hour.
    assert "".join(split_sentences(line)).replace(" ", "") == line.replace(" ", "")
