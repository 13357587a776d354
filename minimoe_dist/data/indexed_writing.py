"""Writes indexed corpora as a stream, byte for byte as megatron-core's builder would.

megatron-core keeps the length of every sentence in Python lists and wraps ids that do not fit
the dtype without a word; here lengths go to disk as they come and such ids are refused.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any

import numpy as np

from ..durable import PARTIAL, flush_stream, give_names, naming, remove, write_text
from ..errors import UserError
from .growing import RunningHash, close_quietly, open_locked, pieces
from .indexed_format import (
    IndexLayout,
    Manifest,
    TokenizerRecord,
    WordMarksWriter,
    dtype_for_vocabulary,
    manifest_path,
    sha256_of_file,
    words_path,
)

_LONGEST_SENTENCE = 2**31 - 1
_SUFFIXES = (
    ".bin",
    ".lengths",
    ".documents",
    ".words",
    ".idx",
    ".manifest.json",
    ".manifest.json" + PARTIAL,
)


class UnfitPartsError(UserError):
    """Partial files do not fit the state that they were to be continued from."""


@dataclass
class WriterState:
    """Says how far a writer came: with its partial files, all that another one needs to go on."""

    num_sentences: int = 0
    num_documents: int = 0
    num_tokens: int = 0
    largest_id: int = 0
    open_start: int | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    bin_sha256: str = ""


class IndexedCorpusWriter:
    """Writes `<prefix>.bin`, `.idx` and `.manifest.json`, and `.words` if it is asked to.

    A context manager: leaving it in peace finishes the corpus, leaving it by an exception
    removes what was written. Files get their final names only when all of them are whole and
    on disk. Memory does not grow with the corpus.

    Args:
        prefix: path without `.bin` and `.idx`; its folder is made.
        vocab_size: ids must be below it; uint16 on disk below 65500, else int32.
        tokenizer: what the manifest says about the tokenizer.
        overwrite: whether a whole corpus that stands at `prefix` may be replaced.
        segmenter: what marks whole words; None if nothing does.
        job: what the manifest says of all inputs and options.
        part: (i, n) if this is a part of a job, which may be empty.
        state: of a writer that was killed after a `checkpoint`; its partial files are continued.

    Attributes:
        skipped: counts of what was left out and why, for the manifest.
        characters, unknown_tokens: for the manifest.
        sources: the inputs, for the manifest.
        num_sentences, num_documents, num_tokens: written so far (the open document included).

    Raises:
        UnfitPartsError: partial files do not fit `state`.
        UserError: a corpus stands at `prefix` already, or somebody is writing it.
    """

    def __init__(
        self,
        prefix: str,
        vocab_size: int,
        *,
        tokenizer: TokenizerRecord | None = None,
        overwrite: bool = False,
        segmenter: str | None = None,
        job: str = "",
        part: tuple[int, int] | None = None,
        state: WriterState | None = None,
    ) -> None:
        self.prefix = prefix
        self.vocab_size = vocab_size
        self.tokenizer = tokenizer
        self.sources: list[dict[str, Any]] = []
        self.manifest: Manifest | None = None
        self._segmenter, self._job, self._part = segmenter, job, part
        self._dtype = dtype_for_vocabulary(vocab_size)
        prepare_prefix(prefix, overwrite)
        start = state or WriterState()
        self.skipped = Counter(start.skipped)
        self.characters: dict[str, int] = {}
        self.unknown_tokens = 0
        self.num_sentences, self.num_documents = start.num_sentences, start.num_documents
        self.num_tokens, self._largest_id = start.num_tokens, start.largest_id
        self._open_start = start.open_start
        self._digest = RunningHash()
        self._open_streams(start, keep=state is not None)

    def _open_streams(self, start: WriterState, keep: bool) -> None:
        prefix, itemsize = self.prefix, self._dtype.itemsize
        self._bin = open_locked(prefix + ".bin" + PARTIAL, keep)
        self._lengths = _open(prefix + ".lengths" + PARTIAL, keep)
        self._ends = _open(prefix + ".documents" + PARTIAL, keep)
        self._words_stream: IO[bytes] | None = None
        if self._segmenter is not None:
            self._words_stream = _open(words_path(prefix) + PARTIAL, keep)
        if keep:
            try:
                _cut_to(self._bin, start.num_tokens * itemsize)
                _cut_to(self._lengths, 4 * start.num_sentences)
                _cut_to(self._ends, 8 * (start.num_documents + 1))
                for piece in pieces(self._bin):
                    self._digest.update(piece)
                if self._digest.hexdigest() != start.bin_sha256:
                    raise UnfitPartsError(f"{self._bin.name}: damaged since it was written")
            except UnfitPartsError:
                self.suspend()
                raise
        else:
            self._ends.write(np.zeros(1, np.int64).tobytes())
        self._marks = (
            None
            if self._words_stream is None
            else WordMarksWriter(self._words_stream, self.num_tokens)
        )

    def __enter__(self) -> IndexedCorpusWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.abandon()
        elif self.manifest is None:
            try:
                self.finish()
            except BaseException:
                self.abandon()
                raise

    def add_document(self, sentences: Sequence[Sequence[int] | np.ndarray]) -> None:
        """Adds one document, given as the ids of its sentences.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        assert len(sentences) > 0, "a document has at least one sentence"
        arrays = [np.asarray(sentence) for sentence in sentences]
        lengths = np.array([array.size for array in arrays], np.int64)
        self.add_documents(np.concatenate(arrays), lengths, np.array([len(arrays)]))

    def add_documents(
        self,
        tokens: np.ndarray,
        sentence_lengths: np.ndarray,
        document_lengths: np.ndarray,
        *,
        continues: bool = False,
        word_marks: np.ndarray | None = None,
    ) -> None:
        """Adds many documents at once.

        Args:
            tokens: ids of all sentences, integers [sum of sentence_lengths]; not to be changed
                after that.
            sentence_lengths: tokens of each sentence, at least one, [sum of document_lengths].
            document_lengths: sentences of each document; a document that ends up with none is
                left out and counted.
            continues: whether the first document is the rest of the one added last.
            word_marks: which tokens go on with a word, bool [tokens]; with a segmenter only.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        assert tokens.size == int(sentence_lengths.sum()), "lengths must cover the tokens"
        assert sentence_lengths.size == int(document_lengths.sum()), "documents, the sentences"
        assert (word_marks is None) == (self._marks is None), "marks belong to a segmenter"
        if document_lengths.size == 0:
            return
        with naming(self.prefix + ".idx"):
            self._open_documents(document_lengths, continues)
        if sentence_lengths.size == 0:
            return
        assert int(sentence_lengths.min()) > 0, "a sentence has at least one token"
        assert int(sentence_lengths.max()) <= _LONGEST_SENTENCE, "lengths are int32 on disk"
        self._largest_id = max(
            self._largest_id, check_ids(tokens, self.vocab_size, self.prefix + ".bin")
        )
        data = np.ascontiguousarray(tokens, self._dtype).data.cast("B")
        with naming(self.prefix + ".bin"):
            self._bin.write(data)
            self._lengths.write(sentence_lengths.astype(np.int32).tobytes())
            if self._marks is not None and word_marks is not None:
                assert word_marks.size == tokens.size
                self._marks.add(word_marks)
        self._digest.update(data)
        self.num_sentences += int(sentence_lengths.size)
        self.num_tokens += int(tokens.size)

    def _open_documents(self, document_lengths: np.ndarray, continues: bool) -> None:
        ends = self.num_sentences + np.cumsum(document_lengths, dtype=np.int64)
        starts = ends[:-1] if continues else np.append(np.int64(self.num_sentences), ends[:-1])
        if self._open_start is None:
            assert not continues and starts.size, "no document is open yet"
            self._open_start, starts = int(starts[0]), starts[1:]
        if starts.size:
            self._close_documents(starts)

    def _close_documents(self, starts: np.ndarray) -> None:
        """Ends the open document at starts[0], and each next one where its successor starts."""
        if self._open_start is None:
            return
        previous = np.append(np.int64(self._open_start), starts[:-1])
        ends = starts[starts > previous]
        self._ends.write(ends.tobytes())
        self.num_documents += int(ends.size)
        if empty := int(starts.size - ends.size):
            self.skipped["empty_documents"] += empty
        self._open_start = int(starts[-1])

    @property
    def has_open_document(self) -> bool:
        """Whether a document was added that the next one may continue."""
        return self._open_start is not None

    def checkpoint(self) -> WriterState:
        """Puts all that was added on disk; a writer that is given the result goes on from here."""
        with naming(self.prefix + ".bin"):
            if self._marks is not None and self._words_stream is not None:
                self._marks.flush()
                flush_stream(self._words_stream)
            for stream in (self._bin, self._lengths, self._ends):
                flush_stream(stream)
        return WriterState(
            num_sentences=self.num_sentences,
            num_documents=self.num_documents,
            num_tokens=self.num_tokens,
            largest_id=self._largest_id,
            open_start=self._open_start,
            skipped=dict(self.skipped),
            bin_sha256=self._digest.hexdigest(),
        )

    def finish(self) -> Manifest:
        """Completes the files, puts them on disk and gives them their final names.

        Raises:
            UserError: nothing was added.
        """
        assert self.manifest is None, "finished already"
        self._close_documents(np.array([self.num_sentences], np.int64))
        if self.num_sentences == 0 and self._part is None:
            raise UserError(
                f"{self.prefix}: the corpus would be empty (left out: "
                f"{dict(sorted(self.skipped.items())) or 'nothing'}); give other inputs"
            )
        return self._commit()

    def _commit(self) -> Manifest:
        layout = IndexLayout(self._dtype, self.num_sentences, self.num_documents + 1)
        idx_hash = write_index(self.prefix, self._index_pieces(layout))
        state = self.checkpoint()
        marks = self._words_stream
        self.manifest = Manifest(
            dtype=self._dtype.name,
            vocab_size=self.vocab_size,
            largest_id=self._largest_id,
            num_documents=self.num_documents,
            num_sentences=self.num_sentences,
            num_tokens=self.num_tokens,
            bin_bytes=self.num_tokens * self._dtype.itemsize,
            bin_sha256=state.bin_sha256,
            idx_bytes=layout.size,
            idx_sha256=idx_hash,
            tokenizer=self.tokenizer,
            skipped=dict(sorted(self.skipped.items())),
            characters=self.characters,
            unknown_tokens=self.unknown_tokens,
            sources=self.sources,
            segmenter=self._segmenter,
            words_sha256=None if marks is None else sha256_of_file(marks.name),
            job=self._job,
            part=self._part,
        )
        commit_corpus(self.prefix, self.manifest)
        self.suspend()
        discard_partial(self.prefix)
        return self.manifest

    def _index_pieces(self, layout: IndexLayout) -> Iterator[bytes]:
        yield layout.header()
        yield from pieces(self._lengths)
        start = 0
        for piece in pieces(self._lengths):
            sizes = np.frombuffer(piece, np.int32).astype(np.int64) * self._dtype.itemsize
            ends = start + np.cumsum(sizes)
            yield (ends - sizes).tobytes()
            start = int(ends[-1])
        yield from pieces(self._ends)

    def abandon(self) -> None:
        """Removes everything that was written."""
        self.suspend()
        discard_partial(self.prefix)

    def suspend(self) -> None:
        """Closes the files and leaves them as they are, to be continued from a checkpoint."""
        for stream in (self._bin, self._lengths, self._ends, self._words_stream):
            if stream is not None:
                close_quietly(stream)
        self._digest.close()


def check_ids(tokens: np.ndarray, vocab_size: int, path: str) -> int:
    """Checks ids, and returns the largest of them (0 if there is none).

    Args:
        tokens: ids, of any integer type, [tokens].
        vocab_size: ids must be below it.
        path: what messages name.

    Raises:
        UserError: an id is outside the vocabulary.
    """
    assert tokens.dtype.kind in "iu", f"ids are integers, not {tokens.dtype}"
    if not tokens.size:
        return 0
    smallest, largest = int(tokens.min()), int(tokens.max())
    if smallest < 0 or largest >= vocab_size:
        wrong = smallest if smallest < 0 else largest
        raise UserError(
            f"{path}: token id {wrong} is outside the vocabulary of {vocab_size}; "
            f"use the tokenizer that belongs to it"
        )
    return largest


def write_index(prefix: str, index: Iterable[bytes]) -> str:
    """Writes a partial `.idx` file to disk, and returns its hexadecimal SHA-256."""
    path = prefix + ".idx"
    digest = hashlib.sha256()
    with naming(path), open(path + PARTIAL, "wb") as stream:
        for piece in index:
            stream.write(piece)
            digest.update(piece)
        flush_stream(stream)
    return digest.hexdigest()


def _open(path: str, keep: bool) -> IO[bytes]:
    return open(path, "r+b" if keep and os.path.exists(path) else "w+b")


def _cut_to(stream: IO[bytes], size: int) -> None:
    if os.path.getsize(stream.name) < size:
        raise UnfitPartsError(f"{stream.name}: shorter than it was")
    stream.truncate(size)
    stream.seek(size)


def prepare_prefix(prefix: str, overwrite: bool) -> None:
    """Makes the folder of a new corpus.

    Raises:
        UserError: a whole corpus stands at `prefix` and may not be replaced.
    """
    # A manifest still under its temporary name tells that a commit was cut short.
    is_cut_short = os.path.exists(manifest_path(prefix) + PARTIAL)
    if os.path.exists(prefix + ".idx") and not is_cut_short and not overwrite:
        raise UserError(
            f"{prefix}.idx: a corpus stands there already; choose another prefix, remove it, "
            f"or give --overwrite"
        )
    os.makedirs(os.path.dirname(os.path.abspath(prefix)), exist_ok=True)


def discard_partial(prefix: str) -> None:
    """Removes what a writer left that did not come to its end."""
    for suffix in _SUFFIXES:
        remove(prefix + suffix + PARTIAL)


def commit_corpus(prefix: str, manifest: Manifest) -> None:
    """Gives partial files that are whole and on disk the names of a corpus."""
    write_text(manifest_path(prefix) + PARTIAL, manifest.to_json())
    _name_corpus(prefix, manifest)


def _name_corpus(prefix: str, manifest: Manifest) -> None:
    marks = [] if manifest.segmenter is None else [words_path(prefix)]
    if not marks:
        remove(words_path(prefix))
    give_names([prefix + ".bin", *marks, prefix + ".idx", manifest_path(prefix)])


def complete_commit(prefix: str, job: str) -> Manifest | None:
    """Ends a commit that was cut short; the manifest of the corpus if it is whole now.

    Args:
        prefix: of the corpus.
        job: a corpus of another job is not looked at.
    """
    partial = manifest_path(prefix) + PARTIAL
    for path in (partial, manifest_path(prefix)):
        if os.path.exists(path):
            manifest = Manifest.read(path)
            if manifest.job != job:
                return None
            if path == partial:
                _name_corpus(prefix, manifest)
            discard_partial(prefix)
            return manifest
    return None
