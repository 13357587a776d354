"""Steps of a recipe's shapes on random ids, and how long their parts take."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..data.batches import IGNORED_LABEL, MicroBatch
from ..data.row_counts import MASKED_SHARE, most_predicted
from .clocks import StepClock

METRICS = "metrics"  # behind a step's last part: what it found out, on its way to the host
_SPECIAL = 5  # ids below may be padding or masks


class Pending(Protocol):
    """Of a step: reading its numbers waits for it."""

    @property
    def metrics(self) -> object: ...


@dataclass(frozen=True)
class StepTimes:
    """Of some steps.

    Attributes:
        steps: of each, part -> seconds.
    """

    steps: list[dict[str, float]]

    @property
    def fastest(self) -> dict[str, float]:
        """The parts of the fastest step, which other work on the machine disturbed least."""
        return min(self.steps, key=lambda parts: sum(parts.values()))

    @property
    def seconds(self) -> float:
        """Of the fastest step."""
        return sum(self.fastest.values())

    @property
    def median_seconds(self) -> float:
        """Of all steps."""
        return statistics.median(sum(parts.values()) for parts in self.steps)


def make_micro_batches(
    *,
    samples: int,
    length: int,
    filled: float,
    accumulation: int,
    vocabulary: int,
    masked: bool,
    seed: int = 0,
) -> list[MicroBatch]:
    """A rank's micro-batches of a step, of random ids.

    Args:
        samples: of a micro-batch.
        length: of the longest of them, to which the others are padded.
        filled: share of positions that are no padding, as nearly as so many samples allow.
        accumulation: micro-batches.
        vocabulary: ids are below.
        masked: whether tokens are to be predicted.
        seed: of the ids.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = _lengths(samples, length, filled)
    made = []
    for number in range(accumulation):
        ids = torch.randint(
            min(_SPECIAL, vocabulary - 1), vocabulary, (samples, length), generator=generator
        )
        mask = torch.arange(length) < lengths[:, None]
        made.append(
            MicroBatch(
                input_ids=ids * mask,
                attention_mask=mask,
                token_type_ids=torch.zeros_like(ids),
                sample_ids=torch.arange(samples) + number * samples,
                labels=_labels(ids, lengths) if masked else None,
            )
        )
    return made


def _lengths(samples: int, length: int, filled: float) -> Tensor:
    """Many long ones and few short ones, as a corpus has them; their mean is that share of all."""
    places = (torch.arange(samples) + 0.5) / samples
    lengths = (length * places ** (1.0 / filled - 1.0)).round().long().clamp(min=1)
    lengths[-1] = length
    return lengths


def _labels(ids: Tensor, lengths: Tensor) -> Tensor:
    labels = torch.full_like(ids, IGNORED_LABEL)
    for row, length in enumerate(lengths.tolist()):
        count = max(1, min(most_predicted(ids.shape[1]), round(MASKED_SHARE * length)))
        labels[row, :count] = ids[row, :count]
    return labels


def measure_steps(
    train_step: Callable[[int], Pending],
    clock: StepClock,
    *,
    warm_up: int,
    steps: int,
    reads_behind: bool,
    tell: Callable[[], None] = lambda: None,
) -> StepTimes:
    """Runs steps as a training does, and times those behind the first ones.

    Args:
        train_step: of a number; it marks ``clock`` behind each of its parts.
        clock: that runs.
        warm_up: steps that are not counted: they compile, record and fill caches.
        steps: that are.
        reads_behind: whether a step's numbers are read when the next has been started, as on GPUs.
        tell: called behind each step.
    """
    before: Pending | None = None
    for number in range(warm_up + steps):
        clock.begin()
        pending: Pending | None = train_step(number)
        if reads_behind:
            pending, before = before, pending
        if pending is not None:
            _ = pending.metrics
        clock.mark(METRICS)
        tell()
    return StepTimes(clock.steps()[warm_up:])
