"""How long a trial may go on, and a bar that shows how far it is."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

_SHOWN_SECONDS = 30  # between lines where there is no terminal


class Clock:
    """A share of the time, which the trial that has it looks at.

    Args:
        trial: its name.
        seconds: of the share.
        unit: of what is counted, in the plural.
        stream: where to.
    """

    def __init__(self, trial: str, seconds: float, unit: str, stream: TextIO = sys.stderr) -> None:
        self.seconds = seconds
        self._started = self._shown = time.monotonic()
        self._trial, self._unit, self._stream = trial, unit, stream
        self._count = 0
        self._bar = tqdm(
            total=round(seconds),
            desc=trial,
            file=stream,
            disable=not stream.isatty(),
            bar_format="{desc:12} {percentage:3.0f}%|{bar}| {elapsed} of {total} s, {postfix}",
        )

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        return self.seconds - self.elapsed

    def counted(self, count: int = 1) -> None:
        """Counts what was done, and shows the rate and the time left."""
        self._count += count
        line = (
            f"{self._count} {self._unit}, {60 * self._count / self.elapsed:.1f}/min, "
            f"{max(0, self.left):.0f} s left"
        )
        self._bar.n = min(round(self.elapsed), self._bar.total)
        self._bar.set_postfix_str(line)
        is_due = time.monotonic() - self._shown > _SHOWN_SECONDS
        if self._bar.disable and is_due:
            self._shown = time.monotonic()
            print(f"{self._trial}: {line}", file=self._stream, flush=True)

    def close(self) -> None:
        self._bar.close()
        done = f"{self._trial}: {self._count} {self._unit} in {self.elapsed:.0f} s"
        print(done, file=self._stream, flush=True)
