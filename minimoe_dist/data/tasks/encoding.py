"""Tasks as token ids: samples of a length, and which of their tokens carry a label."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import UserError
from .task import Task, TaskData

IGNORED = -100
_CHUNK = 4096  # samples a call of the tokenizer, so that its lists do not all live at once


@dataclass(frozen=True)
class EncodedTask:
    """A task's samples, encoded.

    Attributes:
        task: with its labels.
        input_ids: of each sample, int32 [length].
        segments: of each sample, int8 [length].
        labels: of each sample, its label's number or value; of tags, int32 [length], `IGNORED` at
            tokens that do not begin a word.
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


def encode(data: TaskData, tokenizer: Any, max_length: int) -> EncodedTask:
    """Encodes a task's samples with their special tokens.

    A text that is too long loses its end; of two, the longer one loses first. A word's tag stands
    at its first piece; words behind the limit have none.

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
        cut += sum(bool(one.overflowing) for one in batch.encodings or ())
        for place, ids in enumerate(batch["input_ids"]):
            encoded.input_ids.append(np.array(ids, np.int32))
            segments = batch["token_type_ids"][place] if "token_type_ids" in batch else ()
            encoded.segments.append(np.array(segments or [0] * len(ids), np.int8))
            label = data.labels[start + place]
            if is_tagging:
                words = _first_pieces(batch.word_ids(place))
                encoded.words.append(words)
                label = np.where(words < 0, IGNORED, np.array(label, np.int32)[words])
            encoded.labels.append(label)
    return replace(encoded, cut=cut)


def unknown_share(encoded: EncodedTask, tokenizer: Any) -> float:
    """The share of tokens, special ones aside, that the tokenizer's vocabulary does not have."""
    if tokenizer.unk_token_id is None or not len(encoded):
        return 0.0
    ids = np.concatenate(encoded.input_ids)
    unknown = int((ids == tokenizer.unk_token_id).sum())
    others = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return unknown / max(1, int((~np.isin(ids, list(others))).sum()))


def _tokenize(
    texts: Sequence[tuple[str, ...]], tokenizer: Any, max_length: int, is_tagging: bool
) -> Any:
    options = {"truncation": True, "max_length": max_length, "return_attention_mask": False}
    if is_tagging:
        return tokenizer([list(words) for words in texts], is_split_into_words=True, **options)
    columns = [list(column) for column in zip(*texts, strict=True)]
    return tokenizer(*columns, **options)


def _first_pieces(word_of: Sequence[int | None]) -> np.ndarray:
    words = np.full(len(word_of), -1, np.int32)
    before: int | None = None
    for place, word in enumerate(word_of):
        if word is not None and word != before:
            words[place] = word
        before = word
    return words


def tags_of_words(predicted: np.ndarray, words: np.ndarray, count: int, outside: int) -> list[int]:
    """A sentence's tags from its tokens'.

    Args:
        predicted: integers [at least length], a tag for every token.
        words: of :class:`EncodedTask`.
        count: how many words the sentence has.
        outside: the tag of words that have no token: those behind the limit.
    """
    tags = [outside] * count
    for place in np.flatnonzero(words >= 0):
        tags[words[place]] = int(predicted[place])
    return tags
