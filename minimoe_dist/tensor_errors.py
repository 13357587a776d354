"""Says what safetensors' errors are in the words of the operating system."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


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
