"""Hugging Face folders of weights that are never whole in memory.

Written in pieces as ``save_pretrained`` would make them, from tensors that come one by one; read
tensor by tensor, from safetensors wherever there are some.
"""

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .files import PARTIAL, beside, save_tensors, write_json

MAX_PIECE_BYTES = 10**9
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLE, _PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


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
        save_tensors(piece, folder / f"piece-{len(names):05d}{PARTIAL}")
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
    for number, held in enumerate(names):
        last = len(names)
        final = _WHOLE if last == 1 else f"model-{number + 1:05d}-of-{last:05d}.safetensors"
        (folder / f"piece-{number:05d}{PARTIAL}").rename(folder / final)
        weight_map |= dict.fromkeys(held, final)
    if len(names) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(beside(folder / _INDEX, PARTIAL), index)
        beside(folder / _INDEX, PARTIAL).rename(folder / _INDEX)


class FolderWeights:
    """The tensors of a Hugging Face folder, read when they are asked for.

    Use as a context manager. Of a pickle, which is read where there are no safetensors, only
    tensors are accepted.

    Raises:
        ValueError: the folder has no weights, or a file of them is missing or unreadable.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._files = ExitStack()
        self._get: dict[str, Callable[[], Tensor]] = {}
        for path in _weight_files(self._folder):
            try:
                opened = self._open_safe(path) if path.suffix == ".safetensors" else _pickle(path)
            except Exception as error:  # each reader has its own; torch's runs over many lines
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ValueError(
                    f"{path}: missing, damaged, or of more than tensors ({reason}); give a folder "
                    "with a complete model.safetensors"
                ) from error
            self._get |= opened

    def _open_safe(self, path: Path) -> dict[str, Callable[[], Tensor]]:
        file = self._files.enter_context(safe_open(path, "pt"))
        return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.close()

    def __contains__(self, name: str) -> bool:
        return name in self._get

    def __iter__(self) -> Iterator[str]:
        return iter(self._get)

    def __getitem__(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            ValueError: there is none of that name, or its file is damaged.
        """
        if name not in self._get:
            raise ValueError(f"{self._folder}: has no weight {name}; give the model's whole folder")
        try:
            return self._get[name]()
        except SafetensorError as error:
            raise ValueError(f"{self._folder}: {name} cannot be read ({error})") from error


def _pickle(path: Path) -> dict[str, Callable[[], Tensor]]:
    # Files from before PyTorch 1.6 are no archives and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    return {name: value.detach for name, value in state.items()}


def _weight_files(folder: Path) -> list[Path]:
    for whole, index in ((_WHOLE, _INDEX), (_PICKLE, _PICKLE_INDEX)):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            weight_map = json.loads((folder / index).read_text("utf-8"))["weight_map"]
            return [folder / name for name in sorted(set(weight_map.values()))]
    raise ValueError(f"{folder}: no {_WHOLE}; give a Hugging Face model's folder")
