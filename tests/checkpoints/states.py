"""A student's state in memory, and ways to save it."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimoe_dist.checkpoints.run import (
    StateSlice,
    TrainingState,
    load_checkpoint,
    newest_whole_checkpoint,
    read_progress,
)
from minimoe_dist.checkpoints.writing import CheckpointWriter, Ranks, SnapshotMemory

KINDS = ("master", "exp_avg")
EXPERTS = 4
SHAPES = {"dense.bias": (3,), "dense.weight": (5, 3), "experts.weight": (EXPERTS, 2, 3)}


class MemoryState:
    """One rank's part of a student whose tensors are functions of a step.

    Args:
        step: 0 is a state of zeros, which no saved one is.
        rank, expert_parallel_size: this rank holds its share of the experts.
        world_size: ranks that share out what is written.
    """

    kinds = KINDS

    def __init__(
        self,
        step: int = 0,
        rank: int = 0,
        expert_parallel_size: int = 1,
        name: str = "student",
        shapes: Mapping[str, tuple[int, ...]] = SHAPES,
        world_size: int = 1,
    ) -> None:
        self.name = name
        self.rank = rank
        self.shapes = shapes
        self.size = expert_parallel_size
        self.steps = step
        self.world_size = max(world_size, expert_parallel_size)
        self.tensors = {
            (name, kind): self._values(name, kind, step) for name in shapes for kind in KINDS
        }

    def _values(self, name: str, kind: str, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step * 100 + KINDS.index(kind))
        value = torch.randn(self.shapes[name], generator=generator) * (step > 0)
        if not name.startswith("experts"):
            return value
        return value.chunk(self.size)[self.rank % self.size].clone()

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self.shapes)

    def state_slices(self) -> Iterator[StateSlice]:
        for (name, kind), tensor in self.tensors.items():
            values, start, rank, ranks = tensor.view(-1), 0, self.rank, self.world_size
            if name.startswith("experts"):
                start = self.rank % self.size * values.numel()
                rank, ranks = self.rank // self.size, self.world_size // self.size
            ends = [values.numel() * cut // ranks for cut in (rank, rank + 1)]
            yield StateSlice(name, kind, start, values, slice(*ends))

    def counters(self) -> dict[str, Any]:
        return {"adam_steps": self.steps}

    def finish_writing(self, counters: Mapping[str, Any]) -> None:
        self.steps = counters["adam_steps"]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, MemoryState)
        return self.steps == other.steps and all(
            torch.equal(value, other.tensors[key]) for key, value in self.tensors.items()
        )


def alone() -> Ranks:
    return Ranks(0, 1, lambda said: [said])


def save_checkpoint(
    folder: Path,
    students: Sequence[TrainingState],
    progress: Mapping[str, Any],
    ranks: Ranks,
    keep: int = 2,
) -> Path:
    """Copies and writes at once, as a start's first save does."""
    snapshot = SnapshotMemory().take(students, progress)
    return CheckpointWriter(folder, ranks, keep).write(snapshot)


def save(folder: Path, step: int, keep: int = 2) -> Path:
    """A checkpoint of a state that its step determines."""
    progress = {"step": step, "consumed_samples": step * 7}
    return save_checkpoint(folder, [MemoryState(step)], progress, alone(), keep)


class ThreadRanks:
    """Ranks that are threads."""

    def __init__(self, world_size: int) -> None:
        self._barrier = threading.Barrier(world_size, timeout=20)
        self._said: list[Any] = [None] * world_size

    def __getitem__(self, rank: int) -> Ranks:
        def exchange(said: Any) -> list[Any]:
            self._said[rank] = said
            self._barrier.wait()
            heard = list(self._said)
            self._barrier.wait()
            return heard

        return Ranks(rank, len(self._said), exchange)


def save_with_ranks(folder: Path, step: int, world_size: int, expert_parallel_size: int) -> list:
    """The same by threads, one a rank; returns what each raised, or None."""
    all_ranks = ThreadRanks(world_size)
    raised: list[BaseException | None] = [None] * world_size

    def one_rank(rank: int) -> None:
        state = MemoryState(step, rank, expert_parallel_size, world_size=world_size)
        try:
            save_checkpoint(folder, [state], {"step": step}, all_ranks[rank])
        except BaseException as error:
            raised[rank] = error

    threads = [threading.Thread(target=one_rank, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def loads_exactly(checkpoint: Path, step: int) -> bool:
    """Whether a checkpoint restores the whole state of its step."""
    state = MemoryState()
    progress = load_checkpoint(checkpoint, [state])
    return progress["step"] == step and state == MemoryState(step)


def newest_step(folder: Path) -> int:
    """The newest whole checkpoint's step, once it has been loaded and compared."""
    checkpoint = newest_whole_checkpoint(folder)
    assert checkpoint is not None
    step: int = read_progress(checkpoint)["step"]
    assert loads_exactly(checkpoint, step)
    return step


def names(folder: Path) -> list[str]:
    """What a folder holds."""
    return sorted(path.name for path in folder.iterdir())


def save_for_ever(folder: Path, first: int, tell: Callable[[int], None]) -> None:
    """Saves one step after another, telling each once it is safe."""
    for step in range(first, first + 100_000):
        save(folder, step)
        tell(step)
