"""Which tokens go on with a word: one bit a token, in a file beside an indexed corpus.

`<prefix>.words`, little endian: magic (8 bytes), version (uint32), 4 bytes of zeros, number of
tokens (uint64), then the bits, the first token's in the lowest bit of the first byte. A set bit
says that the token belongs to the word of the token before it. The corpus itself knows nothing of
the file and stays what Megatron reads.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import IO

import numpy as np

from ..errors import UserError
from .indexed_layout import REBUILD

MAGIC = b"MMWORDS\x00"
VERSION = 1
HEADER = struct.Struct("<8sIIQ")
_CHUNK_BYTES = 1 << 20


def words_path(prefix: str) -> str:
    """Where the word marks of the corpus at `prefix` lie."""
    return prefix + ".words"


def words_bytes(num_tokens: int) -> int:
    """Size of the file for so many tokens."""
    return HEADER.size + -(-num_tokens // 8)


class WordMarks:
    """The marks of one corpus, read from disk when asked.

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
            header = stream.read(HEADER.size)
            if len(header) < HEADER.size:
                raise UserError(f"{self.path}: truncated file of {size} bytes; {REBUILD}")
            magic, version, _, count = HEADER.unpack(header)
            if magic != MAGIC or version != VERSION:
                raise UserError(f"{self.path}: wrong magic or version, no word marks; {REBUILD}")
            if count != num_tokens or size != words_bytes(num_tokens):
                raise UserError(
                    f"{self.path}: marks {count} tokens in {size} bytes, the corpus has "
                    f"{num_tokens}, which take {words_bytes(num_tokens)}; {REBUILD}"
                )
            self._buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.bits = np.frombuffer(self._buffer, np.uint8, offset=HEADER.size)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Whether each token of [start, stop) goes on with a word, bool [stop - start], a copy."""
        bits = np.unpackbits(self.bits[start // 8 : -(-stop // 8)], bitorder="little")
        return bits[start % 8 : start % 8 + stop - start].astype(np.bool_)

    def pieces(self) -> Iterator[np.ndarray]:
        """All marks in a row, as bool arrays of bounded size."""
        count = HEADER.unpack_from(self._buffer)[3]
        step = 8 * _CHUNK_BYTES
        for start in range(0, count, step):
            yield self.read(start, min(start + step, count))


class WordMarksWriter:
    """Appends marks to a stream that starts empty, or holds those of `num_tokens` tokens already.

    Args:
        stream: open for reading and writing in binary.
        num_tokens: marked so far.
    """

    def __init__(self, stream: IO[bytes], num_tokens: int = 0) -> None:
        self._stream = stream
        self._count = num_tokens
        # The last byte is written again when its bits are all known. Until then it stays: this
        # writer may be killed before it gets there.
        end = HEADER.size + num_tokens // 8
        last = os.pread(stream.fileno(), 1, end) if num_tokens % 8 else b""
        self._waiting = np.unpackbits(np.frombuffer(last, np.uint8), bitorder="little")
        self._waiting = self._waiting[: num_tokens % 8]
        stream.truncate(words_bytes(num_tokens))
        stream.seek(end)
        if not num_tokens:
            self._write_header()
            stream.seek(HEADER.size)

    def add(self, marks: np.ndarray) -> None:
        """Appends marks, bool [tokens]."""
        bits = np.concatenate([self._waiting, marks.astype(np.uint8)])
        whole = bits.size // 8 * 8
        self._stream.write(np.packbits(bits[:whole], bitorder="little").tobytes())
        self._waiting = bits[whole:]
        self._count += marks.size

    def flush(self) -> None:
        """Completes the file as far as it goes; more may be added after that."""
        self._stream.write(np.packbits(self._waiting, bitorder="little").tobytes())
        self._write_header()
        self._stream.seek(HEADER.size + self._count // 8)

    def _write_header(self) -> None:
        self._stream.seek(0)
        self._stream.write(HEADER.pack(MAGIC, VERSION, 0, self._count))
