"""Reads TFRecords of segment pairs, as the published builder writes them: ids instead of text.

A file is a row of records: length (8 bytes, little-endian), its checksum, an Example message,
its checksum. An Example has two lists of integers: `indices`, `[CLS] A [SEP] B [SEP]`, and
`segments`, 0 up to the first `[SEP]` and 1 after it. Beside a file `x` there may be `x.index`,
with "offset length" on a line for each record.

A pair becomes a document of two sentences, A and B: their ids are kept, the special ones left
out. What the files do not tell is whether B followed A in the text; drawing pairs from such
documents gives A and B together, or A with another pair's sentence, half of the time each.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from typing import ClassVar

import google_crc32c
import numpy as np

from ...errors import UserError
from ...foreign import UnreadableError, open_file
from ..blocks import BLOCK_BYTES, Block, BlockCutter, Document, Problems
from ..streams import InputStream

INDEX_SUFFIX = ".index"
_HEAD, _FOOT = 12, 4
_MOST_RECORD_BYTES = 1 << 26  # a pair of a thousand ids takes 4 kB
_INDEX_BYTES = 1 << 20
_LENGTH_AND_CHECKSUM = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True)
class _Record:
    """Holds the raw lists of one Example, and the record's number in its block."""

    number: int
    indices: bytes
    segments: bytes


@dataclass
class Pairs:
    """Holds documents of one or two sentences.

    Attributes:
        tokens: ids without special tokens, int64 [tokens].
        sentence_lengths: int64 [sentences], at least 1 each.
        document_lengths: sentences of each document, int64 [documents].
    """

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    document_lengths: np.ndarray

    @classmethod
    def empty(cls) -> Pairs:
        """Makes an instance without documents."""
        return cls(*np.zeros((3, 0), np.int64))

    def documents(self) -> Iterator[np.ndarray]:
        """Yields the ids of each document, int64 [tokens]."""
        if not self.document_lengths.size:
            return
        owners = np.repeat(np.arange(self.document_lengths.size), self.document_lengths)
        sizes = np.bincount(owners, self.sentence_lengths, self.document_lengths.size)
        yield from np.split(self.tokens, np.cumsum(sizes.astype(np.int64))[:-1])


def is_tfrecord(beginning: bytes) -> bool:
    """Tells whether a file's first bytes are a record's length and the checksum of that."""
    return len(beginning) >= _HEAD and _walk(beginning[:_HEAD])[2] is None


@dataclass(frozen=True)
class TFRecordSource:
    """Reads the published builder's files; `first_line` of its blocks counts records."""

    block_bytes: int = BLOCK_BYTES
    lines_are_sentences: ClassVar[bool] = True

    def blocks(self, stream: InputStream) -> Iterator[Block]:
        """Cuts after records. A wrong length is noted, and what follows lost without an index."""
        with BlockCutter(stream, count=lambda data: len(_walk(data)[0])) as cutter:
            yield from self._cut_file(cutter, _read_index(stream.path))
            yield from cutter.damage()

    def _cut_file(self, cutter: BlockCutter, index: np.ndarray | None) -> Iterator[Block]:
        rest, offset, size = b"", 0, self.block_bytes
        while True:
            rest += cutter.read(max(0, size - len(rest)))
            starts, end, fault = _walk(rest)
            if index is not None:
                expected, index = index[: len(starts)], index[len(starts) :]
                if not np.array_equal(expected, np.array(starts, np.int64) + offset):
                    yield cutter.problem("tfrecord_indexes_that_differ", _DIFFERS)
                    index = None
            if end:
                yield cutter.block(rest[:end])
                rest, offset, size = rest[end:], offset + end, self.block_bytes
            elif fault is None and len(rest) == size and not _is_too_long(rest, cutter):
                size *= 2
            elif not rest:
                break
            else:
                fault = fault or _too_long(rest) or "the file ends inside a record"
                yield cutter.problem("bad_tfrecords", fault)
                index = None if index is None else index[index > offset]
                if index is None or not index.size:
                    return
                offset, rest = int(index[0]), _skip(cutter, rest, int(index[0]) - offset)
        if index is not None and index.size:
            yield cutter.problem("tfrecord_indexes_that_differ", _DIFFERS)

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """Refuses: there is no text.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{block.path}: TFRecords hold ids, not text; give them to tfrecord_to_indexed.py"
        )

    def pairs(self, block: Block, special_ids: Mapping[str, int], problems: Problems) -> Pairs:
        """Returns the pairs of a block; records that cannot be read are noted and left out.

        Args:
            block: one of `blocks`.
            special_ids: of cls and sep.
            problems: takes what is wrong.

        Raises:
            UserError: the special ids fit none of the pairs, or (strict) a record is damaged.
        """
        if not {"cls", "sep"} <= special_ids.keys():
            raise UserError(
                f"{block.path}: its pairs have [CLS] and [SEP], and the tokenizer has not both; "
                f"give the tokenizer it was written with"
            )
        data = block.read()
        records: list[_Record] = []
        for number, start in enumerate(_walk(data)[0]):
            length = _LENGTH_AND_CHECKSUM.unpack_from(data, start)[0]
            message = data[start + _HEAD : start + _HEAD + length]
            fault = None
            if _masked_checksum(message) != _CHECKSUM.unpack_from(data, start + _HEAD + length)[0]:
                fault = "the checksum of the data is wrong"
            else:
                try:
                    lists = _integer_lists(message)
                    records.append(_Record(number, lists["indices"], lists["segments"]))
                except (KeyError, IndexError, ValueError):
                    fault = "no Example with lists `indices` and `segments`"
            if fault is not None:
                fault = f"byte {block.offset + start}: {fault}"
                problems.note("bad_tfrecords", block.path, block.first_line + number, fault)
        pairs = _split_pairs(records, block, special_ids, problems)
        if records and not pairs.document_lengths.size:
            raise UserError(
                f"{block.path}: no pair is [CLS] A [SEP] B [SEP] with {special_ids['cls']} for "
                f"[CLS] and {special_ids['sep']} for [SEP]; give the tokenizer it was written with"
            )
        return pairs


_DIFFERS = f"the records are not where {INDEX_SUFFIX} has them; it may be another file's"


def _read_index(path: str) -> np.ndarray | None:
    """Returns the offsets of the records, int64 [records]; None without an index.

    Raises:
        UserError: it is no index.
    """
    if not os.path.exists(path + INDEX_SUFFIX):
        return None
    parts, rest = [np.zeros(0, np.int64)], b""
    try:
        with open_file(path + INDEX_SUFFIX) as stream:
            while piece := stream.read(_INDEX_BYTES):
                lines, _, rest = (rest + piece).rpartition(b"\n")
                if len(rest) > _INDEX_BYTES:
                    raise UnreadableError("a line of a megabyte")
                parts.append(_offsets(lines))
        parts.append(_offsets(rest))
    except (ValueError, OverflowError):
        raise UserError(
            f"{path + INDEX_SUFFIX}: does not have 'offset length' on each line; remove it, "
            f"as it is not needed"
        ) from None
    return np.concatenate(parts)


def _offsets(lines: bytes) -> np.ndarray:
    return np.array(lines.split(), np.int64).reshape(-1, 2)[:, 0].copy()


def _walk(data: bytes) -> tuple[list[int], int, str | None]:
    """Finds where whole records begin, where the last one ends, and what is wrong after that."""
    starts: list[int] = []
    position = 0
    while position + _HEAD <= len(data):
        length, checksum = _LENGTH_AND_CHECKSUM.unpack_from(data, position)
        if _masked_checksum(data[position : position + 8]) != checksum:
            return starts, position, "the checksum of the length is wrong"
        end = position + _HEAD + length + _FOOT
        if end > len(data):
            break
        starts.append(position)
        position = end
    return starts, position, None


def _is_too_long(rest: bytes, cutter: BlockCutter) -> bool:
    """Tells whether the record that begins cannot be, by the length that it says.

    A right checksum says that the length was meant, not that it is true.
    """
    left = cutter.unread_bytes()
    return _too_long(rest) is not None or (
        left is not None and _size_of_record(rest) > len(rest) + left
    )


def _size_of_record(rest: bytes) -> int:
    length, _ = _LENGTH_AND_CHECKSUM.unpack_from(rest)
    return int(_HEAD + length + _FOOT)


def _too_long(rest: bytes) -> str | None:
    if len(rest) < _HEAD or _size_of_record(rest) <= _MOST_RECORD_BYTES:
        return None
    return f"a record of {_size_of_record(rest):,} bytes, more than {_MOST_RECORD_BYTES:,}"


def _skip(cutter: BlockCutter, rest: bytes, size: int) -> bytes:
    """Leaves out bytes, some of which have been read; returns what was read after them."""
    while size > len(rest):
        cutter.skip(rest)
        size -= len(rest)
        rest = cutter.read(BLOCK_BYTES)
        if not rest:
            return rest
    cutter.skip(rest[:size])
    return rest[size:]


def _masked_checksum(data: bytes) -> int:
    checksum = google_crc32c.value(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the number and raw bytes of a message's fields: strings of bytes and integers."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        if key & 7 == 2:
            size, position = _varint(data, position)
            end = position + size
        elif key & 7 == 0:
            _, end = _varint(data, position)
        else:
            raise UserError("a field of another kind")
        if end > len(data):
            raise UserError("a field ends outside of its message")
        yield key >> 3, data[position:end]
        position = end


def _integer_lists(example: bytes) -> dict[str, bytes]:
    """Returns an Example message's lists of integers by name, as the raw bytes of their varints."""
    lists: dict[str, bytes] = {}
    for _, features in _fields(example):
        for _, entry in _fields(features):
            pair = dict(_fields(entry))
            for kind, numbers in _fields(pair[2]):
                if kind == 3:
                    lists[pair[1].decode()] = b"".join(part for _, part in _fields(numbers))
    if any(numbers[-1:] >= b"\x80" for numbers in lists.values()):
        raise UserError("a number without its end")
    return lists


def _numbers(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Decodes varints in a row: their values, int64 [numbers], and ends, int64 [numbers]."""
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 0x80) + 1
    if not ends.size:
        return np.zeros(0, np.int64), ends
    starts = np.concatenate([[0], ends[:-1]])
    sizes = ends - starts
    shifts = 7 * (np.arange(raw.size) - np.repeat(starts, sizes))
    if sizes.max() > 9:
        raise UserError("a number of more than 63 bits")
    parts = (raw & 0x7F).astype(np.int64) << shifts
    return np.add.reduceat(parts, starts), ends


def _ragged(lists: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes lists of varints: all values, int64 [numbers], and each list's length, [lists]."""
    numbers, ends = _numbers(b"".join(lists))
    byte_ends = np.cumsum([len(values) for values in lists])
    return numbers, np.diff(np.searchsorted(ends, byte_ends, "right"), prepend=0)


def _split_pairs(
    records: list[_Record], block: Block, special_ids: Mapping[str, int], problems: Problems
) -> Pairs:
    """Takes the special tokens out of pairs."""
    if not records:
        return Pairs.empty()
    ids, lengths = _ragged([record.indices for record in records])
    segments, segment_lengths = _ragged([record.segments for record in records])
    is_sound = np.zeros(len(records), np.bool_)
    first_lengths = np.zeros(len(records), np.int64)
    if np.array_equal(lengths, segment_lengths) and lengths.all():
        starts = np.cumsum(lengths) - lengths
        first_lengths = np.add.reduceat((segments == 0).astype(np.int64), starts)
        positions = np.arange(ids.size) - np.repeat(starts, lengths)
        in_first = positions < np.repeat(first_lengths, lengths)
        separators = starts + np.maximum(first_lengths, 1) - 1
        is_sound = (
            np.logical_and.reduceat(segments == ~in_first, starts)
            & (first_lengths >= 2)
            & (ids[starts] == special_ids["cls"])
            & (ids[separators] == special_ids["sep"])
            & (ids[starts + lengths - 1] == special_ids["sep"])
        )
    if not is_sound.all():
        return _split_sound_pairs(records, is_sound, block, special_ids, problems)
    is_kept = np.ones(ids.size, np.bool_)
    is_kept[np.concatenate([starts, separators, starts + lengths - 1])] = False
    sentences = np.stack([first_lengths - 2, np.maximum(lengths - first_lengths - 1, 0)], axis=1)
    return Pairs(ids[is_kept], sentences[sentences > 0], (sentences > 0).sum(axis=1))


def _split_sound_pairs(
    records: list[_Record],
    is_sound: np.ndarray,
    block: Block,
    special_ids: Mapping[str, int],
    problems: Problems,
) -> Pairs:
    """Notes the pairs that are none, and goes on with the others."""
    if len(records) == 1:
        problems.note(
            "bad_pairs",
            block.path,
            block.first_line + records[0].number,
            f"not [CLS] A [SEP] B [SEP] with {special_ids['cls']} for [CLS] and "
            f"{special_ids['sep']} for [SEP]",
        )
        return Pairs.empty()
    if not is_sound.any():
        # The lists may differ in length, which leaves all unknown: each is looked at alone.
        parts = [_split_pairs([record], block, special_ids, problems) for record in records]
    else:
        sound = list(compress(records, is_sound))
        parts = [_split_pairs(sound, block, special_ids, problems)]
        for record in compress(records, ~is_sound):
            _split_pairs([record], block, special_ids, problems)
    return Pairs(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.sentence_lengths for part in parts]),
        np.concatenate([part.document_lengths for part in parts]),
    )
