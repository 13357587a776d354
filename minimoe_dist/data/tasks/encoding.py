"""Encodes tasks as token ids, and marks the tokens that carry a label."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import UserError
from .task import Task, TaskData

IGNORED = -100
# Labels of what has none, and of which a teacher's predictions are learnt alone: the numbers of
# classes and tags, and the value of a regression.
UNLABELLED = -101
UNLABELLED_VALUE = math.inf
_CHUNK = 4096  # samples a call of the tokenizer, so that its lists do not all live at once


@dataclass(frozen=True)
class EncodedTask:
    """Holds a task's samples, encoded.

    Attributes:
        task: with its labels.
        input_ids: of each sample, int32 [length].
        segments: of each sample, int8 [length].
        labels: of each sample, its label's number or value; of tags, int32 [length], `IGNORED` at
            tokens that do not begin a word. `UNLABELLED`, or `UNLABELLED_VALUE`, where there is
            none.
        words: of each sample of tags, int32 [length], the number of the word that a token begins,
            -1 where it begins none; else empty.
        cut: how many samples lost their end.
    """

    task: Task
    input_ids: list[np.ndarray]
    segments: list[np.ndarray]
    labels: list[Any]
    words: list[np.ndarray]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    def followed_by(self, other: "EncodedTask") -> "EncodedTask":
        """Returns these samples and, behind them, another file's of the same task."""
        return EncodedTask(
            self.task,
            self.input_ids + other.input_ids,
            self.segments + other.segments,
            self.labels + other.labels,
            self.words + other.words,
            self.cut + other.cut,
        )


def encode(data: TaskData, tokenizer: Any, max_length: int) -> EncodedTask:
    """Encodes a task's samples with their special tokens.

    A text that is too long loses its end; of two, the longer one loses first. Words of a sentence
    get the ids that they have in a text with a blank between them. A word's tag stands at its first
    piece; words behind the limit have none.

    Args:
        data: the samples.
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens of a sample with its special tokens.

    Raises:
        UserError: tags are wanted of a tokenizer that cannot say which word a piece is of.
    """
    encoded = EncodedTask(data.task, [], [], [], [])
    cut = 0
    is_tagging = data.task.kind == "tagging"
    if is_tagging and not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "tokenizer: this one does not say which word a piece is of, which tags of words need; "
            "give a folder with tokenizer.json"
        )
    for start in range(0, len(data), _CHUNK):
        texts = data.texts[start : start + _CHUNK]
        batch = _tokenize(texts, tokenizer, max_length, is_tagging)
        cut += sum(bool(encoding.overflowing) for encoding in batch.encodings or ())
        for row, ids in enumerate(batch["input_ids"]):
            encoded.input_ids.append(np.array(ids, np.int32))
            segments = batch["token_type_ids"][row] if "token_type_ids" in batch else ()
            encoded.segments.append(np.array(segments or [0] * len(ids), np.int8))
            label = data.labels[start + row]
            if is_tagging:
                first_pieces = _first_pieces(batch, row, texts[row])
                encoded.words.append(first_pieces)
                tags = np.array(label, np.int32)[first_pieces]
                label = np.where(first_pieces < 0, IGNORED, tags)
            encoded.labels.append(label)
    return replace(encoded, cut=cut)


def unknown_share(encoded: EncodedTask, tokenizer: Any) -> float:
    """Returns the share of tokens, special ones aside, that the vocabulary does not have."""
    if tokenizer.unk_token_id is None or not len(encoded):
        return 0.0
    ids = np.concatenate(encoded.input_ids)
    unknown = int((ids == tokenizer.unk_token_id).sum())
    special_ids = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return unknown / max(1, int((~np.isin(ids, list(special_ids))).sum()))


def _tokenize(
    texts: Sequence[tuple[str, ...]], tokenizer: Any, max_length: int, is_tagging: bool
) -> Any:
    options = {"truncation": True, "max_length": max_length, "return_attention_mask": False}
    if is_tagging:
        # Tokenised one by one, a word would lack the blank before it, which byte pairs heed.
        running = [_running_text(words) for words in texts]
        return tokenizer(running, return_offsets_mapping=True, **options)
    columns = [list(column) for column in zip(*texts, strict=True)]
    return tokenizer(*columns, **options)


def _running_text(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word)


def _first_pieces(batch: Any, sample: int, words: Sequence[str]) -> np.ndarray:
    """Numbers the word that each token of a sample begins, int32 [length]; -1 for none."""
    # Of each character of the running text its word's number; a blank belongs to the word behind.
    word_of_character = np.repeat(
        np.flatnonzero([bool(word) for word in words]).astype(np.int32),
        [len(word) + (number > 0) for number, word in enumerate(filter(None, words))],
    )
    first_pieces = np.full(len(batch["input_ids"][sample]), -1, np.int32)
    last_word = -1
    for token, (sequence, (start, end)) in enumerate(
        zip(batch.sequence_ids(sample), batch["offset_mapping"][sample], strict=True)
    ):
        if sequence is None:
            continue
        # A piece may begin with the blank before it, or be nothing but that.
        word = int(word_of_character[min(max(start, end - 1), word_of_character.size - 1)])
        if word > last_word:
            first_pieces[token] = last_word = word
    return first_pieces


def tags_of_words(predicted: np.ndarray, words: np.ndarray, count: int, outside: int) -> list[int]:
    """Picks a sentence's tags, one for each word, from its tokens' tags.

    Args:
        predicted: integers [at least length], a tag for every token.
        words: of :class:`EncodedTask`.
        count: how many words the sentence has.
        outside: the tag of words that have no token: those behind the limit.
    """
    tags = [outside] * count
    for token in np.flatnonzero(words >= 0):
        tags[words[token]] = int(predicted[token])
    return tags
