"""Keeps a teacher's relation signals of numbered pairs on disk, and reads them back.

A cache is a folder of blocks. A block is a safetensors file of consecutive pairs, written whole or
not at all, so a cache that was broken off is filled where it is not yet. Beside each pair's signals
stand a checksum of them, looked at before the first step, and one of what the teacher read, looked
at whenever they are read: signals of another text than the run's are never taken for its own.

Shapes: T tokens of all pairs of a block or batch, H the teacher's width.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..durable import (
    PARTIAL,
    beside,
    flush_file,
    flush_folder,
    make_empty,
    naming,
    share,
)
from ..errors import UserError
from ..tensor_errors import io_errors
from .batches import MicroBatch
from .signal_bytes import RELATIONS, bytes_per_token
from .signal_rows import DTYPES, SignalRows, checksum_of

FACTS = "cache.json"  # what the cache is of, for people
_DIVERGENCE = "divergence"
# What libraries make of a file that is not what was written.
_DAMAGE = (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError)


@dataclass(frozen=True)
class _Block:
    """An open block.

    Attributes:
        ends: int64 [n + 1], each pair's first row, and the last one's end.
        checksums, input_checksums: int64 [n]; of each pair's rows, and of what the teacher read.
        divergence: what the encoding cost, measured when it was written.
    """

    path: Path
    file: Any
    ends: np.ndarray
    checksums: np.ndarray
    input_checksums: np.ndarray
    divergence: float


class SignalCache:
    """Holds the signals of numbered pairs in a folder.

    Args:
        folder: of this cache alone; made where it is missing.
        facts: what the signals are a function of, as JSON; among it their ``dtype`` and
            ``hidden_size``, and how many ``signals`` a token has where these are not three.
        num_pairs: pairs that are numbered, from 0 on.
        block_pairs: pairs of a block.
    """

    def __init__(
        self, folder: Path, facts: Mapping[str, Any], num_pairs: int, block_pairs: int
    ) -> None:
        self.folder = folder
        self.dtype = str(facts["dtype"])
        self.num_pairs, self._block_pairs = num_pairs, block_pairs
        self._facts = {**facts, "pairs": num_pairs, "block_pairs": block_pairs}
        self._blocks: list[_Block] = []

    @property
    def bytes_per_token(self) -> int:
        """The bytes that a token's signals take."""
        return bytes_per_token(self._facts["hidden_size"], self.dtype, self._num_signals)

    @property
    def _num_signals(self) -> int:
        return int(self._facts.get("signals", RELATIONS))

    @property
    def num_blocks(self) -> int:
        """The number of its blocks, written or not."""
        return -(-self.num_pairs // self._block_pairs)

    @property
    def is_there(self) -> bool:
        """Whether its folder has been made, as far as this machine sees."""
        return (self.folder / FACTS).is_file()

    def missing(self) -> list[int]:
        """Returns the blocks that are not written yet."""
        there = {entry.name for entry in os.scandir(self.folder)}
        return [block for block in range(self.num_blocks) if _name(block) not in there]

    def pairs_of(self, block: int) -> range:
        """Returns the numbers of a block's pairs."""
        start = block * self._block_pairs
        return range(start, min(self.num_pairs, start + self._block_pairs))

    def make_folder(self, writer: str) -> None:
        """Makes the folder where it is missing, with a file that says what it is of.

        Args:
            writer: names who writes, among all processes that may.

        Raises:
            UserError: it cannot be made or written.
        """
        path = self.folder / FACTS
        if path.is_file():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._aside(path, writer) as aside:
                aside.write_text(json.dumps(self._facts, indent=1) + "\n", "utf-8")
        except OSError as error:
            raise UserError(
                f"teacher.cache_dir: {self.folder} cannot be written ({error.strerror or error}); "
                "give another folder"
            ) from None

    def write(
        self,
        block: int,
        parts: Sequence[tuple[MicroBatch, SignalRows]],
        divergence: float,
        writer: str,
    ) -> None:
        """Writes a block, whole or not at all, whoever else may write it too.

        Args:
            block: its number.
            parts: batches of its pairs, in order, with the rows of their tokens, on the host.
            divergence: mean KL a row of the relations of what is kept, against those of the
                teacher.
            writer: as of :meth:`make_folder`.

        Raises:
            OSError: it cannot be written.
        """
        lengths: list[int] = []
        checksums: list[int] = []
        inputs: list[int] = []
        for micro, rows in parts:
            counts = _lengths(micro)
            lengths += counts.tolist()
            inputs += _input_checksums(micro, counts)
            checksums += [part.checksum() for part in _split(rows, counts)]
        together = zip(*(rows.tensors() for _, rows in parts), strict=True)
        names = ["rows", "scales"]
        tensors = {
            **dict(zip(names, (torch.cat(one) for one in together), strict=False)),
            "lengths": torch.tensor(lengths, dtype=torch.int64),
            "checksums": torch.tensor(checksums, dtype=torch.int64),
            "input_checksums": torch.tensor(inputs, dtype=torch.int64),
        }
        path = self._path(block)
        about = {**self._about(block), _DIVERGENCE: repr(divergence)}
        with self._aside(path, writer) as aside, io_errors(path):
            save_file(tensors, aside, about)

    @contextmanager
    def _aside(self, path: Path, writer: str) -> Iterator[Path]:
        """Yields a file in the writer's own folder, which then becomes ``path``.

        What a killed writer leaves there, temporary files of libraries too, goes with its next use.
        """
        own = beside(self.folder / writer, PARTIAL)
        with naming(path):
            make_empty(own)
            try:
                yield own / path.name
                share(own / path.name)
                flush_file(own / path.name)
                (own / path.name).replace(path)
                flush_folder(self.folder)
            finally:
                shutil.rmtree(own, ignore_errors=True)

    def _about(self, block: int) -> dict[str, str]:
        return {"facts": json.dumps(self._facts, sort_keys=True), "block": str(block)}

    def open(self) -> None:
        """Opens all blocks.

        Raises:
            UserError: one is missing, damaged, or of another cache.
        """
        self._blocks = [self._open(block) for block in range(self.num_blocks)]

    def verify(self, blocks: Iterable[int]) -> None:
        """Reads blocks of an open cache, and holds them against their checksums.

        Raises:
            UserError: one is damaged.
        """
        for block in map(self._blocks.__getitem__, blocks):
            try:
                rows = SignalRows(*(block.file.get_tensor(name) for name in self._names))
                is_sound = (
                    rows.rows.dtype == DTYPES[self.dtype]
                    and [part.checksum() for part in _split(rows, np.diff(block.ends))]
                    == block.checksums.tolist()
                )
            except _DAMAGE:
                is_sound = False
            if not is_sound:
                raise UserError(f"{block.path}: is damaged; {self._remedy(block.path)}")

    @property
    def num_bytes(self) -> int:
        """The size of an open cache's files."""
        return sum(block.path.stat().st_size for block in self._blocks)

    @property
    def divergence(self) -> float:
        """What its encoding costs an open cache: mean KL a row of relations, as measured."""
        return float(np.mean([block.divergence for block in self._blocks]))

    def recall(self, numbers: np.ndarray, micro: MicroBatch) -> SignalRows:
        """Reads the rows of a batch's tokens, in its order.

        Args:
            numbers: int64 [b], which pairs the batch is of.
            micro: the batch, on the host.

        Raises:
            UserError: they are of another text.
        """
        counts = _lengths(micro)
        found = [
            self._read(int(number), int(count), inputs)
            for number, count, inputs in zip(
                numbers, counts, _input_checksums(micro, counts), strict=True
            )
        ]
        together = zip(*(rows.tensors() for rows in found), strict=True)
        return SignalRows(*(torch.cat(one) for one in together))

    def _path(self, block: int) -> Path:
        return self.folder / _name(block)

    def _open(self, number: int) -> _Block:
        path = self._path(number)
        try:
            file = safe_open(path, "pt")
            about = file.metadata() or {}
            if any(about.get(key) != value for key, value in self._about(number).items()):
                raise UserError(f"{path}: is of another cache; {self._remedy(path)}")
            names = ("lengths", "checksums", "input_checksums")
            columns = [file.get_tensor(name) for name in names]
            ends = np.concatenate([[0], np.cumsum(columns[0].numpy())])
            shapes = {name: list(file.get_slice(name).get_shape()) for name in self._names}
            divergence = float(about[_DIVERGENCE])
        except FileNotFoundError:
            raise UserError(
                f"teacher.cache_dir: {path} is not there: give a folder that all machines see"
            ) from None
        except _DAMAGE as error:
            raise UserError(f"{path}: is damaged ({error}); {self._remedy(path)}") from None
        rows, hidden_size = int(ends[-1]), self._facts["hidden_size"]
        signals = self._num_signals
        wanted = {"rows": [rows, signals, hidden_size], "scales": [rows, signals]}
        is_whole = all(
            column.dtype == torch.int64 and list(column.shape) == [len(self.pairs_of(number))]
            for column in columns
        )
        if not is_whole or (columns[0] < 0).any() or any(shapes[n] != wanted[n] for n in shapes):
            raise UserError(f"{path}: is damaged; {self._remedy(path)}")
        checksums, inputs = (column.numpy() for column in columns[1:])
        return _Block(path, file, ends, checksums, inputs, divergence)

    def _read(self, number: int, count: int, inputs: int) -> SignalRows:
        place, pair = divmod(number, self._block_pairs)
        block = self._blocks[place]
        start, end = int(block.ends[pair]), int(block.ends[pair + 1])
        if end - start != count or block.input_checksums[pair] != inputs:
            raise UserError(
                f"{block.path}: pair {number} is of another text than the run reads; delete "
                f"{self.folder}, and the next start fills it again"
            )
        return SignalRows(*(block.file.get_slice(name)[start:end] for name in self._names))

    @property
    def _names(self) -> tuple[str, ...]:
        return ("rows", "scales") if self.dtype == "int8" else ("rows",)

    @staticmethod
    def _remedy(path: Path) -> str:
        return f"delete {path.name}, and the next start fills it again"


def _name(block: int) -> str:
    return f"block_{block:06d}.safetensors"


def _lengths(micro: MicroBatch) -> np.ndarray:
    counts: np.ndarray = micro.attention_mask.numpy().sum(1, dtype=np.int64)
    return counts


def _split(rows: SignalRows, counts: np.ndarray) -> list[SignalRows]:
    parts = zip(*(tensor.split(counts.tolist()) for tensor in rows.tensors()), strict=True)
    return [SignalRows(*part) for part in parts]


def _input_checksums(micro: MicroBatch, counts: np.ndarray) -> list[int]:
    """Returns a CRC-32 of each sample's ids and segments."""
    return [
        checksum_of(ids[:count], segments[:count])
        for ids, segments, count in zip(
            micro.input_ids, micro.token_type_ids, counts.tolist(), strict=True
        )
    ]
