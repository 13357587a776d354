"""Encodes a teacher's relation signals as a cache keeps them, and lays them out as batches.

Shapes: T tokens of all samples of a batch, B samples, S positions, H the teacher's width, n
signals: queries, keys and values, perhaps last states behind them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .batches import MicroBatch
from .packed import PackedBatch

_LARGEST = 127  # of 8 bits
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class SignalRows:
    """Holds signals as a cache does.

    Attributes:
        rows: float32, bfloat16 or int8 [..., n, H]; one for each token and signal.
        scales: float32 [..., n], what the 8 bits of each are to be multiplied by; None in other
            types.
    """

    rows: Tensor
    scales: Tensor | None = None

    @classmethod
    def encode(cls, signals: Sequence[Tensor], dtype: str) -> Self:
        """Makes rows of n signals, each [T, H].

        In int8 the largest number of each token's signal is 127; one that is not finite makes all
        of them so.

        Args:
            signals: of any floating type.
            dtype: ``float32``, ``bfloat16`` or ``int8``.
        """
        stacked = torch.stack(list(signals), dim=1)
        if dtype != "int8":
            return cls(stacked.to(DTYPES[dtype]))
        numbers = stacked.float()
        scales = numbers.abs().amax(-1) / _LARGEST
        divisors = torch.where(scales == 0, 1.0, scales)[..., None]
        return cls((numbers / divisors).nan_to_num().round().to(torch.int8), scales)

    def decode(self) -> tuple[Tensor, ...]:
        """Returns the n signals, each [..., H]; in float32, bfloat16 on GPUs."""
        numbers = self.rows
        if self.scales is not None:
            numbers = numbers.float() * self.scales[..., None]
            if numbers.device.type == "cuda":
                numbers = numbers.bfloat16()
        return tuple(signal.contiguous() for signal in numbers.unbind(-2))

    def tensors(self) -> list[Tensor]:
        """Returns what there is to move."""
        return [self.rows] if self.scales is None else [self.rows, self.scales]

    def on_each(self, move: Callable[[Tensor], Tensor]) -> SignalRows:
        """Returns the same with every tensor replaced by ``move`` of it."""
        return SignalRows(*map(move, self.tensors()))

    def laid_out(self, batch: MicroBatch | PackedBatch) -> SignalRows:
        """Lays rows of its tokens out as a batch is, with zeros where that has none."""
        if isinstance(batch, PackedBatch):
            return self.with_rows(batch.rows)
        return self.padded(batch.attention_mask)

    def with_rows(self, count: int) -> SignalRows:
        """Appends rows of zeros, so that there are ``count``."""

        def extended(tensor: Tensor) -> Tensor:
            result = tensor.new_zeros(count, *tensor.shape[1:])
            result[: len(tensor)] = tensor
            return result

        return self.on_each(extended)

    def padded(self, mask: Tensor) -> SignalRows:
        """Lays rows out as a batch is: [B, S, ...], zeros where ``mask``, bool [B, S], is False."""

        def laid_out(tensor: Tensor) -> Tensor:
            result = tensor.new_zeros(*mask.shape, *tensor.shape[1:])
            result[mask] = tensor
            return result

        return self.on_each(laid_out)

    def checksum(self) -> int:
        """Returns a CRC-32 of the bytes."""
        return checksum_of(*self.tensors())


def checksum_of(*tensors: Tensor) -> int:
    """Returns a CRC-32 of the bytes of tensors on the host."""
    result = 0
    for tensor in tensors:
        result = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, result)
    return result
