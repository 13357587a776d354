"""Files of tensors, whole under their names or not there at all."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..durable import share, written


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file.

    Raises:
        OSError: the disk is full or broken.
    """
    with written(path) as aside:
        try:
            save_file(dict(tensors), aside, metadata={"format": "pt"})
        except SafetensorError as error:  # its word for a full disk too
            raise OSError(f"{path}: {error}") from error
        share(aside)
