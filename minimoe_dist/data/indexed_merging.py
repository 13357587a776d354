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
from .indexed_writing import commit_corpus, discard_partial, prepare_prefix

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
    """Parts sorted by number; corpora that are no parts as they are."""
    parts = [item for item in inputs if item.manifest and item.manifest.part]
    if not parts:
        return inputs
    strangers = [item for item in inputs if item not in parts]
    if strangers:
        raise UserError(
            f"{strangers[0].prefix}: is whole, {parts[0].prefix} is a part; merge the parts first"
        )
    numbers: dict[int, _Input] = {}
    first = parts[0]
    assert first.manifest is not None and first.manifest.part is not None
    count = first.manifest.part[1]
    for item in parts:
        assert item.manifest is not None and item.manifest.part is not None
        if item.manifest.job != first.manifest.job or item.manifest.part[1] != count:
            raise UserError(
                f"{item.prefix}: was not built from the same inputs and options as "
                f"{first.prefix}; build all parts alike"
            )
        number = item.manifest.part[0]
        if number in numbers:
            raise UserError(f"{item.prefix}: is the same part as {numbers[number].prefix}")
        numbers[number] = item
    missing = sorted(set(range(count)) - set(numbers))
    if missing:
        raise UserError(
            f"{first.prefix}: part {missing[0]} of {count} is missing ({len(missing)} in all); "
            f"build it with --shard {missing[0]}/{count}"
        )
    return [numbers[number] for number in range(count)]


def _check_kind(inputs: Sequence[_Input]) -> None:
    first = inputs[0]
    for item in inputs[1:]:
        if item.layout.dtype != first.layout.dtype:
            raise UserError(
                f"{item.prefix}: has {item.layout.dtype} ids, {first.prefix} has "
                f"{first.layout.dtype}; build them with the same vocabulary"
            )
        if not _same_tokenizer(item, first):
            raise UserError(
                f"{item.prefix}: was built with {_tokenizer_name(item)}, {first.prefix} with "
                f"{_tokenizer_name(first)}; build them with the same tokenizer"
            )
        if _segmenter(item) != _segmenter(first):
            raise UserError(
                f"{item.prefix}: has word marks of {_segmenter(item)}, {first.prefix} of "
                f"{_segmenter(first)}; build them with the same --whole_words"
            )


def _tokenizer(item: _Input) -> TokenizerRecord | None:
    return item.manifest.tokenizer if item.manifest else None


def _same_tokenizer(one: _Input, other: _Input) -> bool:
    first, second = _tokenizer(one), _tokenizer(other)
    if first is None or second is None:
        return first is second
    # Corpora of earlier versions do not know whether accents were stripped.
    accents = {first.strips_accents, second.strips_accents} - {None}
    same = (first.fingerprint, first.lower_case) == (second.fingerprint, second.lower_case)
    return same and len(accents) < 2


def _tokenizer_name(item: _Input) -> str:
    record = _tokenizer(item)
    if record is None:
        return "a tokenizer that it does not name"
    return (
        f"{record.name} (vocabulary {record.fingerprint[:8]}, lower case: {record.lower_case}, "
        f"accents stripped: {record.strips_accents})"
    )


def _segmenter(item: _Input) -> str | None:
    return item.manifest.segmenter if item.manifest else None


def _write(inputs: Sequence[_Input], prefix: str, data: IO[bytes]) -> Manifest:
    with naming(prefix + ".bin"):
        bin_hash, largest = _write_data(inputs, data)
    layout = IndexLayout(
        inputs[0].layout.dtype,
        sum(item.layout.num_sentences for item in inputs),
        sum(item.layout.num_document_ends - 1 for item in inputs) + 1,
    )
    if not layout.num_sentences:
        raise UserError(f"{prefix}: all parts are empty; give other inputs")
    with naming(prefix + ".idx"), open(prefix + ".idx" + PARTIAL, "wb") as stream:
        digest = hashlib.sha256()
        for piece in _index_pieces(layout, inputs):
            stream.write(piece)
            digest.update(piece)
        flush_stream(stream)
    segmenter = _segmenter(inputs[0])
    words_hash = None if segmenter is None else _write_words(inputs, words_path(prefix) + PARTIAL)
    skipped: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for item in inputs:
        skipped.update(item.manifest.skipped if item.manifest else {})
        characters.update(item.manifest.characters if item.manifest else {})
    manifests = [item.manifest for item in inputs if item.manifest]
    is_job = bool(manifests) and manifests[0].part is not None
    num_tokens = sum(item.num_tokens for item in inputs)
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
        idx_sha256=digest.hexdigest(),
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
    """Copies all ids; returns their hash and the largest one."""
    output_hash, largest = RunningHash(), 0
    try:
        for item in inputs:
            input_hash = hashlib.sha256()
            with open(item.prefix + ".bin", "rb") as stream:
                for piece in pieces(stream):
                    out.write(piece)
                    output_hash.update(piece)
                    input_hash.update(piece)
                    ids = np.frombuffer(piece, item.layout.dtype)
                    largest = max(largest, int(ids.max()))
                    if int(ids.min()) < 0:
                        raise UserError(f"{item.prefix}.bin: holds negative ids; build it again")
            if item.manifest and input_hash.hexdigest() != item.manifest.bin_sha256:
                raise UserError(
                    f"{item.prefix}.bin: contents differ from the manifest's hash; "
                    f"build or copy the corpus again"
                )
        flush_stream(out)
        return output_hash.hexdigest(), largest
    finally:
        output_hash.close()


def _index_pieces(layout: IndexLayout, inputs: Sequence[_Input]) -> Iterator[bytes]:
    yield layout.header()
    for item in inputs:
        yield from (piece.tobytes() for piece in _chunks(item.arrays.lengths))
    start = 0
    for item in inputs:
        for lengths in _chunks(item.arrays.lengths):
            ends = start + np.cumsum(lengths.astype(np.int64) * layout.dtype.itemsize)
            yield np.append(np.int64(start), ends[:-1]).tobytes()
            start = int(ends[-1])
    yield np.zeros(1, np.int64).tobytes()
    sentences = 0
    for item in inputs:
        for ends in _chunks(item.arrays.document_ends[1:]):
            yield (ends + sentences).tobytes()
        sentences += item.layout.num_sentences


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), _CHUNK):
        yield array[start : start + _CHUNK]


def _write_words(inputs: Sequence[_Input], path: str) -> str:
    with naming(path), open(path, "w+b") as stream:
        writer = WordMarksWriter(stream)
        for item in inputs:
            for marks in WordMarks(item.prefix, item.num_tokens).pieces():
                writer.add(marks)
        writer.flush()
        flush_stream(stream)
    return sha256_of_file(path)
