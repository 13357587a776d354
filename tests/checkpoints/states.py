"""A student's state in memory, and ways to save it."""

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimoe_dist.checkpoints.run import (
    Ranks,
    StateEntry,
    load_checkpoint,
    newest_whole_checkpoint,
    read_progress,
    save_checkpoint,
)

KINDS = ("master", "exp_avg")
EXPERTS = 4
SHAPES = {"dense.bias": (3,), "dense.weight": (5, 3), "experts.weight": (EXPERTS, 2, 3)}


class MemoryState:
    """One rank's part of a student whose tensors are functions of a step.

    Args:
        step: 0 is a state of zeros, which no saved one is.
        rank, expert_parallel_size: this rank holds its share of the experts.
    """

    def __init__(
        self,
        step: int = 0,
        rank: int = 0,
        expert_parallel_size: int = 1,
        name: str = "student",
        shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    ) -> None:
        self.name = name
        self.rank = rank
        self.shapes = shapes
        self.size = expert_parallel_size
        self.steps = step
        self.tensors = {
            (entry.name, kind): self._whole(entry, kind, step)
            for entry in self.state_entries()
            for kind in KINDS
        }

    def _whole(self, entry: StateEntry, kind: str, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step * 100 + KINDS.index(kind))
        value = torch.randn(entry.shape, generator=generator) * (step > 0)
        return value if entry.local_experts is None else value[list(entry.local_experts)]

    def state_entries(self) -> Iterator[StateEntry]:
        for name, shape in sorted(self.shapes.items()):
            experts, owned = None, self.rank == 0
            if name.startswith("experts"):
                count = shape[0] // self.size
                first = self.rank % self.size * count
                experts, owned = range(first, first + count), self.rank < self.size
            yield StateEntry(name, KINDS, owned, shape, experts)

    def read_state(self, name: str, kind: str) -> Tensor:
        return self.tensors[name, kind].clone()

    def write_state(self, name: str, kind: str, value: Tensor) -> None:
        assert value.shape == self.tensors[name, kind].shape
        self.tensors[name, kind] = value

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
    return Ranks(0, 1, lambda: None)


def save(folder: Path, step: int, keep: int = 2) -> Path:
    """A checkpoint of a state that its step determines."""
    progress = {"step": step, "consumed_samples": step * 7}
    return save_checkpoint(folder, [MemoryState(step)], progress, alone(), keep)


def save_with_ranks(folder: Path, step: int, world_size: int, expert_parallel_size: int) -> list:
    """The same by threads, one a rank; returns what each raised, or None."""
    barrier = threading.Barrier(world_size, timeout=20)
    raised: list[BaseException | None] = [None] * world_size

    def one_rank(rank: int) -> None:
        state = MemoryState(step, rank, expert_parallel_size)
        try:
            ranks = Ranks(rank, world_size, barrier.wait)  # type: ignore[arg-type]
            save_checkpoint(folder, [state], {"step": step}, ranks)
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
