"""Input files as streams of bytes, decompressed where their first bytes say that they need it."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

_CHUNK_BYTES = 1 << 16
_LONGEST_ZSTANDARD_WINDOW = 1 << 31


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _gzip() -> _Decompressor:
    return zlib.decompressobj(31)


def _zstandard() -> _Decompressor:
    import zstandard

    context = zstandard.ZstdDecompressor(max_window_size=_LONGEST_ZSTANDARD_WINDOW)
    return context.decompressobj()


_MAGIC: dict[bytes, tuple[str, Callable[[], _Decompressor]]] = {
    b"\x1f\x8b\x08": ("gzip", _gzip),
    b"BZh": ("bzip2", bz2.BZ2Decompressor),
    b"\xfd7zXZ\x00": ("xz", lzma.LZMADecompressor),
    b"\x28\xb5\x2f\xfd": ("zstandard", _zstandard),
    # What parallel compressors put before the first piece.
    b"\x50\x2a\x4d\x18": ("zstandard", _zstandard),
}
_UNREADABLE = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a rar archive; unpack it",
    b"\xff\xfe": "UTF-16; convert it to UTF-8",
    b"\xfe\xff": "UTF-16; convert it to UTF-8",
}


class InputStream:
    """Reads a file from its beginning to its end, decompressed if it is compressed.

    Attributes:
        compression: its name, None for a plain file.
        damage: what was wrong with the compressed data, None as long as nothing was; the
            stream ends there.
    """

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb")  # noqa: SIM115
        beginning = self._file.read(8)
        self._file.seek(0)
        self.compression: str | None = None
        self.damage: str | None = None
        self._decompressor: _Decompressor | None = None
        for magic, (name, start) in _MAGIC.items():
            if beginning.startswith(magic):
                self.compression, self._start = name, start
                self._decompressor = start()
        self._waiting: list[bytes] = []
        self._at_end = False

    def __enter__(self) -> InputStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        if self._decompressor is None:
            return self._file.read(size)
        missing = size - sum(map(len, self._waiting))
        while missing > 0 and not self._at_end:
            piece = self._decompress_more()
            self._waiting.append(piece)
            missing -= len(piece)
        joined = b"".join(self._waiting)
        self._waiting = [joined[size:]]
        return joined[:size]

    def tell(self) -> int:
        """How many bytes of the file itself have been taken."""
        return self._file.tell()

    def _decompress_more(self) -> bytes:
        """What the file's next bytes give; notes the end, and damage."""
        data = self._file.read(_CHUNK_BYTES)
        assert self._decompressor is not None
        if not data:
            self._at_end = True
            if not self._decompressor.eof:
                self.damage = f"damaged {self.compression} data: it ends too early"
        pieces = []
        while data:
            if self._decompressor.eof:
                # Several compressed pieces may stand one after the other, padded by zeros.
                data = data.lstrip(b"\0")
                if not data:
                    break
                self._decompressor = self._start()
            try:
                pieces.append(self._decompressor.decompress(data))
            except Exception as error:
                # Each library has its own kinds of errors; reading the file is not in this `try`.
                self._at_end = True
                self.damage = f"damaged {self.compression} data: {error}"
                break
            data = self._decompressor.unused_data if self._decompressor.eof else b""
        return b"".join(pieces)


def unreadable_kind(beginning: bytes) -> str | None:
    """What a file is and what to do with it, if its first bytes tell that it is no text."""
    for magic, what in _UNREADABLE.items():
        if beginning.startswith(magic):
            return what
    return None
