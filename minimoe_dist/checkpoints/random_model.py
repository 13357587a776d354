"""Folders of models with random weights: for layouts, memory and speed without the real ones."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..models.auto import AutoModel
from .sharded import MAX_PIECE_BYTES, write_pieces
from .tensors import replaced_model


def write_random_model(
    config: PreTrainedConfig,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    max_bytes: int = MAX_PIECE_BYTES,
) -> None:
    """Writes an encoder with random weights, piece by piece: the whole is never in memory.

    Matrices are normal with ``initializer_range``, biases 0, LayerNorms 1. A weight depends on its
    name and the seed alone.

    Args:
        config: of the encoder.
        folder: where to; an earlier one there is replaced.
        dtype: of the weights.
        seed: of the weights.
        max_bytes: of a file.
    """
    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=dtype)
    config.architectures, config.dtype = [type(model).__name__], dtype
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    with replaced_model(Path(folder)) as aside:
        config.save_pretrained(aside)
        write_pieces(_weights(shapes, config.initializer_range, dtype, seed), aside, max_bytes)


def _weights(
    shapes: dict[str, torch.Size], deviation: float, dtype: torch.dtype, seed: int
) -> Iterator[tuple[str, Tensor]]:
    for name, shape in shapes.items():
        if len(shape) == 1:
            fill = torch.zeros if name.endswith("bias") else torch.ones
            yield name, fill(shape, dtype=dtype)
            continue
        generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        yield name, torch.empty(shape, dtype=dtype).normal_(0.0, deviation, generator=generator)
