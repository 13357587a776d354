"""Case and accents where a folder does not say what its tokenizer does to them."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizer

from minimoe_dist.corpus.casing import casing_of_vocabulary
from minimoe_dist.corpus.tokenizing import (
    check_casing,
    describe_tokenizer,
    load_tokenizer,
    open_tokenizer,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "<S>"]
LATIN, GREEK = "abcdefghijklmnopqrstuvwxyz", "αβγδεζηθικλμνξοπρστυφχψω"
CYRILLIC = "абвгдежзиклмнопрстуфхцчшщъыьэюя"
CHINESE = "今天气很好我们去公园中国人民银行"


def vocabulary(letters: str, *words: str) -> list[str]:
    """Single letters, at the beginning of words and in them, and words."""
    return [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]


CAPITALS, UNCASED, WITH_ACCENTS = (False, None), (True, None), (True, False)
VOCABULARIES: dict[str, tuple[list[str], tuple[bool, bool | None]]] = {
    "English, cased": (vocabulary(LATIN + LATIN.upper(), "The", "river"), CAPITALS),
    "English": (vocabulary(LATIN, "the", "river"), UNCASED),
    "German, cased": (vocabulary(LATIN + "äöüß" + LATIN.upper() + "ÄÖÜ", "Über"), CAPITALS),
    "German": (vocabulary(LATIN + "äöüß", "über", "läuft", "hund"), WITH_ACCENTS),
    "French": (vocabulary(LATIN + "éèêëàâçîïôùûü", "été", "chien"), WITH_ACCENTS),
    "French without accents": (vocabulary(LATIN, "ete", "chien"), UNCASED),
    "Greek, cased": (vocabulary(GREEK + GREEK.upper(), "Αθηνα"), CAPITALS),
    "Greek": (vocabulary(GREEK + "άέήίόύώ", "αθήνα"), WITH_ACCENTS),
    "Greek without accents": (vocabulary(GREEK + "ς", "αθηνα"), UNCASED),
    "Russian, cased": (vocabulary(CYRILLIC + CYRILLIC.upper() + "йЙ", "Москва"), CAPITALS),
    "Russian": (vocabulary(CYRILLIC + "йё", "москва", "мой", "ещё"), WITH_ACCENTS),
    "Russian without accents": (vocabulary(CYRILLIC, "москва", "мои"), UNCASED),
    "Korean": (vocabulary("가나다라마바사", "서울", "##에서"), WITH_ACCENTS),
    "Hindi": (vocabulary("कखगघचजटत", "नदी", "पुल"), WITH_ACCENTS),
    "Chinese": (vocabulary(CHINESE), UNCASED),
    "Chinese with Latin letters": (vocabulary(CHINESE + LATIN, "bert"), UNCASED),
    "Chinese with Latin capitals": (vocabulary(CHINESE + LATIN + LATIN.upper()), CAPITALS),
    "words alone, cased": ([*SPECIAL, "Der", "Hund", "rennt", "der"], CAPITALS),
    "one word added by hand": (vocabulary(LATIN, *LATIN[:20], "COVID"), UNCASED),
}


@pytest.mark.parametrize(("tokens", "casing"), VOCABULARIES.values(), ids=VOCABULARIES)
def test_casing_is_what_every_entry_can_come_from(
    tokens: list[str], casing: tuple[bool, bool | None]
) -> None:
    decided = casing_of_vocabulary(tokens)
    assert (decided.lower_case, decided.strip_accents) == casing


TEXTS = ["Über den Fluss läuft DER Hund.", "Éire, ÉTÉ", "der hund rennt über", "BERT 今天 naïve"]


def folder_of(path: Path, tokens: list[str], **files: dict[str, Any]) -> str:
    """A model's folder with its words and its configuration, and other files of JSON."""
    (path / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    for name, values in {"config": {"model_type": "bert"}, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(values))
    return str(path)


@pytest.mark.parametrize("name", ["German, cased", "German", "English", "words alone, cased"])
def test_ids_are_those_of_the_vocabularys_own_casing(name: str, tmp_path: Path) -> None:
    tokens, (lower_case, strip_accents) = VOCABULARIES[name]
    folder = folder_of(tmp_path, tokens)
    options = {"do_lower_case": lower_case, "strip_accents": strip_accents}
    wanted = BertTokenizer(vocab=f"{folder}/vocab.txt", **options)
    ids = wanted(TEXTS, add_special_tokens=False)["input_ids"]
    for tokenizer in (load_tokenizer(folder), open_tokenizer(folder)):
        assert tokenizer(TEXTS, add_special_tokens=False)["input_ids"] == ids
    load_tokenizer(folder).save_pretrained(tmp_path / "saved")
    saved = BertTokenizer.from_pretrained(tmp_path / "saved")
    assert saved(TEXTS, add_special_tokens=False)["input_ids"] == ids


def test_what_was_decided_is_said_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path, VOCABULARIES["German, cased"][0])
    with caplog.at_level(logging.INFO):
        open_tokenizer(folder)
    assert f"{folder}: the tokenizer keeps case and accents (of" in caplog.text
    assert "--do_lower_case true|false says otherwise" in caplog.text


def test_what_the_files_say_wins(tmp_path: Path) -> None:
    tokens = VOCABULARIES["German, cased"][0]
    folder = folder_of(tmp_path, tokens, tokenizer_config={"do_lower_case": True})
    for tokenizer in (load_tokenizer(folder), open_tokenizer(folder)):
        assert tokenizer.do_lower_case


def test_a_serialized_tokenizers_own_normalisation_wins(tmp_path: Path) -> None:
    tokens = VOCABULARIES["English"][0]
    (tmp_path / "serialized").mkdir()
    serialized = BertTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, do_lower_case=False
    )
    serialized.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    folder = folder_of(tmp_path, tokens)
    for tokenizer in (load_tokenizer(folder), open_tokenizer(folder)):
        assert not tokenizer.do_lower_case


@pytest.mark.parametrize("lower_case", [True, False])
def test_the_option_wins_over_the_vocabulary(lower_case: bool, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, VOCABULARIES["German, cased"][0])
    for tokenizer in (load_tokenizer(folder, lower_case), open_tokenizer(folder, lower_case)):
        assert tokenizer.do_lower_case == lower_case


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["über", "größe"]),
        ({"tokenizer_config": {"strip_accents": False}}, ["über", "größe"]),
        ({"tokenizer_config": {"strip_accents": True}}, ["uber", "große"]),
    ],
    ids=["the vocabulary's", "declared to be kept", "declared to be stripped"],
)
def test_the_option_is_of_capitals_alone(
    files: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    letters = LATIN + "äöüß"
    folder = folder_of(tmp_path, vocabulary(letters, "über", "größe", "uber", "große"), **files)
    for tokenizer in (load_tokenizer(folder, True), open_tokenizer(folder, True)):
        ids = tokenizer(["Über Größe"], add_special_tokens=False)["input_ids"][0]
        assert tokenizer.convert_ids_to_tokens(ids) == words


@pytest.mark.parametrize(
    ("options", "problem", "remedy"),
    [
        (
            {"do_lower_case": True},
            "keeps capitals, and that of model lower-cases",
            "give --do_lower_case false where",
        ),
        (
            {"strip_accents": True},
            "keeps accents, and that of model strips accents",
            'write "strip_accents": false into the tokenizer_config.json of model where',
        ),
    ],
)
def test_a_corpus_of_another_casing_is_refused_with_the_remedy_for_what_differs(
    options: dict[str, bool], problem: str, remedy: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, VOCABULARIES["German, cased"][0])
    record = describe_tokenizer(open_tokenizer(folder), "words")
    other = BertTokenizer(vocab=f"{folder}/vocab.txt", **{"do_lower_case": False, **options})
    check_casing("corpus", record, open_tokenizer(folder), "model")
    with pytest.raises(
        ValueError, match=f"corpus: was built with a tokenizer that {problem}"
    ) as say:
        check_casing("corpus", record, other, "model")
    assert f"or {remedy} the corpus is right" in str(say.value)
