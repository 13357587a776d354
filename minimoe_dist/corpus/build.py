"""Turns raw corpora into text of one sentence a line, and into indexed corpora.

Both read blocks in worker processes and write in the calling one, in the order of the inputs:
the bytes written do not depend on the number of processes, nor on interruptions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.indexed import HELDOUT_SUFFIX, is_part_with_heldout, part_prefix
from ..data.indexed_format import Manifest
from ..data.indexed_merging import merge_corpora
from ..durable import PARTIAL, give_name, remove
from ..errors import UserError
from .encoding import BlockEncoder
from .indexing import (
    CHECKPOINT_BYTES,
    Indexing,
    describe_job,
    finished_corpora,
)
from .journal import Journal
from .losses import Losses
from .pipeline import ordered_map
from .portions import Portion
from .reading import BlockSentences, Inputs, ReadingOptions
from .sources import FORMAT_SUFFIX
from .tokenizing import build_encoder, describe_tokenizer
from .words import build_word_marker, segmenter_name

if TYPE_CHECKING:
    from .tokenizing import CorpusTokenizer


@dataclass(frozen=True)
class FormatResult:
    """Says what `format_files` wrote."""

    paths: list[str]
    num_documents: int
    num_sentences: int
    skipped: dict[str, int]
    losses: Losses


@dataclass(frozen=True)
class BuildResult:
    """Says what `build_indexed` wrote."""

    prefix: str
    manifest: Manifest
    heldout_prefix: str | None = None
    heldout_manifest: Manifest | None = None

    @property
    def losses(self) -> Losses:
        """The losses of text of both corpora together."""
        manifests = [manifest for _, manifest in self.parts()]
        return Losses(
            self.manifest.characters,
            sum(manifest.num_tokens for manifest in manifests),
            self.manifest.unknown_tokens,
            sum(manifest.num_documents for manifest in manifests),
            self.manifest.skipped,
        )

    def report(self) -> list[str]:
        """Says in lines what was written, what was left out, and what of that is unusual."""
        return [
            *(f"{prefix}: {manifest.summary()}" for prefix, manifest in self.parts()),
            f"left out or repaired: {self.manifest.skipped or 'nothing'}",
            *self.losses.report(),
        ]

    def parts(self) -> list[tuple[str, Manifest]]:
        """Returns the prefix and manifest of each corpus written."""
        parts = [(self.prefix, self.manifest)]
        if self.heldout_prefix is not None and self.heldout_manifest is not None:
            parts.append((self.heldout_prefix, self.heldout_manifest))
        return parts


def format_files(
    inputs: Sequence[str], output_dir: str, options: ReadingOptions | None = None
) -> FormatResult:
    """Writes each input as text of one sentence a line, an empty line between documents.

    Outputs are named after their inputs as seen from `options.input_dir`, plus `.format`; they
    get their names when all are whole. Inputs without sentences give no file.

    Raises:
        UserError: there is no input, or nothing in it, or most of it is lost, or (strict) a
            damaged line.
    """
    options = options or ReadingOptions()
    files = Inputs(inputs, options)
    outputs: list[_FormatFile] = []
    results = ordered_map(files.reader(), files.work(), options.num_processors)
    with ExitStack() as stack, files.progress("formatting") as bar:
        for parsed in results:
            name = os.path.join(output_dir, files.names[parsed.block.path] + FORMAT_SUFFIX)
            if not outputs or outputs[-1].path != name:
                if outputs:
                    outputs[-1].finish()
                outputs.append(_FormatFile(name))
                stack.callback(outputs[-1].abandon)
            outputs[-1].add(parsed)
            files.note(parsed.problems)
            bar.update(parsed.block.progress)
        if outputs:
            outputs[-1].finish()
        files.counts["empty_documents"] = sum(output.empty_documents for output in outputs)
        written = [output for output in outputs if output.num_sentences]
        files.counts["files_without_sentences"] = len(outputs) - len(written)
        num_documents = sum(output.num_documents for output in written)
        losses = Losses(files.characters, num_documents=num_documents, counts=files.counts)
        if not written:
            others = f" or the other {len(inputs) - 1} inputs" if len(inputs) > 1 else ""
            left_out = ", ".join(f"{count:,} {kind}" for kind, count in files.skipped().items())
            raise UserError(
                f"{inputs[0]}: no sentence in it{others} "
                f"(left out: {left_out or 'nothing'}{files.first_problem()}); give other inputs"
            )
        if not options.force:
            losses.check(output_dir)
        for output in written:
            give_name(output.path)
    return FormatResult(
        [output.path for output in written],
        num_documents,
        sum(output.num_sentences for output in written),
        files.skipped(),
        losses,
    )


class _FormatFile:
    """Writes one output of `format_files`, under a temporary name until it is finished."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.num_documents = self.num_sentences = self.empty_documents = 0
        self._in_document = 0
        self._documents_seen = 0
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self._stream = open(path + PARTIAL, "w", encoding="utf-8")  # noqa: SIM115

    def add(self, parsed: BlockSentences) -> None:
        for index, sentences in enumerate(parsed.documents):
            if not (parsed.continues and index == 0):
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
        self._stream.close()
        if not self.num_sentences:
            self.abandon()

    def abandon(self) -> None:
        self._stream.close()
        remove(self.path + PARTIAL)


def build_indexed(
    inputs: Sequence[str],
    output_prefix: str,
    tokenizer: CorpusTokenizer,
    options: ReadingOptions | None = None,
    *,
    heldout_fraction: float = 0.0,
    whole_words: bool = False,
    portion: Portion | None = None,
    overwrite: bool = False,
    tokenizer_name: str | None = None,
    checkpoint_bytes: int = CHECKPOINT_BYTES,
) -> BuildResult:
    """Builds an indexed corpus, and a held-out one at `<output_prefix>_heldout` if wanted.

    A build that was killed goes on where it was; one that is whole is not done again.

    Args:
        inputs: files; read in the order of their names.
        output_prefix: of the corpus.
        tokenizer: makes the ids.
        options: how to read.
        heldout_fraction: share of documents kept apart. Whether a document is depends on its
            text alone.
        whole_words: whether words of Chinese text are marked beside the corpus.
        portion: the share of the inputs that is read, into a part that `merge_parts` joins with
            the others; None for everything.
        overwrite: whether another corpus, or a part of one, may be replaced.
        tokenizer_name: what the manifest calls the tokenizer.
        checkpoint_bytes: bytes of input after which the work is made safe.

    Raises:
        UserError: there is no input, nothing in it, another corpus at `output_prefix` already,
            or (strict) a damaged line.
        OSError: a file cannot be read or written, as on a full disk; a next call goes on.
        RuntimeError: a worker process died; a next call goes on.
    """
    if not 0 <= heldout_fraction < 1:
        raise UserError(f"--heldout_fraction {heldout_fraction}: give a number from 0 to below 1")
    options = options or ReadingOptions()
    files = Inputs(inputs, options)
    record = describe_tokenizer(tokenizer, tokenizer_name or str(tokenizer.name_or_path))
    segmenter = segmenter_name() if whole_words else None
    part = None if portion is None else (portion.index, portion.count)
    job = describe_job(files, record, heldout_fraction, segmenter, part)
    prefix = output_prefix if part is None else part_prefix(output_prefix, part)
    prefixes = [prefix] + ([prefix + HELDOUT_SUFFIX] if heldout_fraction else [])
    os.makedirs(os.path.dirname(os.path.abspath(prefix)), exist_ok=True)
    journal = Journal(prefix, job, overwrite)
    manifests = finished_corpora(prefixes, job, files, journal, overwrite)
    if manifests is None:
        indexing = Indexing(prefixes, files, portion or Portion(), journal, record, job, segmenter)
        with indexing.opened(overwrite):
            sample = files.trial_sentences()
            encode = BlockEncoder(
                files.reader(),
                build_encoder(tokenizer, sample),
                build_word_marker(tokenizer, sample) if whole_words else None,
                record.vocab_size,
                heldout_fraction,
                record.special_ids,
            )
            manifests = indexing.run(encode, checkpoint_bytes)
    return _result(prefixes, manifests)


def merge_parts(
    prefixes: Sequence[str], output_prefix: str, *, overwrite: bool = False
) -> BuildResult:
    """Joins corpora of one tokenizer; with parts of a job, their held-out sides too.

    All parts of a job together give what one build would have given.

    Args:
        prefixes: of the corpora, in the order wanted; parts may come in any order.
        output_prefix: of the new corpus.
        overwrite: whether a corpus that stands there may be replaced.

    Raises:
        UserError: a corpus is damaged or missing, or they do not belong together.
    """
    heldout = [prefix + HELDOUT_SUFFIX for prefix in prefixes if is_part_with_heldout(prefix)]
    outputs = [output_prefix] + ([output_prefix + HELDOUT_SUFFIX] if heldout else [])
    groups = [prefixes, heldout][: len(outputs)]
    manifests = [
        merge_corpora(group, output, overwrite=overwrite)
        for group, output in zip(groups, outputs, strict=True)
    ]
    return _result(outputs, manifests)


def _result(prefixes: Sequence[str], manifests: Sequence[Manifest]) -> BuildResult:
    if len(prefixes) == 1:
        return BuildResult(prefixes[0], manifests[0])
    return BuildResult(prefixes[0], manifests[0], prefixes[1], manifests[1])
