"""Files of tensors, whole under their names or not there at all."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..durable import naming, replaced, share, written


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


@contextmanager
def io_errors(path: Path) -> Iterator[None]:
    """Raises safetensors' errors inside, its word for a full disk, as the OSError they are."""
    try:
        yield
    except SafetensorError as error:
        if code := re.search(r"(?:os error|code:) (\d+)", str(error)):
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise OSError(f"{path}: {error}") from error
