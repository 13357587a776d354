"""Counts bytes of tensors, apart by what becomes of them when they are freed.

On CPUs glibc keeps freed blocks of up to 32 MiB for later ones and gives larger ones back at once.
So the memory of a process is the largest sum of small tensors that there ever was, and the
largest sum of large ones, although the two need not be at one time. On GPUs torch counts what is
in use, and only sums at one time matter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_SMALL = 32 << 20  # glibc's largest threshold, M_MMAP_THRESHOLD's maximum
# Share of small tensors by which a heap outgrows them, measured over eight steps of a few runs;
# in half precision, and where experts are exchanged, it gets more holes.
HOLES, MORE_HOLES = 0.65, 0.9


@dataclass(frozen=True)
class Amount:
    """Bytes in blocks that a process keeps (`small`) and gives back (`large`) when freed."""

    small: float = 0.0
    large: float = 0.0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.small + other.small, self.large + other.large)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.small - other.small, self.large - other.large)

    @property
    def total(self) -> float:
        """The bytes of both."""
        return self.small + self.large


def tensors(*sizes: float) -> Amount:
    """Returns the amount of tensors of these sizes in bytes."""
    return Amount(
        sum(size for size in sizes if size <= _SMALL), sum(size for size in sizes if size > _SMALL)
    )


Moment = Mapping[str, Amount]  # part of a process -> what it holds at one time


@dataclass(frozen=True)
class Peak:
    """The memory of a process at its highest.

    Attributes:
        parts: bytes by part of the tensors that are in use then.
        retained: bytes that glibc keeps besides, in free blocks and in holes between used ones.
    """

    parts: dict[str, float]
    retained: float


def peak(moments: Iterable[Moment], holes: float = HOLES) -> Peak:
    """Finds the largest sum of parts at one time, and what a process on a CPU retains besides.

    Args:
        moments: of steps, whose small tensors come and go in a heap that gets holes.
        holes: share of small tensors by which the heap outgrows them.
    """
    sums = [(_sum(moment.values()), moment) for moment in moments]
    highest, best = max(sums, key=lambda pair: pair[0].total)
    heap = max(amount.small for amount, _ in sums) * (1 + holes)
    large = max(amount.large for amount, _ in sums)
    retained = max(0.0, heap + large - highest.total)
    return Peak({part: amount.total for part, amount in best.items()}, retained)


def _sum(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, start=Amount())
