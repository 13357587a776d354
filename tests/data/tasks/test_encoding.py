"""Tasks as token ids and as batches."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from minimoe_dist.data.batches import MicroBatch
from minimoe_dist.data.tasks import Task, TaskData
from minimoe_dist.data.tasks.batches import (
    batches_by_length,
    collate,
    evaluation_batches,
    training_step,
)
from minimoe_dist.data.tasks.encoding import (
    IGNORED,
    EncodedTask,
    encode,
    tags_of_words,
    unknown_share,
)
from minimoe_dist.data.tasks.rows import BadRows

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", "##x", "##y"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY))
    return BertTokenizerFast(vocab=str(path))


def data_of(kind: str, texts: list[tuple[str, ...]], labels: list) -> TaskData:
    task = Task("t", kind, ("accuracy",), () if kind == "regression" else ("O", "B", "C"))
    return TaskData(task, Path("t"), texts, labels, BadRows())


def test_two_texts_are_two_segments_and_the_longer_one_is_cut(tokenizer) -> None:
    encoded = encode(data_of("classification", [("a b c d e f", "g")], [1]), tokenizer, 8)
    assert encoded.input_ids[0].tolist() == [2, 5, 6, 7, 8, 3, 11, 3]
    assert encoded.segments[0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


def test_samples_that_lose_their_end_are_counted(tokenizer) -> None:
    texts = [("a b c d e f",), ("a b c d e f g",), ("a b c d e f g h",)]
    assert encode(data_of("classification", texts, [0, 1, 1]), tokenizer, 8).cut == 2
    words = [tuple("abcdefgh"), tuple("abc")]
    assert encode(data_of("tagging", words, [[0] * 8, [0] * 3]), tokenizer, 8).cut == 1


def test_unknown_tokens_are_a_share_of_those_of_the_text(tokenizer) -> None:
    encoded = encode(data_of("classification", [("a 好 b 书",), ("a b",)], [0, 1]), tokenizer, 8)
    assert unknown_share(encoded, tokenizer) == 2 / 6


def test_a_words_tag_stands_at_its_first_piece(tokenizer) -> None:
    encoded = encode(data_of("tagging", [("ax", "bxy", "c")], [[1, 2, 0]]), tokenizer, 16)
    assert encoded.input_ids[0].tolist() == [2, 5, 15, 6, 15, 16, 7, 3]
    wanted = [IGNORED, 1, IGNORED, 2, IGNORED, IGNORED, 0, IGNORED]
    assert encoded.labels[0].tolist() == wanted


SENTENCE = ("The", "river", "runs", "under", "a", "bridge", "near", "the", "harbour", "!")


def byte_pairs() -> PreTrainedTokenizerFast:
    """RoBERTa's kind: a blank is part of the word behind it."""
    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator([" ".join(SENTENCE)] * 50, vocab_size=320, min_frequency=1)
    return PreTrainedTokenizerFast(tokenizer_object=pairs._tokenizer)


def unigrams() -> PreTrainedTokenizerFast:
    """XLM-R's kind."""
    pieces = Tokenizer(models.Unigram())
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, unk_token="?", special_tokens=["?"])
    pieces.train_from_iterator([" ".join(SENTENCE)] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="?")


def word_pieces() -> PreTrainedTokenizerFast:
    """BERT's kind."""
    letters = sorted({letter for word in SENTENCE for letter in word})
    tokens = ["[UNK]", *letters, *(f"##{letter}" for letter in letters), "The", "river"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")


@pytest.mark.parametrize("kind", [word_pieces, byte_pairs, unigrams])
def test_words_get_the_ids_of_running_text(kind: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = kind()
    sentences = [SENTENCE, ("naïve", "\u3000", "", "The river", "!", "x" * 30), ("", "a"), ("a",)]
    tags = [[1] * len(words) for words in sentences]
    encoded = encode(data_of("tagging", sentences, tags), tokenizer, 200)
    for words, ids in zip(sentences, encoded.input_ids, strict=True):
        assert ids.tolist() == tokenizer(" ".join(filter(None, words)))["input_ids"]
    # Each word is where its own characters begin.
    begins = np.flatnonzero(encoded.words[0] >= 0)
    pieces = np.split(encoded.input_ids[0], begins[1:])
    texts = ["".join(tokenizer.convert_ids_to_tokens(ids)) for ids in pieces]
    assert [text.replace("##", "").strip("▁Ġ") for text in texts] == list(SENTENCE)
    assert encoded.words[2].max() == 1


def test_words_behind_the_limit_are_tagged_as_outside(tokenizer) -> None:
    encoded = encode(data_of("tagging", [tuple("abcdefgh")], [[1] * 8]), tokenizer, 8)
    predicted = np.full(8, 2)
    assert tags_of_words(predicted, encoded.words[0], 8, outside=0) == [2] * 6 + [0] * 2


def test_a_word_without_pieces_leaves_the_others_their_tags(tokenizer) -> None:
    encoded = encode(data_of("tagging", [("a", "\u200b", "b")], [[1, 2, 0]]), tokenizer, 8)
    predicted = np.array([9, 1, 2, 9])
    assert tags_of_words(predicted, encoded.words[0], 3, outside=0) == [1, 0, 2]


def numbers(count: int) -> EncodedTask:
    """Samples whose only id is their number."""
    task = Task("t", "classification", ("accuracy",), ("a", "b"))
    ids = [np.array([number]) for number in range(count)]
    return EncodedTask(task, ids, [np.zeros(1, np.int8)] * count, [0] * count, [])


def samples_of(share: tuple[np.ndarray, MicroBatch]) -> list[int]:
    samples, batch = share
    assert batch.labels is not None
    assert batch.input_ids[batch.labels != IGNORED][:, 0].tolist() == samples.tolist()
    return samples.tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_steps_samples_do_not_depend_on_the_number_of_ranks(world_size: int) -> None:
    data = numbers(11)
    for step in range(6):
        shares = [
            samples_of(training_step(data, step, batch_size=4, seed=1, rank=r, world_size=w))
            for w in (1, world_size)
            for r in range(w)
        ]
        assert list(chain(*shares[1:])) == shares[0]


def test_an_epoch_has_every_sample_once_and_the_next_one_another_order() -> None:
    data = numbers(11)
    steps = [
        samples_of(training_step(data, step, batch_size=4, seed=1, rank=0, world_size=1))
        for step in range(6)
    ]
    first, second = list(chain(*steps[:3])), list(chain(*steps[3:]))
    assert sorted(first) == sorted(second) == list(range(11))
    assert first != second


def test_batches_come_longest_first_so_that_what_does_not_fit_shows_at_once() -> None:
    data = numbers(7)
    for number, length in enumerate((3, 9, 4, 17, 5, 4, 12)):
        data.input_ids[number] = np.full(length, number)
    batches = list(batches_by_length(data, 3))
    assert [batch.tolist() for batch in batches] == [[3, 6, 1], [4, 2, 5], [0]]


def test_sample_ids_differ_between_epochs() -> None:
    ids = [
        training_step(numbers(4), step, batch_size=4, seed=1, rank=0, world_size=1)[1].sample_ids
        for step in range(2)
    ]
    assert sorted(torch.cat(ids).tolist()) == list(range(8))


@pytest.mark.parametrize("kind", ["classification", "regression", "tagging"])
def test_a_rank_without_a_sample_gets_one_that_does_not_count(kind: str) -> None:
    data = EncodedTask(data_of(kind, [], []).task, [], [], [], [])
    batch = collate(data, [])
    assert batch.labels is not None
    assert not batch.attention_mask.any()
    counted = batch.labels.isfinite() if kind == "regression" else batch.labels != IGNORED
    assert not counted.any()


def test_evaluation_reads_every_sample_once() -> None:
    data = numbers(7)
    seen = [
        sample
        for rank in range(3)
        for samples, _ in evaluation_batches(data, 2, rank, 3)
        for sample in samples.tolist()
    ]
    assert sorted(seen) == list(range(7))
