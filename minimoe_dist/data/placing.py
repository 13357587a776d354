"""Brings micro-batches from the loader to the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from .batches import MicroBatch
from .packed import PackedBatch, pack


class Recalled(Protocol):
    """What a teacher gave for a batch when it was asked before."""

    def laid_out(self, batch: MicroBatch | PackedBatch) -> Self:
        """Lays it out as a batch on the host is, from a row for each token or prediction."""

    def tensors(self) -> Sequence[Tensor]:
        """Returns what there is to move."""

    def on_each(self, move: Callable[[Tensor], Tensor]) -> Self:
        """Returns the same with every tensor replaced by ``move`` of it."""

    def decode(self) -> Any:
        """Returns what the objective's teacher gives for the batch."""


@dataclass(frozen=True)
class PlacedBatch:
    """Holds a micro-batch and its copy on the device.

    Attributes:
        micro: on the host, where what is counted is known.
        batch: on the device; without its padding where passes take that.
        ready: recorded behind the copy where that went by a stream of its own.
        recalled: what the teacher gave before, on the device and laid out as the batch is, where
            it is not asked again.
    """

    micro: MicroBatch
    batch: MicroBatch | PackedBatch
    ready: torch.cuda.Event | None = None
    recalled: Recalled | None = None

    def arrived(self) -> MicroBatch | PackedBatch:
        """Returns the batch on the device, for work of the current stream."""
        if self.ready is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.ready)
            recalled = self.recalled.tensors() if self.recalled is not None else []
            for tensor in [*self.batch.tensors(), *recalled]:
                tensor.record_stream(stream)
        return self.batch


class Placer:
    """Brings micro-batches to a device; may run in threads of its own.

    Copies to a GPU go by a stream of their own, beside its work.

    Args:
        device: where passes run.
        packed: leave padding out.
        longest: no sample of any batch is longer; None: than the batch's own longest one, which
            is right if batches are always padded to it.
    """

    def __init__(self, device: torch.device, *, packed: bool, longest: int | None = None) -> None:
        self._device = device
        self._packed = packed
        self._longest = longest
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, micro: MicroBatch, recalled: Recalled | None = None) -> PlacedBatch:
        """Starts a batch's way, and that of what the teacher gave for it before, if given."""
        batch: MicroBatch | PackedBatch = micro
        if self._packed:
            batch = pack(micro, self._longest or micro.input_ids.shape[1])
        if recalled is not None:
            recalled = recalled.laid_out(batch)
        if self._stream is None:
            placed = batch if self._packed else micro.to(self._device)
            return PlacedBatch(micro, placed, recalled=recalled)
        # It also sets the thread's device, on which memory is pinned.
        with torch.cuda.stream(self._stream):
            moved = batch.on_each(self._copied)
            if recalled is not None:
                recalled = recalled.on_each(self._copied)
            ready = torch.cuda.Event()
            ready.record()
        return PlacedBatch(micro, moved, ready, recalled)

    def _copied(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self._device, non_blocking=True)
