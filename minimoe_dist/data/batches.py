"""From segment pairs to the tensors that a model reads: layout, padding, masking.

``bert_nil`` lays a pair out as ``[CLS] A [SEP] B [SEP]``; ``bert_mlm`` also masks tokens and keeps
what they were as labels. Masks are keyed by (seed, sample id), so a sample is masked alike
wherever and whenever it is read, and anew in every epoch.

``roberta_nil`` and ``roberta_mlm`` are the same with RoBERTa's tokens, ``<s> A </s> B </s>``, and
without segments. Between A and B stands one separator, as between documents in RoBERTa's
pre-training; the two that its tokenizer puts between pairs are a habit of fine-tuning, and would
leave less room for the same corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol, get_args

import numpy as np
import torch

from minimoe_dist.data.keyed import keyed_bits
from minimoe_dist.data.pairs import Pair

IGNORED_LABEL = -100
_LENGTH_MULTIPLE = 8
_MASKED_SHARE = 0.15
_MOST_MASKED = 20
_REPLACED_BY_MASK = 0.8
_REPLACED_BY_ANY = 0.1
_ORDER_STREAM, _FATE_STREAM, _REPLACEMENT_STREAM = range(3)


def most_predicted(length: int) -> int:
    """The most positions that a sample of at most ``length`` has to predict."""
    return max(1, min(_MOST_MASKED, round(_MASKED_SHARE * length)))


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that the layout needs, and the vocabulary they belong to.

    Raises:
        ValueError: an id outside the vocabulary.
    """

    cls: int
    sep: int
    pad: int
    mask: int
    vocab_size: int

    def __post_init__(self) -> None:
        for name in ("cls", "sep", "pad", "mask"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"special token {name}: id {getattr(self, name)} is outside the vocabulary of "
                    f"{self.vocab_size}; give a tokenizer that has the token"
                )


@dataclass
class MicroBatch:
    """The samples of one forward pass on one rank.

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
        """Positions that are not padding; of a batch on the host."""
        return int(self.attention_mask.sum())

    def inputs(self) -> dict[str, torch.Tensor]:
        """What an encoder takes, by its argument's name."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "token_type_ids": self.token_type_ids,
        }

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MicroBatch:
        """Returns the batch with every tensor on a device."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                moved[field.name] = value.to(device, non_blocking=non_blocking)
        return MicroBatch(**moved)


class Collate(Protocol):
    """Makes a micro-batch of pairs."""

    def __call__(self, pairs: Sequence[Pair], sample_ids: np.ndarray) -> MicroBatch:
        """Lays out ``pairs``, which are the samples ``sample_ids`` (int64 [b])."""


class UnmaskedCollate:
    """``bert_nil`` and ``roberta_nil``: lays pairs out and masks nothing.

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

    def __call__(self, pairs: Sequence[Pair], sample_ids: np.ndarray) -> MicroBatch:
        """Lays out pairs.

        Args:
            pairs: [b] pairs of at most max_length - 3 tokens each.
            sample_ids: int64 [b].

        Raises:
            ValueError: a token id that the vocabulary does not have.
        """
        input_ids, token_type_ids, lengths = self._lay_out(pairs)
        return _to_micro_batch(input_ids, token_type_ids, lengths, sample_ids, None)

    def _lay_out(self, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns input ids and token types, both int64 [b, S], and lengths, int64 [b]."""
        special = self._special
        lengths = np.array([len(p.first) + len(p.second) + 3 for p in pairs], dtype=np.int64)
        longest = int(lengths.max(initial=self._shortest))
        assert longest <= self._max_length, "a pair is longer than max_length"
        padded = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        shape = (len(pairs), min(padded, self._max_length))
        input_ids = np.full(shape, special.pad, dtype=np.int64)
        token_type_ids = np.zeros(shape, dtype=np.int64)
        for row, types, pair in zip(input_ids, token_type_ids, pairs, strict=True):
            first_end = len(pair.first) + 1
            second_end = first_end + 1 + len(pair.second)
            row[0] = special.cls
            row[1:first_end] = pair.first
            row[first_end] = special.sep
            row[first_end + 1 : second_end] = pair.second
            row[second_end] = special.sep
            types[first_end + 1 : second_end + 1] = self._second_segment
        if input_ids.size and not 0 <= input_ids.min() <= input_ids.max() < special.vocab_size:
            raise ValueError(
                f"data.record_path_or_regex: token id {input_ids.max()} in a vocabulary of "
                f"{special.vocab_size}; build the corpus with the teacher's tokenizer"
            )
        return input_ids, token_type_ids, lengths


class MaskedCollate(UnmaskedCollate):
    """``bert_mlm`` and ``roberta_mlm``: lays pairs out and masks tokens for prediction.

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
        ValueError: ``continuation`` of another length than the vocabulary.
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
            raise ValueError(
                f"data.whole_word_mask: {continuation.shape} word pieces are marked in a "
                f"vocabulary of {special.vocab_size}; give one mark for each token"
            )
        self._seed = seed
        self._continuation = continuation

    def __call__(self, pairs: Sequence[Pair], sample_ids: np.ndarray) -> MicroBatch:
        """Lays out and masks pairs; arguments and errors are those of ``UnmaskedCollate``."""
        input_ids, token_type_ids, lengths = self._lay_out(pairs)
        continues = self._continues(input_ids, pairs)
        chosen = self._choose(input_ids, lengths, sample_ids, continues)
        labels = np.where(chosen, input_ids, IGNORED_LABEL)
        rows, columns = np.nonzero(chosen)
        fate = keyed_bits(self._seed, _FATE_STREAM, sample_ids[rows], columns) / 2.0**64
        replacement = keyed_bits(self._seed, _REPLACEMENT_STREAM, sample_ids[rows], columns)
        replacement = (replacement % np.uint64(self._special.vocab_size)).astype(np.int64)
        replaced = np.where(fate < _REPLACED_BY_ANY, replacement, input_ids[rows, columns])
        is_hidden = fate >= 1.0 - _REPLACED_BY_MASK
        input_ids[rows, columns] = np.where(is_hidden, self._special.mask, replaced)
        return _to_micro_batch(input_ids, token_type_ids, lengths, sample_ids, labels)

    def _continues(self, input_ids: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray | None:
        """Which positions go on with the word before them, bool [b, S]; None if all are words."""
        if self._continuation is None:
            return None
        continues = self._continuation[input_ids]
        for row, pair in zip(continues, pairs, strict=True):
            second = len(pair.first) + 2
            if pair.first_continues is not None:
                row[1 : second - 1] |= pair.first_continues
            if pair.second_continues is not None:
                row[second : second + len(pair.second)] |= pair.second_continues
        return continues

    def _choose(
        self,
        input_ids: np.ndarray,
        lengths: np.ndarray,
        sample_ids: np.ndarray,
        continues: np.ndarray | None,
    ) -> np.ndarray:
        """Picks the positions to predict; returns bool [b, S]."""
        columns = np.arange(input_ids.shape[1])
        order = keyed_bits(self._seed, _ORDER_STREAM, sample_ids[:, None], columns[None])
        is_candidate = (columns < lengths[:, None]) & (input_ids != self._special.cls)
        is_candidate &= input_ids != self._special.sep
        budgets = np.clip(np.rint(lengths * _MASKED_SHARE).astype(np.int64), 1, _MOST_MASKED)
        if continues is not None:
            chosen = np.zeros(input_ids.shape, dtype=bool)
            continues &= is_candidate
            # A piece continues a word only where the word's start is in the same segment.
            continues[:, 1:] &= is_candidate[:, :-1]
            for row, positions in enumerate(is_candidate):
                taken = _choose_words(positions, continues[row], order[row], int(budgets[row]))
                chosen[row, taken] = True
            return chosen
        order = np.where(is_candidate, order >> np.uint64(1), np.uint64(2**64 - 1))
        ranks = np.argsort(order, axis=1)[:, :_MOST_MASKED]
        within = np.arange(ranks.shape[1]) < budgets[:, None]
        chosen = np.zeros(input_ids.shape, dtype=bool)
        np.put_along_axis(chosen, ranks, within, axis=1)
        return chosen & is_candidate


def _choose_words(
    is_candidate: np.ndarray, continues: np.ndarray, order: np.ndarray, budget: int
) -> list[int]:
    """Fills one sample's budget with whole words, in the order of the words' first positions.

    Args:
        is_candidate: bool [S], positions that may be taken.
        continues: bool [S], positions that go on with the word before them.
        order: uint64 [S], the rank of a word that starts there.
        budget: the most positions to take.
    """
    positions = np.flatnonzero(is_candidate)
    starts = np.flatnonzero(~continues[positions])
    ends = np.append(starts[1:], len(positions))
    taken: list[int] = []
    shuffled = np.argsort(order[positions[starts]])
    for begin, end in zip(starts[shuffled].tolist(), ends[shuffled].tolist(), strict=True):
        if len(taken) + end - begin <= budget:
            taken += positions[begin:end].tolist()
            if len(taken) == budget:
                break
    if not taken and len(positions):
        taken = [int(positions[starts[shuffled[0]]])]
    return taken


DataType = Literal["bert_nil", "bert_mlm", "roberta_nil", "roberta_mlm"]


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
        ValueError: another ``data_type``.
    """
    if data_type not in get_args(DataType):
        raise ValueError(
            f"data.data_type is {data_type!r}; give one of {', '.join(get_args(DataType))}"
        )
    segments = data_type.startswith("bert")
    if data_type.endswith("nil"):
        return UnmaskedCollate(special, max_length, segments=segments, full_length=full_length)
    return MaskedCollate(
        special, max_length, seed, continuation, segments=segments, full_length=full_length
    )


def _to_micro_batch(
    input_ids: np.ndarray,
    token_type_ids: np.ndarray,
    lengths: np.ndarray,
    sample_ids: np.ndarray,
    labels: np.ndarray | None,
) -> MicroBatch:
    attention_mask = np.arange(input_ids.shape[1]) < lengths[:, None]
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        token_type_ids=torch.from_numpy(token_type_ids),
        sample_ids=torch.from_numpy(np.array(sample_ids, dtype=np.int64)),
        labels=None if labels is None else torch.from_numpy(labels),
    )
