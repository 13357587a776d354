"""Shows how far the reading of inputs is: a bar on a terminal, lines elsewhere."""

import sys
import time
from typing import Any, Self

from tqdm import tqdm  # type: ignore[import-untyped]

_LINE_SECONDS = 15.0


class BytesProgress:
    """A bar on a terminal; elsewhere a line now and then, since a bar would fill a log with itself.

    Args:
        label: what goes on.
        total: bytes at the end.
        done: bytes of these that were done before.
        shown: False shows nothing.
    """

    def __init__(self, label: str, total: int, done: int = 0, *, shown: bool = True) -> None:
        self._label, self._total, self._first, self._done = label, max(total, done), done, done
        self._started = self._told = time.monotonic()
        self._tells = shown and not sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        if shown and not self._tells:
            self._bar = tqdm(
                desc=label,
                initial=done,
                total=self._total,
                unit="B",
                unit_scale=True,
                dynamic_ncols=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._tells and kind is None:  # else the error has the last word
            self._tell()

    def update(self, count: int) -> None:
        """Counts bytes that were read."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._tells and time.monotonic() - self._told >= _LINE_SECONDS:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        rate = (self._done - self._first) / max(1e-9, self._told - self._started)
        share = self._done / self._total if self._total else 1.0
        line = f"{self._label}: {share:.0%} of {_size(self._total)}, {_size(rate)}/s"
        if self._done < self._total and rate:
            line += f", {tqdm.format_interval((self._total - self._done) / rate)} left"
        print(line, file=sys.stderr, flush=True)


def _size(count: float) -> str:
    return f"{tqdm.format_sizeof(count)}B"
