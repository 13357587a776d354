"""Decides which blocks a machine reads and where it goes on, and hashes the inputs.

The inputs, in their order, are one long row of bytes; machine i of n reads the i-th n-th of it.
A block is read where its document begins. Files that cannot be entered in the middle (compressed
ones) are read where they begin. So every machine knows its share from the sizes alone.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ..errors import UserError
from ..foreign import is_whole_number
from .reading import BlockOfSource, Inputs

_HASH_BYTES = 1 << 22


@dataclass(frozen=True)
class Portion:
    """The i-th of n shares of the inputs' bytes, i from 0.

    Raises:
        UserError: i is not below n.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(f"--shard {self.index}/{self.count}: give i/n with i from 0 to n - 1")

    @classmethod
    def parse(cls, text: str | None) -> Portion | None:
        """Reads `i/n`; None stays None.

        Raises:
            UserError: the text is no such pair.
        """
        if text is None:
            return None
        index, _, count = text.partition("/")
        if not (is_whole_number(index) and is_whole_number(count)):
            raise UserError(f"--shard {text!r}: give i/n with i from 0 to n - 1, for example 0/8")
        return cls(int(index), int(count))

    def bounds(self, total: int) -> tuple[int, int]:
        """Returns the bytes [first, last) of `total`; the last share includes the very end."""
        first, last = (total * i // self.count for i in (self.index, self.index + 1))
        return first, last + (self.index == self.count - 1)


@dataclass(frozen=True)
class Position:
    """A place between two blocks: files before it, and blocks before it in the next file."""

    file: int = 0
    block: int = 0


class PortionReader:
    """Hands out the blocks of a portion, from a position on, and tells how far it came.

    Attributes:
        paths: the inputs that begin in the portion.
        num_bytes: of the portion.
    """

    def __init__(self, files: Inputs, portion: Portion) -> None:
        self._files = files
        sizes = [files.sizes[path] for path in files.paths]
        self._edges = list(pairwise(accumulate(sizes, initial=0)))
        total = sum(sizes)
        self._first, self._last = portion.bounds(total)
        self.num_bytes = min(self._last, total) - self._first
        self.paths = [
            path
            for path, (start, _) in zip(files.paths, self._edges, strict=True)
            if self._contains(start)
        ]
        self._positions: deque[Position] = deque()

    def _contains(self, offset: int) -> bool:
        return self._first <= offset < self._last

    def work(
        self, start: Position, note: Callable[[str, int | None], None]
    ) -> Iterator[BlockOfSource]:
        """Yields the blocks after a position, in order.

        Args:
            start: what lies before it is left out.
            note: is told how far each file was read: bytes, or None at its end.
        """
        for number, path in enumerate(self._files.paths):
            begin, end = self._edges[number]
            if number < start.file or begin >= self._last or max(end, begin + 1) <= self._first:
                continue
            skipped = start.block if number == start.file else 0
            for index, work in enumerate(self._clip(self._files.blocks(path), begin)):
                if work is None or index < skipped:
                    continue
                self._positions.append(Position(number, index + 1))
                yield work
                note(path, work.block.offset if work.block.data is None else 0)
            note(path, None)

    def _clip(self, blocks: Iterator[BlockOfSource], begin: int) -> Iterator[BlockOfSource | None]:
        """Yields a file's blocks up to the portion's last, None for those of other portions."""
        is_inside = is_compressed = False
        for work in blocks:
            block = work.block
            # Blocks that carry their data come from files that have no other way in.
            is_compressed |= block.data is not None
            if not block.continues_document:
                offset = begin if is_compressed else begin + block.offset
                is_inside = self._contains(offset)
                if offset >= self._last or (is_compressed and not is_inside):
                    return
            yield work if is_inside else None

    def passed(self) -> Position:
        """Returns the position after the next block whose result has come."""
        return self._positions.popleft()


class InputHashes:
    """Hashes input files (SHA-256) soon after they are read for their text.

    Args:
        digests: hashes of files that are known already, by path.
    """

    def __init__(self, digests: Mapping[str, str]) -> None:
        self._digests = dict(digests)
        self._waiting: deque[str] = deque()
        self._limits: dict[str, int | None] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None

    def allow(self, path: str, limit: int | None) -> None:
        """Lets a file be read up to a place, or (None) to its end."""
        with self._changed:
            if path in self._digests:
                return
            if path not in self._limits:
                self._waiting.append(path)
            self._limits[path] = limit
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def ready(self) -> dict[str, str]:
        """Returns the hashes that are ready, by path."""
        with self._changed:
            return dict(self._digests)

    def finish(self, paths: list[str]) -> dict[str, str]:
        """Waits for the hashes of files, whatever was allowed before, and returns them.

        Raises:
            OSError: one cannot be read.
        """
        for path in paths:
            self.allow(path, None)
        with self._changed:
            while self._error is None and any(path not in self._digests for path in paths):
                self._changed.wait()
            if self._error is not None:
                raise self._error
            return {path: self._digests[path] for path in paths}

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while path := self._next():
                digest = self._hash(path)
                with self._changed:
                    if digest is not None:
                        self._digests[path] = digest
                    self._changed.notify_all()
        except OSError as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> str | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return None if self._closed else self._waiting.popleft()

    def _hash(self, path: str) -> str | None:
        digest, num_read = hashlib.sha256(), 0
        with open(path, "rb") as stream:
            while self._may_read(path, num_read + _HASH_BYTES):
                piece = stream.read(_HASH_BYTES)
                if not piece:
                    return digest.hexdigest()
                digest.update(piece)
                num_read += len(piece)
        return None

    def _may_read(self, path: str, end: int) -> bool:
        """Waits until a file may be read so far; False when all is over."""
        with self._changed:
            while not self._closed:
                limit = self._limits[path]
                if limit is None or end <= limit:
                    return True
                self._changed.wait()
            return False
