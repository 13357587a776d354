"""Micro-batches on their way from the loader to the device."""

from dataclasses import dataclass

import torch

from ..data.batches import MicroBatch
from ..data.packed import PackedBatch, pack


@dataclass(frozen=True)
class PlacedBatch:
    """A micro-batch and its copy on the device.

    Attributes:
        micro: on the host, where what is counted is known.
        batch: on the device; without its padding where passes take that.
        ready: recorded behind the copy where that went by a stream of its own.
    """

    micro: MicroBatch
    batch: MicroBatch | PackedBatch
    ready: torch.cuda.Event | None = None

    def arrived(self) -> MicroBatch | PackedBatch:
        """The batch, for work of the current stream."""
        if self.ready is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.ready)
            assert isinstance(self.batch, PackedBatch)
            self.batch.numbers.record_stream(stream)
        return self.batch


class Placer:
    """Brings micro-batches to a device; may run in a thread of its own.

    Args:
        device: where passes run.
        packed: leave padding out.
        longest: no sample of any batch is longer; None: than the batch's own longest one, which
            is right if batches are always padded to it.
        own_stream: copy beside the current stream's work, which then waits for it.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        packed: bool,
        longest: int | None = None,
        own_stream: bool = False,
    ) -> None:
        self._device = device
        self._packed = packed
        self._longest = longest
        self._stream = torch.cuda.Stream(device) if own_stream else None

    def __call__(self, micro: MicroBatch) -> PlacedBatch:
        if not self._packed:
            return PlacedBatch(micro, micro.to(self._device))
        batch = pack(micro, self._longest or micro.input_ids.shape[1])
        if self._device.type != "cuda":
            return PlacedBatch(micro, batch)
        pinned = batch.numbers.pin_memory()
        if self._stream is None:
            moved = pinned.to(self._device, non_blocking=True)
            return PlacedBatch(micro, batch.with_numbers(moved))
        with torch.cuda.stream(self._stream):
            moved = pinned.to(self._device, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        return PlacedBatch(micro, batch.with_numbers(moved), ready)
