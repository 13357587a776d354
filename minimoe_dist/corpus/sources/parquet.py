"""Reads Parquet, in which Wikipedia and most corpora are handed out: its rows as JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ...data.encodings import is_utf8, likely_encoding
from ...errors import UserError
from ..blocks import BLOCK_BYTES, Block, Document, Problems
from ..sentences import SentenceRules
from ..streams import InputStream
from .json_documents import RecordReader, first_text
from .json_records import JsonLinesSource

if TYPE_CHECKING:
    import pyarrow.parquet

PARQUET_MAGIC = b"PAR1"
_BATCH_BYTES, _MOST_ROWS = 1 << 21, 1024
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class ParquetSource:
    """Reads the columns of text and title, row by row, and leaves the others alone.

    Where there are several of them, a row's first that holds text counts.

    A column may hold strings of any kind, also as bytes or dictionary-encoded, or lists of them,
    which are lines; `outer.inner` names a field inside a structure.

    Attributes:
        reader: makes documents of rows; its keys are names of columns.
        encoding: of columns of bytes; None for UTF-8.
        block_bytes: size of a block.
        longest_sentence: where over-long sentences are cut, in characters.
    """

    reader: RecordReader = field(default_factory=RecordReader)
    encoding: str | None = field(default=None, kw_only=True)
    block_bytes: int = BLOCK_BYTES
    longest_sentence: int = SentenceRules.longest
    lines_are_sentences: ClassVar[bool] = False

    def first_texts(self, stream: InputStream) -> list[str]:
        """Returns the texts of some of the first rows.

        Raises:
            UserError: there is no column of text, or text in an encoding that was not declared;
                the file is damaged or lies inside another; or pyarrow is not installed.
        """
        with _opened(stream) as table:
            rows = _Rows(stream.path, table, *self._columns(stream, table), encoding=self.encoding)
            beginning = rows.read(1 << 16).decode("utf-8", "surrogateescape")
        reader = self._lines().reader
        records = map(json.loads, beginning.split("\n")[:-1])
        texts = [
            reader.text_of(record).encode("utf-8", "surrogateescape")
            for record in records
            if record["text"]
        ]
        if self.encoding is None and not is_utf8(b"\n".join(texts)):
            guess = likely_encoding(texts)
            raise UserError(
                f"{stream.name}: its column of text is not in UTF-8; give --encoding"
                + (f" (its beginning looks like {guess})" if guess else "")
            )
        return [text.decode("utf-8", "replace") for text in texts]

    def blocks(self, stream: InputStream) -> Iterator[Block]:
        """Cuts as the same rows in JSON lines are cut."""
        with stream, _opened(stream) as table:
            rows = _Rows(stream.path, table, *self._columns(stream, table), encoding=self.encoding)
            lines = InputStream(stream.path, name=stream.name, source=rows)
            yield from self._lines().blocks(lines)

    def documents(self, block: Block, problems: Problems) -> Iterator[Document]:
        """Yields the documents of the rows."""
        return self._lines().documents(block, problems)

    def _lines(self) -> JsonLinesSource:
        reader = RecordReader(wrapping=self.reader.wrapping)
        return JsonLinesSource(reader, self.block_bytes, self.longest_sentence)

    def _columns(
        self, stream: InputStream, table: pyarrow.parquet.ParquetFile
    ) -> tuple[list[str], list[str]]:
        """Returns the names of the columns of text, and of titles; a row has one of each."""
        names = _names(table.schema_arrow)
        fitting = [name for name, kind in names.items() if _holds_text(kind)]
        texts = [name for name in self.reader.text_keys if name in fitting]
        if not texts:
            wanted = " or ".join(map(repr, self.reader.text_keys))
            raise UserError(
                f"{stream.name}: no column of text named {wanted}; give "
                f"--text_column (columns of text: {', '.join(fitting[:8]) or 'none'})"
            )
        return texts, [name for name in self.reader.title_keys if name in names]


class _Rows:
    """Gives the rows of a table as JSON lines.

    Attributes:
        damage: what was wrong with the table, which ends there; None as long as nothing was.
    """

    damage: str | None = None

    def __init__(
        self,
        path: str,
        table: pyarrow.parquet.ParquetFile,
        texts: list[str],
        titles: list[str],
        encoding: str | None,
    ) -> None:
        self._size, self._num_rows = os.path.getsize(path), max(1, table.metadata.num_rows)
        self._columns = {"text": texts, "title": titles} if titles else {"text": texts}
        self._encoding = encoding or "utf-8"
        self._lines = self._read(table)
        self._rows_taken = 0
        self._buffer = memoryview(b"")

    def read(self, size: int) -> bytes:
        if not self._buffer:
            self._buffer = memoryview(self._next())
        piece, self._buffer = bytes(self._buffer[:size]), self._buffer[size:]
        return piece

    def _next(self) -> bytes:
        import pyarrow.lib

        try:
            return next(self._lines, b"")
        except (pyarrow.lib.ArrowException, OSError) as error:
            self.damage = f"damaged Parquet data: {_damage(error)}"
            return b""

    def tell(self) -> int:
        return self._size * self._rows_taken // self._num_rows

    def _read(self, table: pyarrow.parquet.ParquetFile) -> Iterator[bytes]:
        for group in range(table.num_row_groups):
            # A reader of its own for each group: groups differ in how large their rows are.
            metadata = table.metadata.row_group(group)
            if not metadata.num_rows:
                continue
            row_bytes = max(1, metadata.total_byte_size // metadata.num_rows)
            batches = table.iter_batches(
                max(1, min(_MOST_ROWS, _BATCH_BYTES // row_bytes)),
                row_groups=[group],
                columns=[name for names in self._columns.values() for name in names],
                use_threads=False,
            )
            for batch in batches:
                yield self._as_lines(_rows_of(batch))
                self._rows_taken += batch.num_rows

    def _as_lines(self, rows: list[dict[str, Any]]) -> bytes:
        encode = json.JSONEncoder(ensure_ascii=False).encode
        lines = []
        for row in rows:
            record = {
                key: first_text([_plain(_field(row, name), self._encoding) for name in names])
                for key, names in self._columns.items()
            }
            lines.append(encode(record) + "\n")
        # Bytes that could not be decoded become what they were, and are noted as such.
        return "".join(lines).encode("utf-8", "surrogateescape")


def _opened(stream: InputStream) -> pyarrow.parquet.ParquetFile:
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{stream.name}: is a Parquet file, which pyarrow reads; install it with: "
            f"pip install 'minimoe-dist[parquet]'"
        ) from None
    if not stream.is_plain:
        raise UserError(f"{stream.name}: is a Parquet file inside another file; unpack it")
    try:
        table = pyarrow.parquet.ParquetFile(
            stream.path, buffer_size=_BUFFER_BYTES, pre_buffer=False
        )
        _names(table.schema_arrow)
        return table
    except (pyarrow.lib.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{stream.name}: a damaged Parquet file ({_damage(error)}); fetch it again"
        ) from None


def _damage(error: Exception) -> str:
    """Returns what Arrow says of a damaged file, and raises what the system says of a disk."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return str(error).split("\n")[0]


def _names(schema: Any) -> dict[str, Any]:
    """Returns the types of columns by their names, those inside structures as `outer.inner`."""
    import pyarrow

    names = {}
    columns = [(field.name, field.type) for field in schema]
    while columns:
        name, kind = columns.pop(0)
        names[name] = kind
        if pyarrow.types.is_struct(kind):
            columns.extend((f"{name}.{part.name}", part.type) for part in kind)
    return names


def _holds_text(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    )


def _field(row: dict[str, Any], name: str) -> Any:
    """Returns the value of a column, or of a field inside one; None where there is none."""
    value: Any = row
    for part in [name] if name in row else name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _plain(value: Any, encoding: str) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode(encoding, "surrogateescape")
        except UnicodeError:
            return value.decode(encoding, "replace")
    if isinstance(value, list):
        return [_plain(item, encoding) for item in value if item is not None]
    return value


def _rows_of(batch: pyarrow.RecordBatch) -> list[dict[str, Any]]:
    """Returns the rows of a batch; strings as bytes where one is damaged."""
    import pyarrow

    try:
        return cast("list[dict[str, Any]]", batch.to_pylist())
    except UnicodeDecodeError:
        kinds = [(field.name, _as_bytes(field.type)) for field in batch.schema]
        table = pyarrow.Table.from_batches([batch]).cast(pyarrow.schema(kinds))
        return cast("list[dict[str, Any]]", table.to_pylist())


def _as_bytes(kind: Any) -> Any:
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(kind):
        return _as_bytes(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind):
        return pyarrow.list_(_as_bytes(kind.value_type))
    if types.is_struct(kind):
        return pyarrow.struct([(part.name, _as_bytes(part.type)) for part in kind])
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return pyarrow.large_binary() if is_text else kind
