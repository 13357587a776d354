"""Defines an indexed corpus's files (index, ids, manifest, word marks) and checks their structure.

`<prefix>.idx`, little endian, as Megatron writes it: magic (9 bytes), version (uint64), dtype
code (uint8), number of sequences n (uint64), number of document ends d (uint64), lengths
int32 [n], byte pointers int64 [n], document ends int64 [d] starting with 0. One sequence is one
sentence here. `<prefix>.bin` holds the ids, nothing else.

`<prefix>.words`, little endian, which Megatron does not know: magic (8 bytes), version (uint32),
4 bytes of zeros, number of tokens (uint64), then a bit a token, the first token's in the lowest
bit of the first byte. A set bit says that the token belongs to the word of the token before it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import numpy as np

from ..errors import UserError
from ..foreign import read_json

_INDEX_MAGIC = b"MMIDIDX\x00\x00"
_INDEX_VERSION = 1
INDEX_HEADER = struct.Struct("<9sQBQQ")
_WORDS_MAGIC = b"MMWORDS\x00"
_WORDS_VERSION = 1
WORDS_HEADER = struct.Struct("<8sIIQ")
DTYPES: dict[int, np.dtype] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.int8),
    3: np.dtype(np.int16),
    4: np.dtype(np.int32),
    5: np.dtype(np.int64),
    8: np.dtype(np.uint16),
}
_MANIFEST_FORMAT = "minimoe-dist corpus 1"
_CHECKED_POINTERS = 1024
_CHUNK = 1 << 20
_REBUILD = "build or copy the corpus again"


def dtype_for_vocabulary(vocab_size: int) -> np.dtype:
    """Returns the dtype that Megatron chooses for ids below `vocab_size`: uint16 or int32."""
    return np.dtype(np.uint16) if vocab_size < 65500 else np.dtype(np.int32)


def manifest_path(prefix: str) -> str:
    """Returns where the manifest of the corpus at `prefix` lies."""
    return prefix + ".manifest.json"


def sha256_of_file(path: str) -> str:
    """Returns the hexadecimal SHA-256 of a file, read in pieces."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class TokenizerRecord:
    """Identifies the tokenizer that made a corpus."""

    name: str
    fingerprint: str
    vocab_size: int
    special_ids: dict[str, int]
    lower_case: bool | None
    strips_accents: bool | None = None


@dataclass(frozen=True)
class Manifest:
    """Records sizes, hashes, counts and origin of one indexed corpus.

    Attributes:
        dtype: of the ids in `.bin`.
        vocab_size: ids are below it.
        largest_id: the largest of them.
        num_documents, num_sentences, num_tokens: counts.
        bin_bytes, bin_sha256, idx_bytes, idx_sha256: of the two files.
        tokenizer: what made the ids; None if that is not known.
        skipped: what was left out or repaired, and how often.
        characters: of the text, those that were kept and those left out, by kind.
        unknown_tokens: how many tokens, held-out ones too, stand for what the vocabulary lacks.
        sources: name, size in bytes and SHA-256 of each input.
        segmenter, words_sha256: what marked whole words, and the hash of `.words`; None without.
        job: stands for all inputs and options that decide the contents; "" if not known.
        part: (i, n) for the i-th of n parts of a job; None for the whole.
    """

    dtype: str
    vocab_size: int
    largest_id: int
    num_documents: int
    num_sentences: int
    num_tokens: int
    bin_bytes: int
    bin_sha256: str
    idx_bytes: int
    idx_sha256: str
    tokenizer: TokenizerRecord | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    characters: dict[str, int] = field(default_factory=dict)
    unknown_tokens: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)
    segmenter: str | None = None
    words_sha256: str | None = None
    job: str = ""
    part: tuple[int, int] | None = None

    def to_json(self) -> str:
        """Returns JSON text; the same corpus always gives the same text."""
        return json.dumps({"format": _MANIFEST_FORMAT, **asdict(self)}, indent=1) + "\n"

    def summary(self) -> str:
        """Describes the counts in one line."""
        return (
            f"{self.num_documents:,} documents, {self.num_sentences:,} sentences, "
            f"{self.num_tokens:,} tokens ({self.dtype})"
        )

    @classmethod
    def read(cls, path: str) -> Manifest:
        """Reads a manifest.

        Raises:
            UserError: the file is no manifest of a version that is known here.
        """
        try:
            values = read_json(path)
            format_name = values.pop("format")
            if format_name != _MANIFEST_FORMAT:
                raise UserError(f"format {format_name!r}, expected {_MANIFEST_FORMAT!r}")
            if values["tokenizer"] is not None:
                values["tokenizer"] = TokenizerRecord(**values["tokenizer"])
            if values.get("part") is not None:
                values["part"] = (int(values["part"][0]), int(values["part"][1]))
            return cls(**values)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: not a corpus manifest ({reason}); {_REBUILD}") from None


@dataclass(frozen=True)
class IndexLayout:
    """Says where the three arrays of an `.idx` file lie, in bytes."""

    dtype: np.dtype
    num_sentences: int
    num_document_ends: int

    lengths_offset = INDEX_HEADER.size

    @property
    def pointers_offset(self) -> int:
        """Offset of the byte pointers, int64 [num_sentences]."""
        return self.lengths_offset + 4 * self.num_sentences

    @property
    def documents_offset(self) -> int:
        """Offset of the document ends, int64 [num_document_ends]."""
        return self.pointers_offset + 8 * self.num_sentences

    @property
    def size(self) -> int:
        """Size of the whole `.idx` file."""
        return self.documents_offset + 8 * self.num_document_ends

    def header(self) -> bytes:
        """Returns the first bytes of the file."""
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        return INDEX_HEADER.pack(
            _INDEX_MAGIC, _INDEX_VERSION, code, self.num_sentences, self.num_document_ends
        )


@dataclass(frozen=True)
class IndexArrays:
    """Holds read-only views of an `.idx` file's arrays; they keep the memory map alive.

    The views are not aligned (the header has 34 bytes): `np.searchsorted` would copy them
    whole at each call, `bisect` does not.
    """

    lengths: np.ndarray
    pointers: np.ndarray
    document_ends: np.ndarray

    @classmethod
    def map(cls, path: str, layout: IndexLayout) -> IndexArrays:
        """Maps the arrays of `path`, whose size has been checked against `layout`."""
        with open(path, "rb") as stream:
            buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        count, ends = layout.num_sentences, layout.num_document_ends
        return cls(
            np.frombuffer(buffer, np.int32, count, layout.lengths_offset),
            np.frombuffer(buffer, np.int64, count, layout.pointers_offset),
            np.frombuffer(buffer, np.int64, ends, layout.documents_offset),
        )


def map_ids(path: str, dtype: np.dtype) -> np.ndarray:
    """Maps the ids of a `.bin` file, dtype [tokens]; the view is read-only and keeps the map."""
    if os.path.getsize(path) == 0:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    with open(path, "rb") as stream:
        buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(buffer, dtype, len(buffer) // dtype.itemsize)


def read_layout(prefix: str, may_be_empty: bool = False) -> IndexLayout:
    """Reads the header of `<prefix>.idx` and holds it against the size of the file.

    A part of a job may be empty, a corpus may not.

    Raises:
        UserError: a file is missing, or the header is wrong, or the size does not fit it.
    """
    path = prefix + ".idx"
    for needed in (path, prefix + ".bin"):
        if not os.path.isfile(needed):
            raise UserError(f"{needed}: no such file; {prefix!r} is not an indexed corpus")
    size = os.path.getsize(path)
    if size < INDEX_HEADER.size:
        raise UserError(f"{path}: truncated index of {size} bytes; {_REBUILD}")
    with open(path, "rb") as stream:
        magic, version, code, count, ends = INDEX_HEADER.unpack(stream.read(INDEX_HEADER.size))
    if magic != _INDEX_MAGIC:
        raise UserError(f"{path}: wrong magic {magic!r}, not a Megatron index; {_REBUILD}")
    if version != _INDEX_VERSION:
        raise UserError(
            f"{path}: index version {version}, only {_INDEX_VERSION} is known; {_REBUILD}"
        )
    if code not in DTYPES:
        raise UserError(f"{path}: dtype code {code} is no integer type; {_REBUILD}")
    layout = IndexLayout(DTYPES[code], count, ends)
    if size != layout.size:
        fault = "truncated" if size < layout.size else "over-long"
        raise UserError(
            f"{path}: {fault} index: {size} bytes, its header announces {layout.size}; {_REBUILD}"
        )
    if ends == 0 or ((count == 0 or ends == 1) and not may_be_empty):
        raise UserError(f"{path}: the corpus is empty; {_REBUILD} from other inputs")
    return layout


def check_arrays(prefix: str, layout: IndexLayout, arrays: IndexArrays) -> None:
    """Holds pointers, `.bin` size and document ends against each other.

    Reads all document ends in pieces but only a sample of the pointers, so that opening takes
    no time that grows with the number of sentences.

    Raises:
        UserError: one of them is wrong.
    """
    itemsize, pointers, lengths = layout.dtype.itemsize, arrays.pointers, arrays.lengths
    count = layout.num_sentences
    expected = int(pointers[-1]) + int(lengths[-1]) * itemsize if count else 0
    size = os.path.getsize(prefix + ".bin")
    if size != expected:
        fault = "truncated" if size < expected else "over-long"
        raise UserError(
            f"{prefix}.bin: {fault} data: {size} bytes, the index announces {expected}; {_REBUILD}"
        )
    if count == 0:
        return
    sample = np.unique(np.linspace(0, count - 1, min(count, _CHECKED_POINTERS), dtype=np.int64))
    checked = sample[:-1] if sample[-1] == count - 1 else sample
    steps = pointers[checked + 1] - pointers[checked]
    if int(pointers[0]) != 0 or np.any(steps != lengths[checked].astype(np.int64) * itemsize):
        raise UserError(f"{prefix}.idx: pointers and lengths disagree; {_REBUILD}")
    if np.any(lengths[sample] < 0):
        raise UserError(f"{prefix}.idx: a sentence has a negative length; {_REBUILD}")
    _check_document_ends(prefix, count, arrays.document_ends)


def _check_document_ends(prefix: str, num_sentences: int, ends: np.ndarray) -> None:
    if int(ends[0]) != 0 or int(ends[-1]) != num_sentences:
        raise UserError(
            f"{prefix}.idx: documents cover sentences {int(ends[0])} to {int(ends[-1])}, "
            f"there are {num_sentences}; {_REBUILD}"
        )
    for start in range(0, len(ends) - 1, _CHUNK):
        piece = ends[start : start + _CHUNK + 1]
        if np.any(piece[1:] < piece[:-1]):
            raise UserError(f"{prefix}.idx: document ends are not sorted; {_REBUILD}")


def read_manifest(prefix: str, layout: IndexLayout) -> Manifest | None:
    """Reads a corpus's manifest and holds it against its files' sizes; None where there is none.

    Raises:
        UserError: the manifest is broken or belongs to other files.
    """
    path = manifest_path(prefix)
    if not os.path.lexists(path):
        return None
    manifest = Manifest.read(path)
    actual = {
        "dtype": layout.dtype.name,
        "num_sentences": layout.num_sentences,
        "num_documents": layout.num_document_ends - 1,
        "bin_bytes": os.path.getsize(prefix + ".bin"),
        "idx_bytes": os.path.getsize(prefix + ".idx"),
    }
    for name, value in actual.items():
        if getattr(manifest, name) != value:
            raise UserError(
                f"{path}: says {name} = {getattr(manifest, name)}, the files have {value}; "
                f"{_REBUILD}"
            )
    return manifest


def check_unchanged(prefix: str, manifest: Manifest) -> None:
    """Refuses a `.bin` or `.idx` that somebody changed behind its manifest.

    Who builds or copies a corpus writes the manifest last. Only where a file is newer is it read
    whole; a manifest that holds is then made newer again, so that it is read but once.

    Raises:
        UserError: the contents differ from the manifest's hash.
    """
    path = manifest_path(prefix)
    written = os.stat(path).st_mtime_ns
    newer = {
        suffix: sha256
        for suffix, sha256 in ((".bin", manifest.bin_sha256), (".idx", manifest.idx_sha256))
        if os.stat(prefix + suffix).st_mtime_ns > written
    }
    for suffix, expected in newer.items():
        if sha256_of_file(prefix + suffix) != expected:
            raise UserError(
                f"{prefix}{suffix}: was changed since its manifest was written; build or copy the "
                "corpus again"
            )
    if newer:
        with suppress(OSError):  # somebody else's, or on a disk that is read only
            os.utime(path)


def words_path(prefix: str) -> str:
    """Returns where the word marks of the corpus at `prefix` lie."""
    return prefix + ".words"


def words_bytes(num_tokens: int) -> int:
    """Returns the size of the word marks' file for a number of tokens."""
    return WORDS_HEADER.size + -(-num_tokens // 8)


class WordMarks:
    """Reads the word marks of one corpus from disk when asked.

    Attributes:
        bits: uint8 [num_tokens / 8, rounded up], all of them, a read-only view.

    Args:
        prefix: of the corpus.
        num_tokens: of the corpus.

    Raises:
        UserError: the file does not fit the corpus.
    """

    def __init__(self, prefix: str, num_tokens: int) -> None:
        self.path = words_path(prefix)
        size = os.path.getsize(self.path)
        with open(self.path, "rb") as stream:
            header = stream.read(WORDS_HEADER.size)
            if len(header) < WORDS_HEADER.size:
                raise UserError(f"{self.path}: truncated file of {size} bytes; {_REBUILD}")
            magic, version, _, count = WORDS_HEADER.unpack(header)
            if magic != _WORDS_MAGIC or version != _WORDS_VERSION:
                raise UserError(f"{self.path}: wrong magic or version, no word marks; {_REBUILD}")
            if count != num_tokens or size != words_bytes(num_tokens):
                raise UserError(
                    f"{self.path}: marks {count} tokens in {size} bytes, the corpus has "
                    f"{num_tokens}, which take {words_bytes(num_tokens)}; {_REBUILD}"
                )
            self._buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.bits = np.frombuffer(self._buffer, np.uint8, offset=WORDS_HEADER.size)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Copies the marks of tokens [start, stop): whether each goes on with a word, bool."""
        bits = np.unpackbits(self.bits[start // 8 : -(-stop // 8)], bitorder="little")
        return bits[start % 8 : start % 8 + stop - start].astype(np.bool_)

    def pieces(self) -> Iterator[np.ndarray]:
        """Yields all marks in a row, as bool arrays [tokens] of bounded size."""
        count = WORDS_HEADER.unpack_from(self._buffer)[3]
        step = 8 * _CHUNK
        for start in range(0, count, step):
            yield self.read(start, min(start + step, count))


class WordMarksWriter:
    """Appends word marks to a stream that is empty, or holds those of `num_tokens` tokens already.

    Args:
        stream: open for reading and writing in binary.
        num_tokens: marked so far.
    """

    def __init__(self, stream: IO[bytes], num_tokens: int = 0) -> None:
        self._stream = stream
        self._count = num_tokens
        # The last byte is written again when its bits are all known. Until then it stays: this
        # writer may be killed before it gets there.
        end = WORDS_HEADER.size + num_tokens // 8
        last = os.pread(stream.fileno(), 1, end) if num_tokens % 8 else b""
        self._tail_bits = np.unpackbits(np.frombuffer(last, np.uint8), bitorder="little")
        self._tail_bits = self._tail_bits[: num_tokens % 8]
        stream.truncate(words_bytes(num_tokens))
        stream.seek(end)
        if not num_tokens:
            self._write_header()
            stream.seek(WORDS_HEADER.size)

    def add(self, marks: np.ndarray) -> None:
        """Appends marks, bool [tokens]."""
        bits = np.concatenate([self._tail_bits, marks.astype(np.uint8)])
        complete = bits.size // 8 * 8
        self._stream.write(np.packbits(bits[:complete], bitorder="little").tobytes())
        self._tail_bits = bits[complete:]
        self._count += marks.size

    def flush(self) -> None:
        """Completes the file as far as it goes; more may be added after that."""
        self._stream.write(np.packbits(self._tail_bits, bitorder="little").tobytes())
        self._write_header()
        self._stream.seek(WORDS_HEADER.size + self._count // 8)

    def _write_header(self) -> None:
        self._stream.seek(0)
        self._stream.write(WORDS_HEADER.pack(_WORDS_MAGIC, _WORDS_VERSION, 0, self._count))
