"""Which blocks of the inputs a machine reads, where it goes on, and the inputs' hashes.

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
        if not (index.isdecimal() and count.isdecimal()):
            raise UserError(f"--shard {text!r}: give i/n with i from 0 to n - 1, for example 0/8")
        return cls(int(index), int(count))

    def bounds(self, total: int) -> tuple[int, int]:
        """The bytes [first, last) of `total`; what lies at the very end is the last share's."""
        first, last = (total * i // self.count for i in (self.index, self.index + 1))
        return first, last + (self.index == self.count - 1)


@dataclass(frozen=True)
class Position:
    """A place between two blocks: files before it, and blocks before it in the next file."""

    file: int = 0
    block: int = 0


class PortionReader:
    """The blocks of a portion, from a position on, as a row that tells how far it was taken.

    Attributes:
        own: the inputs that begin in the portion.
        num_bytes: of the portion.
    """

    def __init__(self, files: Inputs, portion: Portion) -> None:
        self._files = files
        sizes = [files.sizes[path] for path in files.paths]
        self._edges = list(pairwise(accumulate(sizes, initial=0)))
        total = sum(sizes)
        self._first, self._last = portion.bounds(total)
        self.num_bytes = min(self._last, total) - self._first
        self.own = [
            path
            for path, (start, _) in zip(files.paths, self._edges, strict=True)
            if self._holds(start)
        ]
        self._taken: deque[Position] = deque()

    def _holds(self, place: int) -> bool:
        return self._first <= place < self._last

    def work(
        self, start: Position, note: Callable[[str, int | None], None]
    ) -> Iterator[BlockOfSource]:
        """The blocks after a position, in order.

        Args:
            start: what lies before it is left out.
            note: is told how far each file was read: bytes, or None at its end.
        """
        for number, path in enumerate(self._files.paths):
            begin, end = self._edges[number]
            if number < start.file or begin >= self._last or max(end, begin + 1) <= self._first:
                continue
            skipped = start.block if number == start.file else 0
            for index, work in enumerate(self._share(self._files.blocks(path), begin)):
                if work is None or index < skipped:
                    continue
                self._taken.append(Position(number, index + 1))
                yield work
                note(path, work.block.offset if work.block.data is None else 0)
            note(path, None)

    def _share(self, blocks: Iterator[BlockOfSource], begin: int) -> Iterator[BlockOfSource | None]:
        """The blocks of one file, None for each that other portions read, up to the last own."""
        is_own = is_compressed = False
        for work in blocks:
            block = work.block
            # Blocks that carry their data come from files that have no other way in.
            is_compressed |= block.data is not None
            if not block.continues_document:
                place = begin if is_compressed else begin + block.offset
                is_own = self._holds(place)
                if place >= self._last or (is_compressed and not is_own):
                    return
            yield work if is_own else None

    def passed(self) -> Position:
        """The position after the next block whose result has come."""
        return self._taken.popleft()


class InputHashes:
    """SHA-256 of input files, read soon after they are read for their text.

    Args:
        known: hashes of files that are known already, by path.
    """

    def __init__(self, known: Mapping[str, str]) -> None:
        self._found = dict(known)
        self._waiting: deque[str] = deque()
        self._limits: dict[str, int | None] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None

    def allow(self, path: str, limit: int | None) -> None:
        """Lets a file be read up to a place, or (None) to its end."""
        with self._changed:
            if path in self._found:
                return
            if path not in self._limits:
                self._waiting.append(path)
            self._limits[path] = limit
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def found(self) -> dict[str, str]:
        """The hashes that are ready, by path."""
        with self._changed:
            return dict(self._found)

    def finish(self, paths: list[str]) -> dict[str, str]:
        """The hashes of some files, whatever was allowed before.

        Raises:
            OSError: one cannot be read.
        """
        for path in paths:
            self.allow(path, None)
        with self._changed:
            while self._error is None and any(path not in self._found for path in paths):
                self._changed.wait()
            if self._error is not None:
                raise self._error
            return {path: self._found[path] for path in paths}

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
                        self._found[path] = digest
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
        digest, place = hashlib.sha256(), 0
        with open(path, "rb") as stream:
            while self._may_read(path, place + _HASH_BYTES):
                piece = stream.read(_HASH_BYTES)
                if not piece:
                    return digest.hexdigest()
                digest.update(piece)
                place += len(piece)
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
