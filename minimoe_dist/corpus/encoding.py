"""Encodes blocks of raw text to arrays of ids, in worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.indexed_format import dtype_for_vocabulary
from ..data.indexed_writing import check_ids
from ..errors import UserError
from .blocks import REPLACEMENT, Problems
from .reading import BlockOfSource, SentenceReader
from .sources.tfrecord import Pairs, TFRecordSource
from .tokenizing import Encoder
from .words import WordMarker


@dataclass
class EncodedDocuments:
    """Holds documents as arrays, in the form that a corpus's writer takes.

    Attributes:
        tokens: ids of all sentences in the corpus's own dtype, [tokens].
        sentence_lengths: tokens of each sentence, at least one, int32 [sentences].
        document_lengths: sentences of each document, maybe none, int32 [documents].
        word_marks: which tokens go on with a word, bool [tokens]; None if nobody asked.
    """

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    document_lengths: np.ndarray
    word_marks: np.ndarray | None

    def select(self, documents: np.ndarray) -> EncodedDocuments:
        """Returns the documents that are chosen, bool [documents]."""
        sentences = np.repeat(documents, self.document_lengths)
        tokens = np.repeat(sentences, self.sentence_lengths)
        return EncodedDocuments(
            self.tokens[tokens],
            self.sentence_lengths[sentences],
            self.document_lengths[documents],
            None if self.word_marks is None else self.word_marks[tokens],
        )


@dataclass
class EncodedBlock:
    """Holds the documents of one block.

    Attributes:
        num_bytes: of the input file that the block takes.
        rest: what belongs to the document that a block before has begun; None if nothing does.
        sides: the documents that begin here, those for training and those held out; one entry
            where nothing is held out.
        last_side: index in `sides` of the block's last document; None if none begins here.
        problems: what was wrong in the block.
        unknown_tokens: how many tokens stand for what the vocabulary does not have.
    """

    num_bytes: int
    rest: EncodedDocuments | None
    sides: list[EncodedDocuments]
    last_side: int | None
    problems: Problems
    unknown_tokens: int = 0


@dataclass(frozen=True)
class BlockEncoder:
    """Encodes a block to ids; runs in worker processes.

    Attributes:
        reader: a block to sentences.
        encoder: sentences to ids.
        marker: marks whole words; None if nobody wants them.
        vocab_size: ids must be below it.
        heldout_fraction: share of documents kept apart, from 0 to below 1.
        special_ids: of cls and sep, which stand in TFRecords, and of unk.
    """

    reader: SentenceReader
    encoder: Encoder
    marker: WordMarker | None
    vocab_size: int
    heldout_fraction: float
    special_ids: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, work: BlockOfSource) -> EncodedBlock:
        """Encodes one block.

        Raises:
            UserError: an id is outside the vocabulary, or (strict) a line is damaged.
        """
        if isinstance(work.source, TFRecordSource):
            return self._take_pairs(work, work.source)
        parsed = self.reader(work)
        texts = [sentence for document in parsed.documents for sentence in document]
        sizes = np.array([len(document) for document in parsed.documents], np.int64)
        encoded = self._encode(texts, sizes, parsed.problems)
        starts = np.ones(sizes.size, np.bool_)
        if parsed.continues and sizes.size:
            starts[0] = False
        rest = None if starts.all() else encoded.select(~starts)
        if not self.heldout_fraction:
            sides = [encoded if rest is None else encoded.select(starts)]
            last_side = 0 if starts.any() else None
        else:
            heldout = np.array([self._is_heldout(document) for document in parsed.documents], bool)
            sides = [encoded.select(starts & ~heldout), encoded.select(starts & heldout)]
            last_side = int(heldout[-1]) if starts.any() else None
        unknown = int((encoded.tokens == self.special_ids.get("unk", -1)).sum())
        return EncodedBlock(work.block.progress, rest, sides, last_side, parsed.problems, unknown)

    def _encode(self, texts: list[str], sizes: np.ndarray, problems: Problems) -> EncodedDocuments:
        tokens, lengths = self.encoder.encode_ragged(texts)
        check_ids(tokens, self.vocab_size, "tokenizer")
        marks = None if self.marker is None else self.marker(texts, tokens, lengths)
        if lengths.size and not lengths.all():
            # Control characters alone give no token. U+FFFD is counted as lost already.
            owners = np.repeat(np.arange(sizes.size), sizes)[lengths > 0]
            dropped = [text for text, length in zip(texts, lengths, strict=True) if not length]
            lost = sum(len(text) - text.count(REPLACEMENT) for text in dropped)
            problems.counts["sentences_without_tokens"] += len(dropped)
            problems.lost["sentences_without_tokens"] += lost
            problems.kept -= lost
            sizes = np.bincount(owners, minlength=sizes.size)
            lengths = lengths[lengths > 0]
        return EncodedDocuments(
            tokens.astype(dtype_for_vocabulary(self.vocab_size)),
            lengths.astype(np.int32),
            sizes.astype(np.int32),
            marks,
        )

    def _take_pairs(self, work: BlockOfSource, source: TFRecordSource) -> EncodedBlock:
        """Encodes a block of an input that holds ids already."""
        problems = Problems(strict=self.reader.strict)
        if self.marker is not None:
            raise UserError(f"{work.block.path}: --whole_words needs text, and TFRecords hold ids")
        pairs = Pairs.empty()
        if not problems.note_damage(work.block):
            pairs = source.pairs(work.block, self.special_ids, problems)
        check_ids(pairs.tokens, self.vocab_size, work.block.path)
        encoded = EncodedDocuments(
            pairs.tokens.astype(dtype_for_vocabulary(self.vocab_size)),
            pairs.sentence_lengths.astype(np.int32),
            pairs.document_lengths.astype(np.int32),
            None,
        )
        if not self.heldout_fraction:
            sides, heldout = [encoded], np.zeros(pairs.document_lengths.size, np.bool_)
        else:
            heldout = np.array(
                [self._is_chosen(ids.astype("<i8").tobytes()) for ids in pairs.documents()],
                np.bool_,
            )
            sides = [encoded.select(~heldout), encoded.select(heldout)]
        last_side = int(heldout[-1]) if heldout.size else None
        return EncodedBlock(work.block.progress, None, sides, last_side, problems)

    def _is_heldout(self, sentences: Sequence[str]) -> bool:
        """Decides by the text alone, so that neither order nor neighbours matter."""
        return self._is_chosen("\n".join(sentences).encode("utf-8", "replace"))

    def _is_chosen(self, text: bytes) -> bool:
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.heldout_fraction * 2.0**64
