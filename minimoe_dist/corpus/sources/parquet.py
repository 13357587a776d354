"""Reads Parquet, in which Wikipedia and most corpora are handed out: its rows as JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import UserError
from ..blocks import BLOCK_BYTES, Block, Document, Problems
from ..sentences import SentenceRules
from ..streams import InputStream
from .json_documents import RecordReader
from .json_records import JsonLinesSource

if TYPE_CHECKING:
    import pyarrow.parquet

PARQUET_MAGIC = b"PAR1"
_BATCH_BYTES, _MOST_ROWS = 1 << 21, 1024
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class ParquetSource:
    """Reads the columns of text and title, row by row, and leaves the others alone.

    A column may hold strings of any kind, also as bytes or dictionary-encoded, or lists of them,
    which are lines; `outer.inner` names a field inside a structure.

    Attributes:
        reader: makes documents of rows; its keys are names of columns.
        block_bytes: size of a block.
        longest_sentence: where over-long sentences are cut, in characters.
    """

    reader: RecordReader = field(default_factory=RecordReader)
    block_bytes: int = BLOCK_BYTES
    longest_sentence: int = SentenceRules.longest
    lines_are_sentences: ClassVar[bool] = False

    def first_texts(self, stream: InputStream) -> list[str]:
        """Returns the texts of some of the first rows.

        Raises:
            UserError: there is no column of text, the file is damaged or lies inside another,
                or pyarrow is not installed.
        """
        with _opened(stream) as table:
            rows = _Rows(stream.path, table, *self._columns(stream, table))
            lines = rows.read(1 << 16).split(b"\n")[:-1]
        reader = self._lines().reader
        return [reader.text_of(record) for record in map(json.loads, lines) if record["text"]]

    def blocks(self, stream: InputStream) -> Iterator[Block]:
        """Cuts as the same rows in JSON lines are cut."""
        with stream, _opened(stream) as table:
            text, title = self._columns(stream, table)
            rows = _Rows(stream.path, table, text, title)
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
    ) -> tuple[str, str | None]:
        names = _names(table.schema_arrow)
        texts = self.reader.text_keys
        text = next((name for name in texts if name in names), None)
        title = next((name for name in self.reader.title_keys if name in names), None)
        if text is None or not _holds_text(names[text]):
            fitting = [name for name, kind in names.items() if _holds_text(kind)]
            raise UserError(
                f"{stream.name}: no column of text named {' or '.join(map(repr, texts))}; give "
                f"--text_column (columns of text: {', '.join(fitting[:8]) or 'none'})"
            )
        return text, title


class _Rows:
    """Gives the rows of a table as JSON lines.

    Attributes:
        damage: what was wrong with the table, which ends there; None as long as nothing was.
    """

    damage: str | None = None

    def __init__(
        self, path: str, table: pyarrow.parquet.ParquetFile, text: str, title: str | None
    ) -> None:
        self._size, self._num_rows = os.path.getsize(path), max(1, table.metadata.num_rows)
        self._columns = [text] if title is None else [text, title]
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
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = str(error).split("\n")[0]
            self.damage = f"damaged Parquet data: {reason}"
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
                columns=self._columns,
                use_threads=False,
            )
            for batch in batches:
                yield self._as_lines(batch.to_pylist())
                self._rows_taken += batch.num_rows

    def _as_lines(self, rows: list[dict[str, Any]]) -> bytes:
        encode = json.JSONEncoder(ensure_ascii=False).encode
        lines = []
        for row in rows:
            record = {
                key: _plain(_field(row, name))
                for key, name in zip(("text", "title"), self._columns, strict=False)
            }
            lines.append(encode(record) + "\n")
        return "".join(lines).encode("utf-8", "replace")


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
        return pyarrow.parquet.ParquetFile(stream.path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except pyarrow.lib.ArrowException as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{stream.name}: a damaged Parquet file ({reason}); fetch it again"
        ) from None


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
    while types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
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


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_plain(item) for item in value if item is not None]
    return value
