"""What plans ask of the passes of a step, and what passes read.

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
        samples: B.
        length: S, positions of a sample.
        filled: share of positions that are no padding.
        packed: whether it comes without its padding.
    """

    samples: int
    length: int
    filled: float = 1.0
    packed: bool = False

    @property
    def positions(self) -> int:
        """N = B · S."""
        return self.samples * self.length

    @property
    def tokens(self) -> float:
        """T, positions that are no padding."""
        return self.positions * self.filled


@dataclass(frozen=True)
class PassMemory:
    """Tensors that a pass makes, beside weights and what it is given.

    Attributes:
        peaks: at the moments when most is there of all, of small and of large ones.
        result: what is left when the pass has ended.
    """

    peaks: tuple[Amount, ...]
    result: Amount


class Passes(Protocol):
    """The passes of a run; types are torch's names."""

    def teacher(self, batch: Batch, dtype: str) -> PassMemory:
        """The teacher's, with its signals as the result."""

    def student(
        self, index: int, batch: Batch, dtype: str, teacher_dtype: str, keeps_gradients: bool
    ) -> PassMemory:
        """A student's, forward with its objective and backward.

        Args:
            index: the student's place in the run.
            batch: the micro-batch.
            dtype: of its weights.
            teacher_dtype: of the signals that it is compared with.
            keeps_gradients: whether gradients stay where they were made; as under ZeRO, each is
                gone as soon as it is summed up elsewhere.
        """
