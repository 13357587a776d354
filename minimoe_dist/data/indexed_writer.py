"""Writes indexed corpora as a stream, byte for byte as megatron-core's builder would.

megatron-core keeps the length of every sentence in Python lists and wraps ids that do not fit
the dtype without a word; here lengths go to disk as they come and such ids are refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any

import numpy as np

from minimoe_dist.data.indexed_layout import (
    IndexLayout,
    Manifest,
    TokenizerRecord,
    dtype_for_vocabulary,
    manifest_path,
)

_CHUNK = 1 << 20
_PARTIAL = ".partial"
_LONGEST_SENTENCE = 2**31 - 1


class IndexedCorpusWriter:
    """Writes `<prefix>.bin`, `<prefix>.idx` and `<prefix>.manifest.json`.

    A context manager: leaving it in peace finishes the corpus, leaving it by an exception
    removes what was written. Files get their final names only when all of them are whole and
    on disk. Memory does not grow with the corpus.

    Args:
        prefix: path without `.bin` and `.idx`; its folder is made.
        vocab_size: ids must be below it; uint16 on disk below 65500, else int32.
        tokenizer: what the manifest says about the tokenizer.
        overwrite: whether a whole corpus that stands at `prefix` may be replaced.

    Attributes:
        skipped: counts of what was left out and why, for the manifest.
        sources: the inputs, for the manifest.
        num_sentences, num_documents, num_tokens: written so far (the open document included).

    Raises:
        ValueError: a corpus stands at `prefix` already, or somebody is writing it.
    """

    def __init__(
        self,
        prefix: str,
        vocab_size: int,
        *,
        tokenizer: TokenizerRecord | None = None,
        overwrite: bool = False,
    ) -> None:
        self.prefix = prefix
        self.vocab_size = vocab_size
        self.tokenizer = tokenizer
        self.skipped: dict[str, int] = {}
        self.sources: list[dict[str, Any]] = []
        self.num_sentences = self.num_documents = self.num_tokens = 0
        self.manifest: Manifest | None = None
        self._dtype = dtype_for_vocabulary(vocab_size)
        self._largest_id = 0
        self._open_start: int | None = None
        self._digest = hashlib.sha256()
        # A manifest still under its temporary name tells that a finish was cut short.
        whole = os.path.exists(prefix + ".idx") and not os.path.exists(
            manifest_path(prefix) + _PARTIAL
        )
        if whole and not overwrite:
            raise ValueError(
                f"{prefix}.idx: a corpus stands there already; choose another prefix, remove it "
                f"or ask to overwrite"
            )
        os.makedirs(os.path.dirname(os.path.abspath(prefix)), exist_ok=True)
        self._bin = _open_locked(prefix + ".bin" + _PARTIAL)
        self._lengths: IO[bytes] = open(prefix + ".lengths" + _PARTIAL, "w+b")  # noqa: SIM115
        self._ends: IO[bytes] = open(prefix + ".documents" + _PARTIAL, "w+b")  # noqa: SIM115
        self._ends.write(np.zeros(1, np.int64).tobytes())

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
            self.finish()

    def add_document(self, sentences: Sequence[Sequence[int] | np.ndarray]) -> None:
        """Adds one document, given as the ids of its sentences.

        Raises:
            ValueError: an id is outside the vocabulary.
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
    ) -> None:
        """Adds many documents at once.

        Args:
            tokens: ids of all sentences, integers [sum of sentence_lengths].
            sentence_lengths: tokens of each sentence, at least one, [sum of document_lengths].
            document_lengths: sentences of each document; a document that ends up with none is
                left out and counted.
            continues: whether the first document is the rest of the one added last.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        assert tokens.size == int(sentence_lengths.sum()), "lengths must cover the tokens"
        assert sentence_lengths.size == int(document_lengths.sum()), "documents, the sentences"
        if document_lengths.size == 0:
            return
        self._open_documents(document_lengths, continues)
        if sentence_lengths.size == 0:
            return
        assert int(sentence_lengths.min()) > 0, "a sentence has at least one token"
        assert int(sentence_lengths.max()) <= _LONGEST_SENTENCE, "lengths are int32 on disk"
        self._check_ids(tokens)
        data = np.ascontiguousarray(tokens, self._dtype).data
        with _naming(self.prefix + ".bin"):
            self._bin.write(data)
            self._lengths.write(sentence_lengths.astype(np.int32).tobytes())
        self._digest.update(data)
        self.num_sentences += int(sentence_lengths.size)
        self.num_tokens += int(tokens.size)

    def _check_ids(self, tokens: np.ndarray) -> None:
        assert tokens.dtype.kind in "iu", f"ids are integers, not {tokens.dtype}"
        smallest, largest = int(tokens.min()), int(tokens.max())
        if smallest < 0 or largest >= self.vocab_size:
            wrong = smallest if smallest < 0 else largest
            raise ValueError(
                f"{self.prefix}.bin: token id {wrong} is outside the vocabulary of "
                f"{self.vocab_size}; use the tokenizer that belongs to it"
            )
        self._largest_id = max(self._largest_id, largest)

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
        previous = np.append(np.int64(self._open_start or 0), starts[:-1])
        ends = starts[starts > previous]
        self._ends.write(ends.tobytes())
        self.num_documents += int(ends.size)
        empty = int(starts.size - ends.size)
        if empty:
            self.skipped["empty_documents"] = self.skipped.get("empty_documents", 0) + empty
        self._open_start = int(starts[-1])

    def finish(self) -> Manifest:
        """Completes the files, puts them on disk and gives them their final names.

        Raises:
            ValueError: nothing was added.
        """
        assert self.manifest is None, "finished already"
        try:
            self._close_documents(np.array([self.num_sentences], np.int64))
            if self.num_sentences == 0:
                raise ValueError(
                    f"{self.prefix}: the corpus would be empty (left out: "
                    f"{dict(sorted(self.skipped.items())) or 'nothing'}); give other inputs"
                )
            return self._commit()
        except BaseException:
            self.abandon()
            raise

    def _commit(self) -> Manifest:
        layout = IndexLayout(self._dtype, self.num_sentences, self.num_documents + 1)
        idx_hash = self._write_index(layout)
        self.manifest = Manifest(
            dtype=self._dtype.name,
            vocab_size=self.vocab_size,
            largest_id=self._largest_id,
            num_documents=self.num_documents,
            num_sentences=self.num_sentences,
            num_tokens=self.num_tokens,
            bin_bytes=self.num_tokens * self._dtype.itemsize,
            bin_sha256=self._digest.hexdigest(),
            idx_bytes=layout.size,
            idx_sha256=idx_hash,
            tokenizer=self.tokenizer,
            skipped=dict(sorted(self.skipped.items())),
            sources=self.sources,
        )
        finals = [self.prefix + ".bin", self.prefix + ".idx", manifest_path(self.prefix)]
        with _naming(finals[2]), open(finals[2] + _PARTIAL, "w", encoding="utf-8") as stream:
            stream.write(self.manifest.to_json())
            _to_disk(stream)
        with _naming(finals[0]):
            _to_disk(self._bin)
        # An older corpus must not be seen with the new data: its index leaves first.
        for path in reversed(finals):
            if os.path.exists(path):
                os.unlink(path)
        for path in finals:
            os.rename(path + _PARTIAL, path)
        _folder_to_disk(self.prefix)
        self._close()
        return self.manifest

    def _write_index(self, layout: IndexLayout) -> str:
        path = self.prefix + ".idx"
        digest = hashlib.sha256()
        with _naming(path), open(path + _PARTIAL, "wb") as stream:
            for piece in self._index_pieces(layout):
                stream.write(piece)
                digest.update(piece)
            _to_disk(stream)
        return digest.hexdigest()

    def _index_pieces(self, layout: IndexLayout) -> Iterator[bytes]:
        yield layout.header()
        yield from _pieces(self._lengths)
        start = 0
        for piece in _pieces(self._lengths):
            sizes = np.frombuffer(piece, np.int32).astype(np.int64) * self._dtype.itemsize
            ends = start + np.cumsum(sizes)
            yield (ends - sizes).tobytes()
            start = int(ends[-1])
        yield from _pieces(self._ends)

    def abandon(self) -> None:
        """Removes everything that was written."""
        for suffix in (".lengths", ".documents", ".bin", ".idx", ".manifest.json"):
            if os.path.exists(self.prefix + suffix + _PARTIAL):
                os.unlink(self.prefix + suffix + _PARTIAL)
        self._close()

    def _close(self) -> None:
        for stream in (self._lengths, self._ends):
            _close_quietly(stream)
            if os.path.exists(stream.name):
                os.unlink(stream.name)
        _close_quietly(self._bin)


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    stream.flush()
    stream.seek(0)
    while piece := stream.read(_CHUNK * 8):
        yield piece


def _close_quietly(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except OSError:
        # Closing flushes once more; on a full disk that fails again and tells nothing new.
        return


def _open_locked(path: str) -> IO[bytes]:
    """Opens `path` empty for writing, unless a living process writes it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # A record lock: children that outlive a killed writer by a moment do not hold it.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise ValueError(f"{path}: another process is writing it; choose another prefix") from None
    except OSError:
        # Some network file systems have no locks; the writer works there without.
        pass
    os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, "wb", buffering=_CHUNK)


def _to_disk(stream: IO[Any]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _folder_to_disk(prefix: str) -> None:
    descriptor = os.open(os.path.dirname(os.path.abspath(prefix)), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Lets an I/O error (a full disk) name the file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise
