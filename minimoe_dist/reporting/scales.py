"""Maps data to coordinates, chooses round ticks, and formats numbers as people write them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Scale:
    """Maps data to coordinates.

    Attributes:
        low: smallest value of the axis.
        high: largest value of the axis.
        start: coordinate of ``low``.
        end: coordinate of ``high``.
        logarithmic: whether equal factors are equal lengths.
        ticks: values to write down.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool
    ticks: list[float] = field(default_factory=list)

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, logarithmic: bool) -> "Scale":
        """Makes a scale with some room around values; it begins at 0 where they come near it."""
        low, high = min(values), max(values)
        if logarithmic:
            margin = 1.3 if high > low else 2.0
            low, high = low / margin, high * margin
            return cls(low, high, start, end, True, _log_ticks(low, high))
        if low == high == 0:
            high = 1.0  # losses and scores begin at 0
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        if 0 <= low < 0.25 * high:
            low, high = 0.0, high + margin
        else:
            low, high = low - margin, high + margin
        return cls(low, high, start, end, False, _ticks(low, high))

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        ticks = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(ticks) >= 3:
            return ticks[:: 1 + len(ticks) // 7]
    return [tick for tick in _ticks(low, high) if tick > 0]


def number(value: float) -> str:
    """Formats a number in a few digits, without an exponent where people use none."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    for least, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= least * (10 if unit == "k" else 1):
            return f"{value / least:.3g}{unit}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 1e-4 else f"{value:.1e}"
