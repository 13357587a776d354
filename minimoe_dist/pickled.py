"""Reads what PyTorch pickled as far as that goes without PyTorch, and runs nothing of it.

Tensors are read as their shapes; what is no plain value has a stand-in that knows nothing. Files
are archives, or, of PyTorch before 1.6, pickles one after the other.
"""

import argparse
import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

Shape = tuple[int, ...] | None  # None where that is not known
_TENSORS_MODULES = ("torch", "collections", "numpy", "_codecs", "builtins", "__builtin__")
_MOST_PICKLED_BYTES = 1 << 26  # of names and shapes; those of the largest models take a hundredth
_PARTS_OF_OLD = 4  # two numbers, the machine's sizes, the tensors


class UnsafePickleError(Exception):
    """A pickle that PyTorch's restricted unpickler would refuse; says what it names."""


@dataclass
class Pickled:
    """Takes the place of anything in a pickle that is no plain value.

    Attributes:
        shape: of a tensor.
        stored: how many numbers its storage has; None where that is not known.
    """

    shape: Shape = None
    stored: int | None = None

    def __setstate__(self, state: Any) -> None: ...

    @property
    def is_plain(self) -> bool:
        """Whether it is a tensor of a shape that one can have."""
        sizes = (None,) if self.shape is None else self.shape
        return all(type(size) is int and size >= 0 for size in sizes)

    @property
    def fits(self) -> bool:
        """Whether its numbers are stored, which a stride of 0 can hide."""
        return self.shape is None or self.stored is None or math.prod(self.shape) <= self.stored


def read_pickled(path: Path, also: Collection[str] = ()) -> Any:
    """Returns what a file holds; None for what only PyTorch reads.

    Args:
        path: of the file.
        also: names that a pickle may have besides those of tensors and plain values.

    Raises:
        UnsafePickleError: it names what is none of tensors' parts.
        ValueError: it is damaged, or no pickle.
        OSError: it cannot be read.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (member,) = (info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
            if member.file_size > _MOST_PICKLED_BYTES:
                return None
            pickled = archive.read(member)
        return _unpickled(io.BytesIO(pickled), also)
    with path.open("rb") as file:
        if file.read(1) != pickle.PROTO:
            raise ValueError("neither a pickle nor an archive that is whole")
        file.seek(0)
        state = None
        for _ in range(_PARTS_OF_OLD):
            state = _unpickled(file, also)
            if state is None:
                break
        return state


def _unpickled(file: IO[bytes], also: Collection[str]) -> Any:
    unpickler = _Unpickler(file, also)
    try:
        state = unpickler.load()
    except Exception:  # of what it names: whether PyTorch reads that is PyTorch's to say
        state = None
    if unpickler.foreign is not None:
        raise UnsafePickleError(unpickler.foreign)
    return state


class _Unpickler(pickle.Unpickler):
    """Reads tensors as their shapes. Only what is listed here is called, whatever is named.

    Attributes:
        foreign: the first name that is in none of the modules of which PyTorch allows some.
    """

    foreign: str | None = None

    def __init__(self, file: IO[bytes], also: Collection[str]) -> None:
        super().__init__(file)
        self._also = also

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        is_known = module.partition(".")[0] in _TENSORS_MODULES or full_name in self._also
        if self.foreign is None and not is_known:
            self.foreign = full_name
        if full_name == "collections.OrderedDict":
            return OrderedDict
        if full_name == "argparse.Namespace" and is_known:
            return argparse.Namespace  # a plain record
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _tensor
        if full_name == "torch._utils._rebuild_parameter":
            return lambda tensor, *others: tensor
        return lambda *arguments: Pickled()

    def persistent_load(self, pid: Any) -> Any:
        """Returns the number of numbers in a storage, which PyTorch names so."""
        count = pid[4] if isinstance(pid, tuple) and len(pid) > 4 else None
        return count if isinstance(count, int) else None


def _tensor(stored: int | None, offset: Any, size: Any, *others: Any) -> Pickled:
    return Pickled(tuple(size), stored)
