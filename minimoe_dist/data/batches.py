"""Turns segment pairs into the tensors that a model reads: layout, padding, masking.

``bert_nil`` lays a pair out as ``[CLS] A [SEP] B [SEP]``; ``bert_mlm`` also masks tokens and keeps
what they were as labels. Masks are keyed by (seed, sample id), so a sample is masked alike
wherever and whenever it is read, and anew in every epoch.

``roberta_nil`` and ``roberta_mlm`` are the same with RoBERTa's tokens, ``<s> A </s> B </s>``, and
without segments. Between A and B stands one separator, as between documents in RoBERTa's
pre-training; the two that its tokenizer puts between pairs are a habit of fine-tuning, and would
leave less room for the same corpus.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol, get_args

import numpy as np
import torch

from ..config.schema import DataType
from ..errors import UserError
from .keyed import as_int64
from .pairs import NO_MARKS, PairBatch

IGNORED_LABEL = -100
_LENGTH_MULTIPLE = 8


@dataclass(frozen=True)
class SpecialTokens:
    """Holds the ids that the layout needs, and the size of their vocabulary.

    Raises:
        UserError: an id outside the vocabulary.
    """

    cls: int
    sep: int
    pad: int
    mask: int
    vocab_size: int

    def __post_init__(self) -> None:
        for name in ("cls", "sep", "pad", "mask"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise UserError(
                    f"special token {name}: id {getattr(self, name)} is outside the vocabulary of "
                    f"{self.vocab_size}; give a tokenizer that has the token"
                )


@dataclass
class MicroBatch:
    """Holds the samples of one forward pass on one rank.

    Attributes:
        input_ids: int64 [b, S].
        attention_mask: bool [b, S], False on padding.
        token_type_ids: int64 [b, S], 0 up to and including the first ``[SEP]``, 1 after it, 0 on
            padding; all 0 without segments.
        sample_ids: int64 [b], the samples' global positions in the run.
        labels: int64 [b, S], -100 where nothing is to be predicted; None without masking. Of tasks
            those of :func:`.tasks.batches.collate`.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor
    sample_ids: torch.Tensor
    labels: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """The number of positions that are not padding; of a batch on the host."""
        return int(np.count_nonzero(self.attention_mask.numpy()))

    def inputs(self) -> dict[str, torch.Tensor]:
        """Returns an encoder's arguments, each int64 or bool [b, S]."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "token_type_ids": self.token_type_ids,
        }

    def tensors(self) -> list[torch.Tensor]:
        """Returns the batch's tensors in the order of its fields; labels only if there are any."""
        values = (getattr(self, field.name) for field in fields(self))
        return [tensor for tensor in values if tensor is not None]

    def on_each(self, move: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        """Returns the batch with every tensor replaced by ``move`` of it."""
        return MicroBatch(*map(move, self.tensors()))

    def to(self, device: torch.device | str) -> MicroBatch:
        """Returns the batch with every tensor on a device."""
        return self.on_each(lambda tensor: tensor.to(device))


def padding_batch() -> MicroBatch:
    """Makes one sample of padding, by which a rank without samples joins collectives."""
    return MicroBatch(
        input_ids=torch.zeros((1, 8), dtype=torch.long),
        attention_mask=torch.zeros((1, 8), dtype=torch.bool),
        token_type_ids=torch.zeros((1, 8), dtype=torch.long),
        sample_ids=torch.zeros(1, dtype=torch.long),
        labels=torch.full((1, 8), IGNORED_LABEL),
    )


class Collate(Protocol):
    """Makes a micro-batch of pairs."""

    def __call__(self, pairs: PairBatch, sample_ids: np.ndarray) -> MicroBatch:
        """Lays out ``pairs``, which are the samples ``sample_ids`` (int64 [b])."""


class UnmaskedCollate:
    """Lays pairs out and masks nothing: ``bert_nil`` and ``roberta_nil``.

    S is the longest sample's length, rounded up to a multiple of 8, at most ``max_length``.

    Args:
        special: ids of the special tokens.
        max_length: the longest sequence, special tokens included.
        segments: tell B from A in ``token_type_ids``.
        full_length: S is always ``max_length``, as published.
    """

    def __init__(
        self,
        special: SpecialTokens,
        max_length: int,
        *,
        segments: bool = True,
        full_length: bool = False,
    ) -> None:
        self._special = special
        self._max_length = max_length
        self._second_segment = int(segments)
        self._shortest = max_length if full_length else 1

    def __call__(self, pairs: PairBatch, sample_ids: np.ndarray) -> MicroBatch:
        """Lays out pairs.

        Args:
            pairs: [b] pairs of at most max_length - 3 tokens each.
            sample_ids: int64 [b].

        Raises:
            UserError: a token id that the vocabulary does not have.
        """
        return self._lay_out(pairs, sample_ids, with_labels=False)

    def _lay_out(
        self, pairs: PairBatch, sample_ids: np.ndarray, *, with_labels: bool
    ) -> MicroBatch:
        from .compiled.layout import lay_out

        special = self._special
        longest = int(pairs.lengths.max(initial=self._shortest))
        assert longest <= self._max_length, "a pair is longer than max_length"
        assert len(pairs) == len(sample_ids)
        padded = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        micro_batch = _new_micro_batch(
            sample_ids, min(padded, self._max_length), with_labels=with_labels
        )
        row = lay_out(
            pairs.tokens,
            pairs.first_lengths,
            pairs.second_lengths,
            special.cls,
            special.sep,
            special.pad,
            special.vocab_size,
            self._second_segment,
            micro_batch.input_ids.numpy(),
            micro_batch.attention_mask.numpy(),
            micro_batch.token_type_ids.numpy(),
        )
        if row < len(pairs):
            ids = np.concatenate(pairs[row][:2])
            wrong = ids[(ids < 0) | (ids >= special.vocab_size)][0]
            raise UserError(
                f"data.record_path_or_regex: token id {wrong} in a vocabulary of "
                f"{special.vocab_size}; build the corpus with the teacher's tokenizer"
            )
        return micro_batch


class MaskedCollate(UnmaskedCollate):
    """Lays pairs out and masks tokens for prediction: ``bert_mlm`` and ``roberta_mlm``.

    Of a sample's n positions, max(1, min(20, round(0.15 n))) are to be predicted, none of them a
    ``[CLS]``, ``[SEP]`` or padding; 80 % of those become ``[MASK]``, 10 % stay, 10 % become any
    token of the vocabulary (Devlin et al. 2019, section 3.1). With whole words, words are taken in
    random order, each if it still fits; a sample none of whose words fits has one position
    masked.

    Args:
        special: ids of the special tokens.
        max_length: the longest sequence, special tokens included.
        seed: the run's seed.
        continuation: bool [vocab_size], True for pieces that continue a word; masks whole words
            if it is given, those too that the pairs' own marks tell of (Chinese ones).
        segments: tell B from A in ``token_type_ids``.
        full_length: S is always ``max_length``, as published.

    Raises:
        UserError: ``continuation`` of another length than the vocabulary.
    """

    def __init__(
        self,
        special: SpecialTokens,
        max_length: int,
        seed: int,
        continuation: np.ndarray | None = None,
        *,
        segments: bool = True,
        full_length: bool = False,
    ) -> None:
        super().__init__(special, max_length, segments=segments, full_length=full_length)
        if continuation is not None and continuation.shape != (special.vocab_size,):
            raise UserError(
                f"data.whole_word_mask: {continuation.shape} word pieces are marked in a "
                f"vocabulary of {special.vocab_size}; give one mark for each token"
            )
        self._seed = as_int64(seed)
        self._continuation = np.empty(0, dtype=np.bool_) if continuation is None else continuation

    def __call__(self, pairs: PairBatch, sample_ids: np.ndarray) -> MicroBatch:
        """Lays out and masks pairs; arguments and errors are those of ``UnmaskedCollate``."""
        from .compiled.masking import mask_tokens

        special = self._special
        micro_batch = self._lay_out(pairs, sample_ids, with_labels=True)
        assert micro_batch.labels is not None
        mask_tokens(
            pairs.first_lengths,
            pairs.second_lengths,
            sample_ids,
            NO_MARKS if pairs.continues is None else pairs.continues,
            self._continuation,
            self._seed,
            special.cls,
            special.sep,
            special.mask,
            special.vocab_size,
            IGNORED_LABEL,
            micro_batch.input_ids.numpy(),
            micro_batch.labels.numpy(),
        )
        return micro_batch


def build_collate(
    data_type: DataType,
    special: SpecialTokens,
    max_length: int,
    seed: int,
    continuation: np.ndarray | None = None,
    *,
    full_length: bool = False,
) -> Collate:
    """Builds the collation that ``data_type`` names.

    Args:
        data_type: ``bert_nil``, ``bert_mlm``, ``roberta_nil`` or ``roberta_mlm``.
        special: ids of the special tokens.
        max_length: the longest sequence, special tokens included.
        seed: the run's seed.
        continuation: bool [vocab_size], True for pieces that continue a word; makes ``…_mlm`` mask
            whole words.
        full_length: pad every batch to ``max_length``, as published.

    Raises:
        UserError: another ``data_type``.
    """
    if data_type not in get_args(DataType):
        raise UserError(
            f"data.data_type is {data_type!r}; give one of {', '.join(get_args(DataType))}"
        )
    segments = data_type.startswith("bert")
    if data_type.endswith("nil"):
        return UnmaskedCollate(special, max_length, segments=segments, full_length=full_length)
    return MaskedCollate(
        special, max_length, seed, continuation, segments=segments, full_length=full_length
    )


def _new_micro_batch(sample_ids: np.ndarray, columns: int, *, with_labels: bool) -> MicroBatch:
    """Makes a micro-batch of samples whose other tensors are to be filled."""
    shape = (len(sample_ids), columns)

    # Not with torch.empty: that gives the interpreter's lock up, and may wait for it.
    def new(dtype: type[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.empty(shape, dtype=dtype))

    return MicroBatch(
        input_ids=new(np.int64),
        attention_mask=new(np.bool_),
        token_type_ids=new(np.int64),
        sample_ids=torch.from_numpy(np.array(sample_ids, dtype=np.int64)),
        labels=new(np.int64) if with_labels else None,
    )
