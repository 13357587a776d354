"""Writes the results of a build in order, with checkpoints to go on from."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from .. import __version__
from ..data.indexed_format import Manifest, TokenizerRecord, manifest_path, sha256_of_file
from ..data.indexed_writing import (
    IndexedCorpusWriter,
    UnfitPartsError,
    WriterState,
    complete_commit,
    discard_partial,
)
from ..durable import PARTIAL
from ..errors import UserError
from ..runtime import logger
from .encoding import BlockEncoder, EncodedBlock
from .journal import Job, Journal, Progress
from .losses import Losses
from .pipeline import ordered_map
from .portions import InputHashes, Portion, PortionReader, Position
from .reading import Inputs

_log = logger("corpus")
CHECKPOINT_BYTES = 1 << 28
_CHECKPOINT_SECONDS = 60.0
# Whether most of a text is lost shows after some of it.
_EARLY_CHECK_BYTES = 1 << 26
_OPTIONS_WITHOUT_EFFECT = ("num_processors", "show_progress", "input_dir", "force")


def describe_job(
    files: Inputs,
    tokenizer: TokenizerRecord,
    heldout_fraction: float,
    segmenter: str | None,
    part: tuple[int, int] | None,
) -> Job:
    """Collects all that decides the bytes of a build."""
    options = asdict(files.options)
    for name in _OPTIONS_WITHOUT_EFFECT:
        del options[name]
    return Job(
        {
            **options,
            "version": __version__,
            "heldout_fraction": heldout_fraction,
            "whole_words": segmenter,
            "tokenizer": asdict(tokenizer),
        },
        [(files.names[path], files.sizes[path], os.stat(path).st_mtime_ns) for path in files.paths],
        part,
    )


def finished_corpora(
    prefixes: Sequence[str], job: Job, files: Inputs, journal: Journal, overwrite: bool
) -> list[Manifest] | None:
    """Returns the manifests of a job's corpora if all of them are whole; ends commits cut short.

    Args:
        prefixes: of the corpora.
        job: what they are made from.
        files: its inputs.
        journal: ends if the corpora are whole.
        overwrite: whether whole corpora count only if this job was about to replace them.

    Raises:
        UserError: an input has changed since.
    """
    if overwrite and not journal.is_resumed:
        return None
    manifests = [_finished(prefix, job) for prefix in prefixes]
    finished = [manifest for manifest in manifests if manifest is not None]
    if len(finished) < len(prefixes):
        return None
    # Whole corpora need no journal, whatever becomes of this call.
    journal.remove()
    built = os.stat(manifest_path(prefixes[0])).st_mtime_ns
    hashes = {source["name"]: source.get("sha256") for source in finished[0].sources}
    for path in files.paths:
        recorded = hashes.get(files.names[path])
        changed = os.stat(path).st_mtime_ns > built
        if recorded is not None and changed and sha256_of_file(path) != recorded:
            raise UserError(
                f"{path}: was changed since {prefixes[0]} was built from it; "
                f"--overwrite builds the corpus anew"
            )
    _log.info("%s is whole already", prefixes[0])
    return finished


def _finished(prefix: str, job: Job) -> Manifest | None:
    if os.path.exists(prefix + ".bin" + PARTIAL):
        return None
    manifest = complete_commit(prefix, job.fingerprint())
    return manifest if manifest is not None and manifest.part == job.part else None


class Indexing:
    """Runs one build: holds its writers, its place in the inputs, its checkpoints.

    Args:
        prefixes: of the corpus and, where documents are held out, of the held-out one.
        files: the inputs.
        portion: the share of them that is read.
        journal: held by this process.
        tokenizer: for the manifests.
        job: for the manifests.
        segmenter: what marks whole words; None if nothing does.
    """

    def __init__(
        self,
        prefixes: Sequence[str],
        files: Inputs,
        portion: Portion,
        journal: Journal,
        tokenizer: TokenizerRecord,
        job: Job,
        segmenter: str | None,
    ) -> None:
        self._prefixes = list(prefixes)
        self._files, self._journal, self._job = files, journal, job
        self._reader = PortionReader(files, portion)
        self._progress = journal.progress or Progress()
        self._settings: dict[str, Any] = {
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer,
            "segmenter": segmenter,
            "job": job.fingerprint(),
            "part": job.part,
        }
        self._writers: list[IndexedCorpusWriter | None] = []
        self._manifests: list[Manifest | None] = [None] * len(self._prefixes)
        self._is_safe = journal.progress is not None

    @contextmanager
    def opened(self, overwrite: bool) -> Iterator[None]:
        """Holds the partial files; leaving by an error keeps them if there is a checkpoint.

        Raises:
            UserError: a corpus stands at a prefix and may not be replaced.
        """
        try:
            self._open(overwrite or self._journal.is_resumed)
            yield
        except BaseException:
            self._suspend()
            if not self._is_safe:
                self._discard()
            raise
        finally:
            self._suspend()
            self._journal.close()

    def _open(self, overwrite: bool) -> None:
        if self._is_safe:
            try:
                self._manifests = [_finished(prefix, self._job) for prefix in self._prefixes]
                for prefix, manifest, state in zip(
                    self._prefixes, self._manifests, self._progress.writers, strict=True
                ):
                    self._writers.append(
                        None if manifest else self._writer(prefix, overwrite, state)
                    )
                _log.info("going on after %.1f MB", self._progress.num_bytes / 1e6)
                return
            except UnfitPartsError as error:
                _log.warning("%s; the build begins anew", error)
                self._suspend()
        self._progress, self._is_safe, self._writers = Progress(), False, []
        self._manifests = [None] * len(self._prefixes)
        for prefix in self._prefixes:
            self._writers.append(self._writer(prefix, overwrite, None))

    def _writer(
        self, prefix: str, overwrite: bool, state: WriterState | None
    ) -> IndexedCorpusWriter:
        return IndexedCorpusWriter(prefix, overwrite=overwrite, state=state, **self._settings)

    def _suspend(self) -> None:
        for writer in self._writers:
            if writer is not None and writer.manifest is None:
                writer.suspend()

    def _discard(self) -> None:
        self._suspend()
        for writer in self._writers:
            if writer is not None:
                discard_partial(writer.prefix)
        self._journal.remove()

    def run(self, encode: BlockEncoder, checkpoint_bytes: int) -> list[Manifest]:
        """Reads what is left to read, and completes the corpora.

        Args:
            encode: runs in the workers.
            checkpoint_bytes: bytes of input between checkpoints.

        Raises:
            UserError: a corpus would be empty, or (strict) a line is damaged.
        """
        files, progress = self._files, self._progress
        files.counts["empty_files"] = sum(files.sizes[path] == 0 for path in self._reader.paths)
        earlier_counts = dict(progress.counts)
        files.characters.update(progress.characters)
        files.unknown_tokens += progress.unknown_tokens
        hashes = InputHashes(progress.hashes)
        results = ordered_map(
            encode,
            self._reader.work(progress.position, hashes.allow),
            files.options.num_processors,
        )
        done, last_bytes, last_time = progress.num_bytes, progress.num_bytes, time.monotonic()
        try:
            with files.progress("building", self._reader.num_bytes, done) as bar:
                for encoded in results:
                    self._add(encoded)
                    files.note(encoded.problems)
                    files.unknown_tokens += encoded.unknown_tokens
                    progress.position = self._reader.passed()
                    done += encoded.num_bytes
                    bar.update(encoded.num_bytes)
                    is_late = time.monotonic() - last_time > _CHECKPOINT_SECONDS
                    if done - last_bytes >= checkpoint_bytes or is_late:
                        self._save(done, earlier_counts, hashes.ready())
                        if done >= _EARLY_CHECK_BYTES:
                            self._check_losses()
                        last_bytes, last_time = done, time.monotonic()
            self._check_sides()
            digests = hashes.finish(self._reader.paths)
            progress.position = Position(len(files.paths))
            self._save(done, earlier_counts, digests)
            self._check_losses()
        finally:
            results.close()
            hashes.close()
        return self._finish(digests)

    def _add(self, encoded: EncodedBlock) -> None:
        if encoded.rest is not None:
            writer = self._writers[self._progress.open_side]
            assert writer is not None
            rest = encoded.rest
            writer.add_documents(
                rest.tokens,
                rest.sentence_lengths,
                rest.document_lengths,
                continues=writer.has_open_document,
                word_marks=rest.word_marks,
            )
        for writer, side in zip(self._writers, encoded.sides, strict=True):
            assert writer is not None
            writer.add_documents(
                side.tokens, side.sentence_lengths, side.document_lengths,
                word_marks=side.word_marks,
            )  # fmt: skip
        if encoded.last_side is not None:
            self._progress.open_side = encoded.last_side

    def _save(self, done: int, earlier_counts: dict[str, int], digests: dict[str, str]) -> None:
        """Puts all that was done on disk, so that a next build starts here."""
        progress = self._progress
        progress.num_bytes = done
        counts = Counter(earlier_counts)
        counts.update(self._files.counts)
        # Empty files are counted by each start, from the sizes.
        del counts["empty_files"]
        progress.counts = dict(counts)
        progress.characters = {kind: n for kind, n in sorted(self._files.characters.items()) if n}
        progress.unknown_tokens = self._files.unknown_tokens
        progress.hashes = digests
        progress.writers = [
            WriterState() if writer is None else writer.checkpoint() for writer in self._writers
        ]
        self._journal.save(progress)
        self._is_safe = True

    def _check_losses(self) -> None:
        """Refuses a corpus most of which is missing, but leaves what is done for --force."""
        files = self._files
        writers = [writer for writer in self._writers if writer is not None]
        # A corpus that has its name already was found good before.
        if not files.options.force and len(writers) == len(self._writers):
            num_tokens = sum(writer.num_tokens for writer in writers)
            losses = Losses(files.characters, num_tokens, files.unknown_tokens)
            losses.check(self._prefixes[0])

    def _check_sides(self) -> None:
        writers = [writer for writer in self._writers if writer is not None]
        if self._job.part is not None or len(writers) < 2:
            return
        total = sum(writer.num_sentences for writer in writers)
        for writer in writers:
            if total and not writer.num_sentences:
                self._is_safe = False
                raise UserError(
                    f"--heldout_fraction leaves no document for {writer.prefix}; "
                    f"choose another fraction or give more inputs"
                )

    def _finish(self, digests: dict[str, str]) -> list[Manifest]:
        files = self._files
        sources = [
            {"name": files.names[p], "bytes": files.sizes[p], "sha256": digests[p]}
            for p in self._reader.paths
        ]
        counts = {**self._progress.counts, "empty_files": files.counts["empty_files"]}
        for number, writer in enumerate(self._writers):
            if writer is None:
                continue
            writer.sources = sources
            if number == 0:
                writer.characters = self._progress.characters
                writer.unknown_tokens = self._progress.unknown_tokens
                writer.skipped.update({kind: count for kind, count in counts.items() if count})
            try:
                self._manifests[number] = writer.finish()
            except UserError as error:
                self._is_safe = False
                raise UserError(f"{error}{files.first_problem()}") from None
            except ValueError:
                self._is_safe = False
                raise
        self._journal.remove()
        return [manifest for manifest in self._manifests if manifest is not None]
