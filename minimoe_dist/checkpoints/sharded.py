"""Hugging Face folders of weights that are never whole in memory.

Written in pieces as ``save_pretrained`` would make them, from tensors that come one by one.
"""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from ..durable import write_json
from ..model_description import WEIGHTS, WEIGHTS_INDEX
from .tensors import save_tensors

MAX_PIECE_BYTES = 10**9


def write_pieces(
    tensors: Iterable[tuple[str, Tensor]], folder: Path, max_bytes: int = MAX_PIECE_BYTES
) -> None:
    """Writes and flushes ``model.safetensors``, or pieces of it with their index.

    Holds one piece at a time.

    Args:
        tensors: names and values, which must not share memory.
        folder: exists.
        max_bytes: of a piece; one tensor may be larger.

    Raises:
        OSError: the disk is full or broken.
    """
    piece: dict[str, Tensor] = {}
    names: list[list[str]] = []
    size = total = 0

    def write() -> None:
        save_tensors(piece, folder / f"piece-{len(names):05d}")
        names.append(list(piece))
        piece.clear()

    for name, value in tensors:
        if piece and size + value.nbytes > max_bytes:
            write()
            size = 0
        piece[name] = value.contiguous()
        size += value.nbytes
        total += value.nbytes
    write()
    weight_map: dict[str, str] = {}
    count = len(names)
    for index, piece_names in enumerate(names):
        final = WEIGHTS if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
        (folder / f"piece-{index:05d}").rename(folder / final)
        weight_map |= dict.fromkeys(piece_names, final)
    if count > 1:
        metadata = {"total_size": total}
        write_json(folder / WEIGHTS_INDEX, {"metadata": metadata, "weight_map": weight_map})
