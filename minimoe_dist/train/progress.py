"""Shows how far something is: a bar on a terminal, lines elsewhere."""

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, Self, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

# Not more often: postfixes are for eyes.
_POSTFIX_SECONDS = 0.5
_LINE_SECONDS = 10.0  # between lines of what has no lines of its own


class Progress:
    """A bar on a terminal; elsewhere lines, since a bar would fill a log with itself.

    A stream that takes nothing more, of a terminal that was closed or a log on a full disk, ends
    nothing.

    Args:
        stream: where to; None: nowhere.
        total_steps: at the end.
        first_step: steps done before.
        activity: what goes on, for the bar.
        label: of what, before each line and in the bar.
    """

    def __init__(
        self,
        stream: TextIO | None,
        total_steps: int,
        first_step: int,
        activity: str = "distilling",
        label: str = "",
    ) -> None:
        if label:
            activity = f"{activity} {label}"
        self._prefix = f"{label}: " if label else ""
        self._stream = None if stream is None else _Forgiving(stream)
        self._total_steps = total_steps
        self._first_step = first_step
        self._started = time.perf_counter()
        self._postfix_at = -math.inf
        self._activity = activity
        self._phase: str | None = None
        self._bar: tqdm[Any] | None = None
        if stream is not None and stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=first_step,
                file=self._stream,
                desc=activity,
                unit="step",
                dynamic_ncols=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def phase(self, text: str | None) -> None:
        """Shows what goes on instead of steps, until None."""
        if text == self._phase:
            return
        self._phase = text
        if self._bar is not None:
            self._bar.set_description(text or self._activity)
        elif text is not None:
            self._print(f"{self._prefix}{text}")

    def advance(self, numbers: Mapping[str, float]) -> None:
        """Counts one step more."""
        if self._bar is None:
            return
        if time.perf_counter() - self._postfix_at >= _POSTFIX_SECONDS:
            self._postfix_at = time.perf_counter()
            self._bar.set_postfix_str(_readable(numbers), refresh=False)
        self._bar.update()

    def print_step(self, step: int, numbers: Mapping[str, float], suffix: str = "") -> None:
        """Prints a line, above the bar where there is one."""
        told = f"  {_readable(numbers)}" if numbers else ""
        self._print(f"{self._prefix}step {step}/{self._total_steps}{told}{suffix}")

    def print_without_bar(self, step: int, numbers: Mapping[str, float]) -> None:
        """Prints a line with the time left, unless a bar shows both."""
        if self._bar is None:
            self.print_step(step, numbers, f", {self._time_left(step)} left")

    def print_labelled(self, label: str, numbers: Mapping[str, float], step: int) -> None:
        """Prints a line under a label with the time left at most, also above a bar."""
        self._print(f"{label}  {_readable(numbers)}, at most {self._time_left(step)} left")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        elif self._stream is not None:
            print(line, file=self._stream, flush=True)

    def _time_left(self, step: int) -> str:
        done = max(1, step - self._first_step)
        seconds = (time.perf_counter() - self._started) / done * (self._total_steps - step)
        return _clock(seconds)


class TimedProgress(AbstractContextManager["TimedProgress"]):
    """Progress with a line now and then, where there is no bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._since = time.monotonic()
        self.advance = progress.advance

    def tell(self, done: int, *, is_last: bool) -> None:
        """Tells how much is done, if it is time, or nothing is left to do."""
        if is_last or time.monotonic() - self._since >= _LINE_SECONDS:
            self._since = time.monotonic()
            self._progress.print_without_bar(done, {})

    def __exit__(self, *exception: object) -> None:
        self._progress.close()


class _Forgiving:
    """A stream whose errors are nobody's."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _readable(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
