"""Raw corpora to text of one sentence a line, and to indexed corpora.

Both read blocks in worker processes and write in the calling one, in the order of the inputs:
the bytes written do not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from minimoe_dist.corpus.blocks import Block, Problems
from minimoe_dist.corpus.pipeline import ordered_map
from minimoe_dist.corpus.reading import (
    BlockOfSource,
    BlockSentences,
    Inputs,
    ReadingOptions,
    SentenceReader,
)
from minimoe_dist.corpus.sources import FORMAT_SUFFIX
from minimoe_dist.corpus.tokenizing import Encoder, build_encoder, describe_tokenizer
from minimoe_dist.data.indexed import HELDOUT_SUFFIX, IndexedCorpusWriter, Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class _Encoded:
    """One block as arrays, in the form that the writer takes."""

    block: Block
    continues: bool
    tokens: np.ndarray
    sentence_lengths: np.ndarray
    document_lengths: np.ndarray
    heldout: np.ndarray
    problems: Problems


@dataclass(frozen=True)
class FormatResult:
    """What `format_files` wrote."""

    paths: list[str]
    num_documents: int
    num_sentences: int
    skipped: dict[str, int]


@dataclass(frozen=True)
class BuildResult:
    """What `build_indexed` wrote."""

    prefix: str
    manifest: Manifest
    heldout_prefix: str | None = None
    heldout_manifest: Manifest | None = None

    def parts(self) -> list[tuple[str, Manifest]]:
        """The prefix and manifest of each corpus written."""
        parts = [(self.prefix, self.manifest)]
        if self.heldout_prefix is not None and self.heldout_manifest is not None:
            parts.append((self.heldout_prefix, self.heldout_manifest))
        return parts


@dataclass(frozen=True)
class _BlockEncoder:
    """Runs in workers: a block to ids."""

    reader: SentenceReader
    encoder: Encoder
    heldout_fraction: float

    def __call__(self, work: BlockOfSource) -> _Encoded:
        found = self.reader(work)
        sentences = [sentence for document in found.documents for sentence in document]
        sizes = np.array([len(document) for document in found.documents], np.int64)
        tokens, lengths = self.encoder.encode_ragged(sentences)
        if lengths.size and not lengths.all():
            # Control characters alone give no token.
            owners = np.repeat(np.arange(sizes.size), sizes)[lengths > 0]
            found.problems.counts["sentences_without_tokens"] += int((lengths == 0).sum())
            sizes = np.bincount(owners, minlength=sizes.size)
            lengths = lengths[lengths > 0]
        heldout = np.array([self._is_heldout(document) for document in found.documents], np.bool_)
        return _Encoded(
            found.block, found.continues, tokens, lengths, sizes, heldout, found.problems
        )

    def _is_heldout(self, sentences: list[str]) -> bool:
        """Decided by the text alone, so that neither order nor neighbours matter."""
        if self.heldout_fraction == 0:
            return False
        digest = hashlib.blake2b("\n".join(sentences).encode("utf-8", "replace"), digest_size=8)
        return int.from_bytes(digest.digest()) < self.heldout_fraction * 2.0**64


def format_files(
    inputs: Sequence[str], output_dir: str, options: ReadingOptions | None = None
) -> FormatResult:
    """Writes each input as text of one sentence a line, an empty line between documents.

    Outputs are named after their inputs as seen from `options.input_dir`, plus `.format`; each
    gets its name when it is whole. Inputs without sentences give no file.

    Raises:
        ValueError: there is no input, or nothing in it, or (strict) a damaged line.
    """
    options = options or ReadingOptions()
    files = Inputs(inputs, options)
    outputs: list[_FormatFile] = []
    results = ordered_map(files.reader(), files.work(), options.num_processors)
    with ExitStack() as stack, files.progress("formatting") as bar:
        for found in results:
            name = os.path.join(output_dir, files.names[found.block.path] + FORMAT_SUFFIX)
            if not outputs or outputs[-1].path != name:
                if outputs:
                    outputs[-1].finish()
                outputs.append(_FormatFile(name))
                stack.callback(outputs[-1].abandon)
            outputs[-1].add(found)
            files.note(found.problems)
            bar.update(found.block.length)
        if outputs:
            outputs[-1].finish()
    files.counts["empty_documents"] = sum(output.empty_documents for output in outputs)
    written = [output for output in outputs if output.num_sentences]
    files.counts["files_without_sentences"] = len(outputs) - len(written)
    if not written:
        raise ValueError(
            f"{inputs[0]}: no sentence in it or the other {len(inputs) - 1} inputs "
            f"(left out: {files.skipped()}); give other inputs"
        )
    return FormatResult(
        [output.path for output in written],
        sum(output.num_documents for output in written),
        sum(output.num_sentences for output in written),
        files.skipped(),
    )


class _FormatFile:
    """One output of `format_files`, under a temporary name until it is finished."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.num_documents = self.num_sentences = self.empty_documents = 0
        self._in_document = 0
        self._documents_seen = 0
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self._stream = open(path + ".partial", "w", encoding="utf-8")  # noqa: SIM115

    def add(self, found: BlockSentences) -> None:
        for index, sentences in enumerate(found.documents):
            if not (found.continues and index == 0):
                self._end_document()
                self._documents_seen += 1
            if not sentences:
                continue
            if self._in_document == 0 and self.num_sentences:
                self._stream.write("\n")
            self._stream.write("\n".join(sentences) + "\n")
            self._in_document += len(sentences)
            self.num_sentences += len(sentences)

    def _end_document(self) -> None:
        self.num_documents += self._in_document > 0
        self._in_document = 0

    def finish(self) -> None:
        self._end_document()
        self.empty_documents = self._documents_seen - self.num_documents
        if self.num_sentences:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            os.replace(self.path + ".partial", self.path)
        else:
            self.abandon()

    def abandon(self) -> None:
        self._stream.close()
        if os.path.exists(self.path + ".partial"):
            os.unlink(self.path + ".partial")


def build_indexed(
    inputs: Sequence[str],
    output_prefix: str,
    tokenizer: PreTrainedTokenizerBase,
    options: ReadingOptions | None = None,
    *,
    heldout_fraction: float = 0.0,
    overwrite: bool = False,
    tokenizer_name: str | None = None,
) -> BuildResult:
    """Builds an indexed corpus, and a held-out one at `<output_prefix>_heldout` if wanted.

    Whether a document is held out depends on its text alone. `tokenizer_name` is what the
    manifest calls the tokenizer.

    Raises:
        ValueError: there is no input, nothing in it, a corpus at `output_prefix` already, or
            (strict) a damaged line.
    """
    if not 0 <= heldout_fraction < 1:
        raise ValueError(f"--heldout_fraction {heldout_fraction}: give a number from 0 to below 1")
    options = options or ReadingOptions()
    files = Inputs(inputs, options)
    record = describe_tokenizer(tokenizer, tokenizer_name or str(tokenizer.name_or_path))
    prefixes = [output_prefix] + ([output_prefix + HELDOUT_SUFFIX] if heldout_fraction else [])
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                IndexedCorpusWriter(
                    prefix, record.vocab_size, tokenizer=record, overwrite=overwrite
                )
            )
            for prefix in prefixes
        ]
        encoder = build_encoder(tokenizer, files.trial_sentences())
        encode = _BlockEncoder(files.reader(), encoder, heldout_fraction)
        results = ordered_map(encode, files.work(), options.num_processors)
        splitter = _Splitter(writers)
        bar = stack.enter_context(files.progress("building"))
        for encoded in results:
            splitter.add(encoded)
            files.note(encoded.problems)
            bar.update(encoded.block.length)
        for writer in writers:
            writer.sources = [
                {"name": files.names[p], "bytes": files.sizes[p]} for p in files.paths
            ]
        writers[0].skipped.update(files.skipped())
        manifests = _finish_all(writers)
    if heldout_fraction:
        return BuildResult(prefixes[0], manifests[0], prefixes[1], manifests[1])
    return BuildResult(prefixes[0], manifests[0])


def _finish_all(writers: Sequence[IndexedCorpusWriter]) -> list[Manifest]:
    total = sum(writer.num_sentences for writer in writers)
    for writer in writers:
        if total and not writer.num_sentences:
            raise ValueError(
                f"--heldout_fraction leaves no document for {writer.prefix}; "
                f"choose another fraction or give more inputs"
            )
    return [writer.finish() for writer in writers]


class _Splitter:
    """Gives each document to the writer of its side of the split."""

    def __init__(self, writers: Sequence[IndexedCorpusWriter]) -> None:
        self._writers = writers
        self._open_side = 0

    def add(self, encoded: _Encoded) -> None:
        if not encoded.document_lengths.size:
            return
        if len(self._writers) == 1:
            self._writers[0].add_documents(
                encoded.tokens,
                encoded.sentence_lengths,
                encoded.document_lengths,
                continues=encoded.continues,
            )
            return
        sides = encoded.heldout.astype(np.int64)
        if encoded.continues:
            # The side was decided by the document's beginning.
            sides[0] = self._open_side
        self._open_side = int(sides[-1])
        sentence_sides = np.repeat(sides, encoded.document_lengths)
        token_sides = np.repeat(sentence_sides, encoded.sentence_lengths)
        for side, writer in enumerate(self._writers):
            writer.add_documents(
                encoded.tokens[token_sides == side],
                encoded.sentence_lengths[sentence_sides == side],
                encoded.document_lengths[sides == side],
                continues=encoded.continues and int(sides[0]) == side,
            )
