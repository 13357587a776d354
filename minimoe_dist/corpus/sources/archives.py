"""Reads the members of tar and zip files one after the other, without unpacking them to a disk."""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, ClassVar, Self, cast

from ...errors import UserError
from ..blocks import (
    BLOCK_BYTES,
    Block,
    BlockCutter,
    Document,
    Problems,
    Source,
    scale_to_characters,
)
from ..streams import InputStream
from .tfrecord import TFRecordSource
from .unreadable import unreadable_zip

ZIP_MAGIC = b"PK\x03\x04"
_ZIP_END, _ZIP_END_BYTES = b"PK\x05\x06", 18
_TAR_HEADER_BYTES = 512
_PADDING = b"\0\n"
_TAR_BUFFER_BYTES = 1 << 16
_MOST_NESTED = 4
_SEPARATOR = "!"
# What macOS keeps beside each file.
_COMPANIONS = ("._", "__MACOSX")
_DAMAGED = "damaged_files"
_FAULTS = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
    struct.error, UnicodeDecodeError,  # the latter two of heads and names
)  # fmt: skip
_ENCRYPTED = 1
_MOST_HEADER_BYTES = 1 << 20
_LONG_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


class UnreadableError(UserError):
    """A file is no text.

    Args:
        message: says what it is and what to do with it.
        holds_text: whether text would come out of it.
    """

    def __init__(self, message: str, holds_text: bool) -> None:
        super().__init__(message)
        self.holds_text = holds_text


def is_tar(beginning: bytes) -> bool:
    """Tells whether a file begins with a tar member's header whose checksum is right."""
    try:
        tarfile.TarInfo.frombuf(beginning[:_TAR_HEADER_BYTES], "utf-8", "surrogateescape")
        return True
    except tarfile.HeaderError:
        return False


def check_zip(stream: InputStream) -> None:
    """Refuses a zip file that is no archive of texts, or cannot be read.

    Raises:
        UserError: it is damaged, or lies inside another file; or (`UnreadableError`) it is a word
            processor's file or the like.
    """
    if not stream.is_plain:
        raise UnreadableError(
            f"{stream.name}: is a zip file inside another file; unpack it with: unzip", True
        )
    try:
        with zipfile.ZipFile(stream.path) as archive:
            kind = unreadable_zip(archive.namelist())
            _check_single(archive, stream.path)
    except _FAULTS as error:
        raise UserError(f"{stream.path}: a damaged zip file ({error}); fetch it again") from None
    if kind is not None:
        raise UnreadableError(f"{stream.name}: looks like {kind.description}", kind.holds_text)


def _check_single(archive: zipfile.ZipFile, path: str) -> None:
    """Refuses zip files in a row: the directory of one of them names its own members alone."""
    first = min((info.header_offset for info in archive.infolist()), default=archive.start_dir)
    with open(path, "rb") as stream:
        stream.seek(archive.start_dir)
        behind = stream.read().rpartition(_ZIP_END)[2][_ZIP_END_BYTES + len(archive.comment) :]
    if first or ZIP_MAGIC in behind:
        raise UserError(f"{path}: several zip files in a row, or parts of them; give one by one")


@dataclass(frozen=True)
class _Member:
    """A file inside an archive: its name, its size, and what opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


class _Measured:
    """Reads a stream, and tells how much of it was given and how much is left.

    Attributes:
        given: bytes.
        sample: the last bytes that were given.
    """

    def __init__(self, stream: InputStream) -> None:
        self._stream = stream
        self.given, self.sample = 0, b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.given, self.sample = self.given + len(data), data or self.sample
        return data

    def characters_after(self, position: int) -> int:
        """Reads to the end; estimates how many characters stand there from a position on."""
        while self.read(_TAR_BUFFER_BYTES):
            pass
        left = max(0, self.given - position)
        return scale_to_characters(left, self.sample[-left:])


class _MemberReader:
    """Reads a member, and tells how far the archive has been read."""

    def __init__(self, file: IO[bytes], tell: Callable[[], int]) -> None:
        self._file, self.tell = file, tell

    def read(self, size: int) -> bytes:
        """Reads the next bytes.

        Raises:
            BadZipFile: bzip2 cannot unpack them, which raises a bare `OSError` for it.
        """
        try:
            return self._file.read(size)
        except OSError as error:
            if error.errno is not None:
                raise
            raise zipfile.BadZipFile(str(error)) from None


@dataclass(frozen=True)
class ArchiveSource:
    """Reads tar and zip files, each member by the reader that understands it.

    A block holds as many small members as fit, so that a million of small ones are no burden.

    Attributes:
        is_zip: whether it is a zip file; a tar file otherwise.
        choose: finds the reader of a member.
        block_bytes: size of a block.
    """

    is_zip: bool
    choose: Callable[[InputStream], Source]
    block_bytes: int = BLOCK_BYTES
    lines_are_sentences: ClassVar[bool] = False

    def blocks(self, stream: InputStream) -> Iterator[Block]:
        """Cuts the members into blocks, and puts small ones together."""
        group: list[tuple[Source, Block]] = []
        size = 0
        with BlockCutter(stream, is_archive=True) as cutter:
            for source, block in self._pieces(stream, cutter):
                if group and (block.continues_document or size + block.length > self.block_bytes):
                    yield replace(cutter.block(b""), members=tuple(group))
                    group, size = [], 0
                group.append((source, block))
                size += block.length
            yield replace(cutter.block(b""), members=tuple(group))
            sample = next((block.data for _, block in reversed(group) if block.data), b"")
            yield from cutter.damage(sample)

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """Yields the documents of all members in a block."""
        for source, piece in block.members:
            if not problems.note_damage(piece):
                yield from source.documents(piece, problems)

    def _pieces(self, stream: InputStream, cutter: BlockCutter) -> Iterator[tuple[Source, Block]]:
        if stream.name.count(_SEPARATOR) >= _MOST_NESTED:
            raise UserError(f"{stream.name}: archives inside archives; unpack them")
        measured = _Measured(stream)
        archive: zipfile.ZipFile | tarfile.TarFile | None = None
        try:
            with self._opened(stream, measured) as archive:
                for member in _members(archive):
                    yield from self._blocks_of(stream, member, cutter)
        except _FAULTS as error:
            if stream.damage is None:
                lost = 0
                if isinstance(archive, tarfile.TarFile):
                    lost = measured.characters_after(archive.offset)
                yield self, cutter.problem(_DAMAGED, f"a damaged archive: {error}", lost)

    def _blocks_of(
        self, archive: InputStream, member: _Member, cutter: BlockCutter
    ) -> Iterator[tuple[Source, Block]]:
        name = archive.name + _SEPARATOR + member.name
        try:
            reader = _MemberReader(member.open(), archive.tell)
            inner = InputStream(archive.path, name=name, source=reader)
            sample = inner.peek(_TAR_BUFFER_BYTES)
            source = self.choose(inner)
            if isinstance(source, TFRecordSource):
                raise UnreadableError(f"{name}: TFRecords in an archive; unpack it", False)
        except UserError as error:
            holds_text = getattr(error, "holds_text", True)
            kind = "members_not_read" if holds_text else "members_without_text"
            yield self, cutter.problem(kind, str(error), member.size if holds_text else 0)
            return
        except _FAULTS as error:
            yield self, cutter.problem(_DAMAGED, f"{name}: {error}", member.size)
            return
        yield from self._read(name, member, source, inner, cutter, sample)

    def _read(
        self,
        name: str,
        member: _Member,
        source: Source,
        inner: InputStream,
        cutter: BlockCutter,
        sample: bytes,
    ) -> Iterator[tuple[Source, Block]]:
        blocks = source.blocks(inner)
        length = 0
        while True:
            try:
                block = next(blocks)
            except StopIteration:
                return
            except _FAULTS as error:
                lost = scale_to_characters(max(0, member.size - length), sample)
                yield self, cutter.problem(_DAMAGED, f"{name}: {error}", lost)
                return
            length += block.length
            if block.members:
                yield from block.members
            else:
                yield source, block

    def _opened(
        self, stream: InputStream, measured: _Measured
    ) -> zipfile.ZipFile | tarfile.TarFile:
        if self.is_zip:
            return zipfile.ZipFile(stream.file)
        return tarfile.open(
            fileobj=cast("IO[bytes]", measured),
            mode="r|",
            bufsize=_TAR_BUFFER_BYTES,
            tarinfo=_TarMember,
            # Others may follow behind its end.
            ignore_zeros=True,
        )


def _members(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    if isinstance(archive, tarfile.TarFile):
        return _tar_members(archive)
    return _zip_members(archive)


def _is_companion(name: str) -> bool:
    return any(part.startswith(_COMPANIONS) for part in name.split("/"))


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        # `is_dir` fails where a damaged name is empty.
        if not info.filename.endswith("/") and not _is_companion(info.filename):
            yield _Member(info.filename, info.file_size, partial(_open_zipped, archive, info))


def _open_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    if info.flag_bits & _ENCRYPTED:
        raise UnreadableError(f"{info.filename}: is encrypted; unpack it with: unzip", True)
    try:
        return archive.open(info)
    except (ValueError, OverflowError) as error:  # of places that are outside the file
        raise zipfile.BadZipFile(str(error)) from None


class _TarMember(tarfile.TarInfo):
    """A tar file's member, whose damage is an error and not the end of the file."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Reads a header.

        Raises:
            ReadError: it is damaged, or asks for more memory than headers ever need.
        """
        if buf and not buf.strip(_PADDING):
            buf = bytes(_TAR_HEADER_BYTES)  # what pads a file need not be a whole header
        try:
            member = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None
        if member.type in _LONG_HEADERS and member.size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    for info in archive:
        # Links have their text at another member.
        if info.isreg() and not _is_companion(info.name):
            yield _Member(info.name, info.size, partial(_extracted, archive, info))
        # Else the archive remembers all of them.
        archive.members = []  # type: ignore[attr-defined]


def _extracted(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    assert file is not None
    return file
