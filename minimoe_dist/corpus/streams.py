"""Reads input files, and members of archives, as streams of bytes: decompressed, as UTF-8.

Data is decompressed where its first bytes say that it is compressed, several times over if need
be (an xz file inside a gzip one). However well it was compressed, no more than a few megabytes of
it are in memory at once.
"""

from __future__ import annotations

import bz2
import codecs
import lzma
import os
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import IO, Any, Protocol

from ..errors import UserError
from ..foreign import UnreadableError, open_file

_CHUNK_BYTES = 1 << 16
_MOST_DECOMPRESSED = 1 << 22
_MOST_LAYERS = 4
# A window is memory. Long ones are of files that are large even compressed; what a small file says
# of its window is not believed.
_USUAL_ZSTANDARD_WINDOW, _LONGEST_ZSTANDARD_WINDOW = 1 << 27, 1 << 31
_MOST_COMPRESSED = 64
_MOST_LZMA_MEMORY = 1 << 30
# A zstandard frame can stand for 30,000 times its own size, and its decompressor knows no limit.
_ZSTANDARD_CHUNK_BYTES = 1 << 7
_BAD_BYTE = b"\xff"


class Readable(Protocol):
    """Gives bytes, one piece after the other."""

    def read(self, size: int, /) -> bytes:
        """Returns at most `size` bytes that follow; none at the end."""
        ...

    def tell(self) -> int:
        """Returns how many bytes of the file on the disk have been taken."""
        ...


class _Decompressor(Protocol):
    """A decompressor that gives no more than it is asked for."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Gzip:
    """Gives zlib's decompressor the interface of bz2's and lzma's."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Zstandard:
    """Gives zstandard's decompressor the interface of bz2's and lzma's."""

    def __init__(self, longest_window: int) -> None:
        import zstandard

        context = zstandard.ZstdDecompressor(max_window_size=longest_window)
        self._inner = context.decompressobj()
        self._unread = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data + self._unread

    @property
    def needs_input(self) -> bool:
        return not self._unread

    def decompress(self, data: bytes, max_length: int) -> bytes:
        data = self._unread + data
        pieces, size, offset = [], 0, 0
        while offset < len(data) and size < max_length and not self._inner.eof:
            piece = self._inner.decompress(data[offset : offset + _ZSTANDARD_CHUNK_BYTES])
            offset += _ZSTANDARD_CHUNK_BYTES
            pieces.append(piece)
            size += len(piece)
        self._unread = data[offset:]
        return b"".join(pieces)


def _lzma(file_bytes: int) -> _Decompressor:
    return lzma.LZMADecompressor(memlimit=_MOST_LZMA_MEMORY)


def _zstandard(file_bytes: int) -> _Decompressor:
    window = max(_USUAL_ZSTANDARD_WINDOW, _MOST_COMPRESSED * file_bytes)
    return _Zstandard(min(window, _LONGEST_ZSTANDARD_WINDOW))


# What makes a decompressor for a file of so many bytes.
_MAGIC: dict[bytes, tuple[str, Callable[[int], _Decompressor]]] = {
    b"\x1f\x8b\x08": ("gzip", lambda file_bytes: _Gzip()),
    b"BZh": ("bzip2", lambda file_bytes: bz2.BZ2Decompressor()),
    b"\xfd7zXZ\x00": ("xz", _lzma),
    b"\x5d\x00\x00": ("lzma", _lzma),
    b"\x28\xb5\x2f\xfd": ("zstandard", _zstandard),
    # What parallel compressors and others put before the first piece.
    **{bytes([n]) + b"\x2a\x4d\x18": ("zstandard", _zstandard) for n in range(0x50, 0x60)},
}
# Line ends of other systems, and what may be the beginning of one at the end of a piece.
_LINE_END = re.compile(rb"\r\n?|\xe2\x80[\xa8\xa9]|\xc2\x85|\x0b")
_LINE_END_BEGUN = re.compile(rb"(?:\r|\xe2\x80?|\xc2)\Z")


class _Peekable:
    """Reads whole amounts, and looks ahead."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._buffer = b""

    def peek(self, size: int) -> bytes:
        """Returns the next `size` bytes, which stay to be read; fewer only at the end."""
        while len(self._buffer) < size:
            piece = self._source.read(size - len(self._buffer))
            if not piece:
                break
            self._buffer += piece
        return self._buffer[:size]

    def read(self, size: int) -> bytes:
        """Returns the next `size` bytes; fewer only at the end."""
        pieces = [self._buffer[:size]]
        self._buffer = self._buffer[size:]
        missing = size - len(pieces[0])
        while missing > 0 and (piece := self._source.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces) if len(pieces) > 1 else pieces[0]

    def tell(self) -> int:
        """Returns how many bytes of the file on the disk have been taken."""
        return self._source.tell()


class _Converted(ABC):
    """Gives what the bytes of another stream are converted to."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._buffer = b""
        self._at_end = False

    def read(self, size: int) -> bytes:
        while not self._buffer and not self._at_end:
            self._buffer = self._convert_more()
        piece, self._buffer = self._buffer[:size], self._buffer[size:]
        return piece

    def tell(self) -> int:
        return self._source.tell()

    @abstractmethod
    def _convert_more(self) -> bytes:
        """Converts the next bytes, maybe to nothing; notes the end."""


class _Decompressed(_Converted):
    """Decompresses what another stream gives.

    Attributes:
        damage: what was wrong with the data, None as long as nothing was; it ends there.
        given: bytes that came out of it.
        taken: bytes of the file on the disk that went into it before the present ones.
    """

    def __init__(
        self, source: Readable, compression: str, start: Callable[[], _Decompressor]
    ) -> None:
        super().__init__(source)
        self._compression, self._start = compression, start
        self._decompressor = start()
        self._data = b""
        self.damage: str | None = None
        self.given = self.taken = 0

    def _convert_more(self) -> bytes:
        decompressor = self._decompressor
        if decompressor.eof:
            # Several compressed pieces may stand one after the other, padded by zeros.
            self._data = decompressor.unused_data.lstrip(b"\0")
            while not self._data and (piece := self._source.read(_CHUNK_BYTES)):
                self._data = piece.lstrip(b"\0")
            if not self._data:
                self._at_end = True
                return b""
            self.taken = max(0, self._source.tell() - len(self._data))
            decompressor = self._decompressor = self._start()
        elif decompressor.needs_input:
            self.taken = self._source.tell()
            self._data = self._source.read(_CHUNK_BYTES)
            if not self._data:
                self._end_with("it ends too early")
                return b""
        try:
            data = decompressor.decompress(self._data, _MOST_DECOMPRESSED)
            self.given += len(data)
            return data
        except Exception as error:
            # Each library has its own kinds of errors; reading the file is not in this `try`.
            self._end_with(str(error))
            return b""
        finally:
            self._data = b""

    def _end_with(self, reason: str) -> None:
        self._at_end = True
        self.damage = f"damaged {self._compression} data: {reason}"


class _Transcoded(_Converted):
    """Converts text to UTF-8; a byte that no UTF-8 has stands for what was damaged."""

    def __init__(self, source: Readable, encoding: str) -> None:
        super().__init__(source)
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")

    def _convert_more(self) -> bytes:
        data = self._source.read(_CHUNK_BYTES)
        self._at_end = not data
        text = self._decoder.decode(data, final=self._at_end)
        return text.encode("utf-8", "surrogatepass").replace("\ufffd".encode(), _BAD_BYTE)


class _Relined(_Converted):
    """Ends lines with line feeds, whatever they ended with."""

    def __init__(self, source: Readable) -> None:
        super().__init__(source)
        self._rest = b""

    def _convert_more(self) -> bytes:
        piece = self._source.read(_CHUNK_BYTES)
        self._at_end = not piece
        data, self._rest = self._rest + piece, b""
        if piece and (begun := _LINE_END_BEGUN.search(data[-2:])):
            data, self._rest = data[: len(data) - len(begun[0])], begun[0]
        return _LINE_END.sub(b"\n", data)


class InputStream:
    """Reads a file, or a member of one, from its beginning to its end.

    Args:
        path: the file on the disk.
        name: what messages call it; None for the path.
        source: where the bytes come from; None for the file itself.

    Attributes:
        compression: the name of the outermost compression, None without.
        encoding: what the text was encoded in; UTF-8 is what comes out.
    """

    def __init__(self, path: str, *, name: str | None = None, source: Readable | None = None):
        self.path, self.name = path, name or path
        self.compression: str | None = None
        self.encoding = "UTF-8"
        self._file: IO[bytes] | None = None
        self._layers: list[_Decompressed] = []
        self._is_relined = False
        self._is_file = source is None
        if source is None:
            try:
                source = self._file = open_file(path)
            except UnreadableError as error:
                raise UserError(f"{self.name}: {error}; give files of text") from None
        self._origin = source
        self._source = _Peekable(source)
        try:
            self._decompress()
        except UserError:
            self.close()
            raise

    def _decompress(self) -> None:
        while (kind := self._recognise()) is not None:
            if len(self._layers) == _MOST_LAYERS:
                raise UserError(
                    f"{self.name}: is compressed more than {_MOST_LAYERS} times; unpack it"
                )
            compression, start = kind
            self.compression = self.compression or compression
            make = partial(start, os.path.getsize(self.path))
            self._layers.append(_Decompressed(self._source, compression, make))
            self._source = _Peekable(self._layers[-1])

    def _recognise(self) -> tuple[str, Callable[[int], _Decompressor]] | None:
        beginning = self._source.peek(8)
        return next((kind for magic, kind in _MAGIC.items() if beginning.startswith(magic)), None)

    def __enter__(self) -> InputStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    @property
    def is_plain(self) -> bool:
        """Whether its bytes are those of the file, so that they can be read by offset."""
        return (
            self._is_file and not self._layers and not self._is_relined and self.encoding == "UTF-8"
        )

    @property
    def damage(self) -> str | None:
        """What was wrong with compressed data; None as long as nothing was."""
        faults = (getattr(layer, "damage", None) for layer in (self._origin, *self._layers))
        return next(filter(None, faults), None)

    def lost_bytes(self) -> int:
        """Estimates what damaged data would have given from what the data before it gave."""
        damaged = next((layer for layer in self._layers if layer.damage), None)
        if damaged is None or not self._is_file:
            return 0
        left = os.path.getsize(self.path) - damaged.taken
        return left * self._layers[-1].given // damaged.taken if damaged.taken else left

    def unread_bytes(self) -> int | None:
        """Returns how many bytes are still to be read; None where compression hides it."""
        return os.path.getsize(self.path) - self.tell() if self.is_plain else None

    @property
    def file(self) -> IO[bytes]:
        """The open file on the disk, for those who read it in their own way."""
        assert self._file is not None and not self._layers
        return self._file

    def transcode(self, encoding: str) -> None:
        """Makes what is read from now on UTF-8, whatever it was; nothing has been read before."""
        if codecs.lookup(encoding).name != "utf-8":
            self._source = _Peekable(_Transcoded(self._source, encoding))
            self.encoding = encoding

    def end_lines(self) -> None:
        """Makes lines end with line feeds if none does at the beginning, but some otherwise."""
        beginning = self.peek(_CHUNK_BYTES)
        if b"\n" not in beginning and _LINE_END.search(beginning):
            self._source = _Peekable(_Relined(self._source))
            self._is_relined = True

    def peek(self, size: int) -> bytes:
        """Returns the next `size` bytes, which stay to be read; fewer only at the end."""
        return self._source.peek(size)

    def read(self, size: int) -> bytes:
        """Returns the next `size` bytes; fewer only at the end."""
        return self._source.read(size)

    def tell(self) -> int:
        """Returns how many bytes of the file on the disk have been taken."""
        return self._source.tell()


def check_encoding(encoding: str) -> None:
    """Refuses what is no name of an encoding of text.

    Raises:
        UserError: there is no such encoding of text.
    """
    try:
        info: Any = codecs.lookup(encoding)
        if info._is_text_encoding:
            # Codecs of names and the like cannot replace what they do not know.
            info.incrementaldecoder("replace").decode(b"", final=True)
            return
    except (LookupError, ValueError, TypeError):
        pass
    raise UserError(
        f"--encoding {encoding!r}: is no encoding of text; give utf-8, gb18030, big5, utf-16, …"
    )
