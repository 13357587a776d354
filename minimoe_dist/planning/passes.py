"""Declares the passes of a step whose memory plans ask for, and the batch that they read.

Passes are not counted here but run: whoever plans a run's memory hands in something that runs its
modules without numbers (`recipes.meta_passes`). Nothing of this room imports torch.
"""

from dataclasses import dataclass
from typing import Protocol

from .amounts import Amount


@dataclass(frozen=True)
class Batch:
    """A rank's micro-batch.

    Attributes:
        samples: number of samples, B.
        length: positions of a sample, S.
        filled: share of positions that are no padding.
        packed: whether it comes without its padding.
        taught_padded: whether a teacher that is whole on each rank computes padding all the same.
    """

    samples: int
    length: int
    filled: float = 1.0
    packed: bool = False
    taught_padded: bool = False

    @property
    def positions(self) -> int:
        """The number of positions, N = B · S."""
        return self.samples * self.length

    @property
    def tokens(self) -> float:
        """The number of positions that are no padding, T."""
        return self.positions * self.filled


@dataclass(frozen=True)
class PassMemory:
    """The memory of tensors that a pass makes, beside weights and inputs.

    Attributes:
        peaks: amounts at the moments when all, small and large tensors are largest.
        result: amount that remains after the pass.
    """

    peaks: tuple[Amount, ...]
    result: Amount


class Passes(Protocol):
    """Measures the passes of a run; types are torch's names."""

    def teacher(self, batch: Batch, dtype: str) -> PassMemory:
        """Returns the memory of the teacher's pass; its signals are the result."""

    def student(
        self, index: int, batch: Batch, dtype: str, teacher_dtype: str, keeps_gradients: bool
    ) -> PassMemory:
        """Returns the memory of a student's forward pass with its objective, and backward.

        Args:
            index: the student's place in the run.
            batch: the micro-batch.
            dtype: type of its weights.
            teacher_dtype: type of the signals that it is compared with.
            keeps_gradients: whether gradients stay where they were made; under ZeRO each is freed
                as soon as it is summed up elsewhere.
        """
