"""Files of tensors, whole under their names or not there at all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..durable import naming, replaced, share, written
from ..tensor_errors import io_errors


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file.

    Raises:
        OSError: the disk is full or broken.
    """
    with written(path) as aside, io_errors(path):
        save_file(dict(tensors), aside, metadata={"format": "pt"})
        share(aside)


@contextmanager
def replaced_model(folder: Path) -> Iterator[Path]:
    """Yields a folder to save a model into, as :func:`..durable.replaced` does.

    Raises:
        OSError: the disk is full or broken.
        UserError: something is there that was not written so.
    """
    with replaced(folder) as aside, naming(folder), io_errors(folder):
        yield aside
