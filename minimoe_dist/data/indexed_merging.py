"""Joins indexed corpora of one kind, ours or Megatron's, byte for byte as megatron-core would.

Parts of a job that were built on several machines give what one machine would have given. Memory
does not grow with the corpora, and nothing has its final name before it is whole.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np

from ..durable import PARTIAL, flush_stream, naming
from ..errors import UserError
from .growing import RunningHash, open_locked, pieces
from .indexed_format import (
    IndexArrays,
    IndexLayout,
    Manifest,
    TokenizerRecord,
    WordMarks,
    WordMarksWriter,
    check_arrays,
    read_layout,
    read_manifest,
    sha256_of_file,
    words_path,
)
from .indexed_writing import commit_corpus, discard_partial, prepare_prefix, write_index

_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Input:
    prefix: str
    layout: IndexLayout
    arrays: IndexArrays
    manifest: Manifest | None
    num_tokens: int

    @classmethod
    def open(cls, prefix: str) -> _Input:
        layout = read_layout(prefix, may_be_empty=True)
        arrays = IndexArrays.map(prefix + ".idx", layout)
        check_arrays(prefix, layout, arrays)
        num_tokens = os.path.getsize(prefix + ".bin") // layout.dtype.itemsize
        return cls(prefix, layout, arrays, read_manifest(prefix, layout), num_tokens)

    @property
    def tokenizer(self) -> TokenizerRecord | None:
        return self.manifest.tokenizer if self.manifest else None

    @property
    def segmenter(self) -> str | None:
        return self.manifest.segmenter if self.manifest else None


def merge_corpora(
    prefixes: Sequence[str], output_prefix: str, *, overwrite: bool = False
) -> Manifest:
    """Writes the documents of all corpora, one after the other, as one corpus.

    Corpora come in the order given; parts of a job in their own order, and all of them must be
    there. Word marks are kept where all corpora have them.

    Args:
        prefixes: paths without `.bin` and `.idx`.
        output_prefix: of the new corpus.
        overwrite: whether a corpus that stands there may be replaced.

    Returns:
        The manifest of the new corpus.

    Raises:
        UserError: a corpus is damaged, they do not belong together, parts are missing, or a
            corpus stands at `output_prefix`.
    """
    if not prefixes:
        raise UserError(f"nothing to merge into {output_prefix}; give at least one corpus")
    inputs = _in_order([_Input.open(prefix) for prefix in prefixes])
    _check_kind(inputs)
    if output_prefix in prefixes:
        raise UserError(f"{output_prefix}: is one of the inputs; choose another prefix")
    prepare_prefix(output_prefix, overwrite)
    lock = open_locked(output_prefix + ".bin" + PARTIAL)
    try:
        manifest = _write(inputs, output_prefix, lock)
        commit_corpus(output_prefix, manifest)
    except BaseException:
        discard_partial(output_prefix)
        raise
    finally:
        lock.close()
    return manifest


def _in_order(inputs: list[_Input]) -> list[_Input]:
    """Sorts parts by number, and leaves corpora that are no parts as they are."""
    parts = [
        (corpus, corpus.manifest.job, *corpus.manifest.part)
        for corpus in inputs
        if corpus.manifest and corpus.manifest.part
    ]
    if not parts:
        return inputs
    first, job, _, count = parts[0]
    for corpus in inputs:
        if not (corpus.manifest and corpus.manifest.part):
            raise UserError(
                f"{corpus.prefix}: is whole, {first.prefix} is a part; merge the parts first"
            )
    by_number: dict[int, _Input] = {}
    for corpus, part_job, number, part_count in parts:
        if (part_job, part_count) != (job, count):
            raise UserError(
                f"{corpus.prefix}: was not built from the same inputs and options as "
                f"{first.prefix}; build all parts alike"
            )
        if number in by_number:
            raise UserError(f"{corpus.prefix}: is the same part as {by_number[number].prefix}")
        by_number[number] = corpus
    missing = sorted(set(range(count)) - set(by_number))
    if missing:
        raise UserError(
            f"{first.prefix}: part {missing[0]} of {count} is missing ({len(missing)} in all); "
            f"build it with --shard {missing[0]}/{count}"
        )
    return [by_number[number] for number in range(count)]


def _check_kind(inputs: Sequence[_Input]) -> None:
    first = inputs[0]
    for corpus in inputs[1:]:
        if corpus.layout.dtype != first.layout.dtype:
            raise UserError(
                f"{corpus.prefix}: has {corpus.layout.dtype} ids, {first.prefix} has "
                f"{first.layout.dtype}; build them with the same vocabulary"
            )
        if not _same_tokenizer(corpus.tokenizer, first.tokenizer):
            raise UserError(
                f"{corpus.prefix}: was built with {_tokenizer_name(corpus.tokenizer)}, "
                f"{first.prefix} with {_tokenizer_name(first.tokenizer)}; build them with the "
                f"same tokenizer"
            )
        if corpus.segmenter != first.segmenter:
            raise UserError(
                f"{corpus.prefix}: has word marks of {corpus.segmenter}, {first.prefix} of "
                f"{first.segmenter}; build them with the same --whole_words"
            )


def _same_tokenizer(a: TokenizerRecord | None, b: TokenizerRecord | None) -> bool:
    if a is None or b is None:
        return a is b
    # Corpora of earlier versions do not know whether accents were stripped.
    accents = {a.strips_accents, b.strips_accents} - {None}
    return (a.fingerprint, a.lower_case) == (b.fingerprint, b.lower_case) and len(accents) < 2


def _tokenizer_name(record: TokenizerRecord | None) -> str:
    if record is None:
        return "a tokenizer that it does not name"
    return (
        f"{record.name} (vocabulary {record.fingerprint[:8]}, lower case: {record.lower_case}, "
        f"accents stripped: {record.strips_accents})"
    )


def _write(inputs: Sequence[_Input], prefix: str, data: IO[bytes]) -> Manifest:
    with naming(prefix + ".bin"):
        bin_hash, largest = _write_data(inputs, data)
    layout = IndexLayout(
        inputs[0].layout.dtype,
        sum(corpus.layout.num_sentences for corpus in inputs),
        sum(corpus.layout.num_document_ends - 1 for corpus in inputs) + 1,
    )
    if not layout.num_sentences:
        raise UserError(f"{prefix}: all parts are empty; give other inputs")
    idx_hash = write_index(prefix, _index_pieces(layout, inputs))
    segmenter = inputs[0].segmenter
    words_hash = None if segmenter is None else _write_words(inputs, words_path(prefix) + PARTIAL)
    manifests = [corpus.manifest for corpus in inputs if corpus.manifest]
    skipped: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for manifest in manifests:
        skipped.update(manifest.skipped)
        characters.update(manifest.characters)
    is_job = bool(manifests) and manifests[0].part is not None
    num_tokens = sum(corpus.num_tokens for corpus in inputs)
    return Manifest(
        dtype=layout.dtype.name,
        vocab_size=max([largest + 1, *(m.vocab_size for m in manifests)]),
        largest_id=largest,
        num_documents=layout.num_document_ends - 1,
        num_sentences=layout.num_sentences,
        num_tokens=num_tokens,
        bin_bytes=num_tokens * layout.dtype.itemsize,
        bin_sha256=bin_hash,
        idx_bytes=layout.size,
        idx_sha256=idx_hash,
        tokenizer=manifests[0].tokenizer if manifests else None,
        skipped=dict(sorted(skipped.items())),
        characters=dict(sorted(characters.items())),
        unknown_tokens=sum(m.unknown_tokens for m in manifests),
        sources=[source for m in manifests for source in m.sources],
        segmenter=segmenter,
        words_sha256=words_hash,
        job=manifests[0].job if is_job else "",
    )


def _write_data(inputs: Sequence[_Input], out: IO[bytes]) -> tuple[str, int]:
    """Copies all ids, and returns their hash and the largest one."""
    output_hash, largest = RunningHash(), 0
    try:
        for corpus in inputs:
            input_hash = hashlib.sha256()
            with open(corpus.prefix + ".bin", "rb") as stream:
                for piece in pieces(stream):
                    out.write(piece)
                    output_hash.update(piece)
                    input_hash.update(piece)
                    ids = np.frombuffer(piece, corpus.layout.dtype)
                    largest = max(largest, int(ids.max()))
                    if int(ids.min()) < 0:
                        raise UserError(f"{corpus.prefix}.bin: holds negative ids; build it again")
            if corpus.manifest and input_hash.hexdigest() != corpus.manifest.bin_sha256:
                raise UserError(
                    f"{corpus.prefix}.bin: contents differ from the manifest's hash; "
                    f"build or copy the corpus again"
                )
        flush_stream(out)
        return output_hash.hexdigest(), largest
    finally:
        output_hash.close()


def _index_pieces(layout: IndexLayout, inputs: Sequence[_Input]) -> Iterator[bytes]:
    yield layout.header()
    for corpus in inputs:
        yield from (piece.tobytes() for piece in _chunks(corpus.arrays.lengths))
    start = 0
    for corpus in inputs:
        for lengths in _chunks(corpus.arrays.lengths):
            ends = start + np.cumsum(lengths.astype(np.int64) * layout.dtype.itemsize)
            yield np.append(np.int64(start), ends[:-1]).tobytes()
            start = int(ends[-1])
    yield np.zeros(1, np.int64).tobytes()
    sentences = 0
    for corpus in inputs:
        for ends in _chunks(corpus.arrays.document_ends[1:]):
            yield (ends + sentences).tobytes()
        sentences += corpus.layout.num_sentences


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), _CHUNK):
        yield array[start : start + _CHUNK]


def _write_words(inputs: Sequence[_Input], path: str) -> str:
    with naming(path), open(path, "w+b") as stream:
        writer = WordMarksWriter(stream)
        for corpus in inputs:
            for marks in WordMarks(corpus.prefix, corpus.num_tokens).pieces():
                writer.add(marks)
        writer.flush()
        flush_stream(stream)
    return sha256_of_file(path)
