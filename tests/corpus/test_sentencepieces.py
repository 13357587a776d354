"""Tokenizers from sentencepiece models: layouts, ids, special tokens, the fast path."""

import random

import numpy as np
import pytest
import sentencepiece

from minimoe_dist.corpus.tokenizing import (
    SentencePieceEncoder,
    TokenizerEncoder,
    build_encoder,
    describe_tokenizer,
    load_tokenizer,
    special_token_ids,
)

WORDS = "the quick brown fox jumps over lazy dogs 今天 天气 很 好 我们 公园 散步 naïve 3.14 don't"
TEXTS = [
    "The quick brown fox.",
    "今天天气很好，散步！",
    "  two  spaces\t",
    "",
    "a <s> b <MASK> c [SEP]",
]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    chosen = random.Random(0)
    lines = [" ".join(chosen.choices(WORDS.split(), k=9)) for _ in range(400)]
    (folder / "text").write_text("\n".join(lines))

    def model(name, size=150, **options):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text"),
            model_prefix=str(path),
            vocab_size=size,
            hard_vocab_limit=False,
            minloglevel=2,
            **options,
        )
        path = f"{path}.model"
        return path, sentencepiece.SentencePieceProcessor(model_file=path)

    return model


@pytest.fixture(scope="module")
def plain(train):
    return train("plain")


def ids_of(tokenizer, texts):
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_a_plain_model_has_the_layout_of_megatron(plain):
    path, model = plain
    tokenizer = load_tokenizer(path)
    size = model.get_piece_size()
    assert special_token_ids(tokenizer) == {
        "cls": size, "sep": size + 1, "mask": size + 3, "pad": size + 4, "unk": 0,
    }  # fmt: skip
    assert len(tokenizer) == size + 5
    assert tokenizer.convert_ids_to_tokens(size + 2) == "<EOD>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert ids_of(tokenizer, TEXTS[:4]) == model.encode(TEXTS[:4])


def test_special_pieces_of_the_model_keep_their_ids(train):
    path, model = train("special", pad_id=3, user_defined_symbols="<CLS>,<SEP>,<MASK>")
    tokenizer = load_tokenizer(path)
    ids = special_token_ids(tokenizer)
    assert ids == {
        "cls": model.piece_to_id("<CLS>"),
        "sep": model.piece_to_id("<SEP>"),
        "mask": model.piece_to_id("<MASK>"),
        "pad": 3,
        "unk": 0,
    }
    assert len(tokenizer) == model.get_piece_size() + 1


def test_a_byte_pair_model_gives_its_own_ids(train):
    path, model = train("pairs", 400, model_type="bpe", byte_fallback=True)
    texts = [*TEXTS[:4], "unknown 鱼 characters 😀"]
    assert ids_of(load_tokenizer(path), texts) == model.encode(texts)


def test_a_file_named_as_xlm_rs_has_its_layout(train):
    path, model = train("xlmr/sentencepiece.bpe")
    tokenizer = load_tokenizer(path)
    size = model.get_piece_size()
    expected = {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": size + 1}
    assert special_token_ids(tokenizer) == expected
    shifted = [[index + 1 if index else 3 for index in ids] for ids in model.encode(TEXTS[:2])]
    assert ids_of(tokenizer, TEXTS[:2]) == shifted
    assert tokenizer.name_or_path == path


def test_a_model_with_berts_special_pieces_is_alberts(train):
    path, model = train(
        "albert", pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols="[CLS],[SEP],[MASK]"
    )
    tokenizer = load_tokenizer(path)
    assert special_token_ids(tokenizer) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert ids_of(tokenizer, TEXTS[:2]) == model.encode([text.lower() for text in TEXTS[:2]])
    cased = load_tokenizer(path, do_lower_case=False)
    assert ids_of(cased, TEXTS[:2]) == model.encode(TEXTS[:2])


def test_the_fast_path_gives_the_tokenizers_ids(plain):
    tokenizer = load_tokenizer(plain[0])
    encoder = build_encoder(tokenizer, TEXTS)
    assert isinstance(encoder, SentencePieceEncoder)
    for found, right in zip(
        encoder.encode_ragged(TEXTS), TokenizerEncoder(tokenizer).encode_ragged(TEXTS), strict=True
    ):
        assert np.array_equal(found, right)
    assert ids_of(tokenizer, TEXTS[4:])[0].count(tokenizer.mask_token_id) == 1


def test_no_texts_give_no_ids(plain):
    ids, lengths = build_encoder(load_tokenizer(plain[0])).encode_ragged([])
    assert (ids.size, lengths.size) == (0, 0)


def test_the_record_counts_added_tokens(plain):
    path, model = plain
    record = describe_tokenizer(load_tokenizer(path), path)
    assert (record.name, record.vocab_size) == (path, model.get_piece_size() + 5)


def test_lower_casing_that_cannot_be_had_is_refused(plain):
    with pytest.raises(ValueError, match="--do_lower_case does not apply"):
        load_tokenizer(plain[0], do_lower_case=True)


def test_another_kind_of_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "x.model"
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match="is no sentencepiece model") as refusal:
        load_tokenizer(str(path))
    assert "\n" not in str(refusal.value)
