"""Weights of a model folder, read tensor by tensor or in slices, so that nothing is held whole.

One ``model.safetensors`` or the parts that ``model.safetensors.index.json`` lists; of those only
the ones that hold something wanted are opened (and, from the hub, fetched).
"""

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from ..errors import UserError, first_line
from ..model_description import PICKLE, PICKLE_INDEX, WEIGHTS, WEIGHTS_INDEX


def refuse_incomplete(
    source: str, model_type: str, missing: list[str], mismatched: list[str]
) -> None:
    """Refuses weights that are not those of the configuration.

    Args:
        source: option and value, for the message.
        model_type: of the configuration.
        missing: names of weights that are not there.
        mismatched: names of those of another shape.

    Raises:
        UserError: one of the lists is not empty.
    """
    # transformers fills both with random numbers and only prints a warning.
    for fault, names in (
        ("are missing", sorted(missing)),
        ("have another shape than config.json says", sorted(mismatched)),
    ):
        if names:
            raise UserError(
                f"{source}: {len(names)} weights of a {model_type} encoder {fault}, the first is "
                f"{names[0]}; give the checkpoint and the configuration of one model"
            )


class FolderWeights:
    """The tensors of a model folder by their names on disk, read when they are asked for.

    Args:
        source: what the user gave, for messages.
        folder: where that is, or its name on the hub.
        pickles: take a pickle, of tensors alone, where there are no safetensors.

    Raises:
        UserError: there are no weights, or their index or pickle cannot be read.
    """

    def __init__(self, source: str, folder: str, *, pickles: bool = False) -> None:
        self._source, self._folder = source, folder
        self._path_of: dict[str, str] = {}  # name of a file -> where it is
        self._pickled: dict[str, Tensor] = {}
        self._part_of = self._parts(pickles)

    def __contains__(self, name: object) -> bool:
        return name in self._part_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._part_of)

    def shapes(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """The shapes of some tensors; reads the header of each of their files once.

        Raises:
            UserError: a file is missing or damaged.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        part_of = self._part_of.__getitem__
        for part, group in groupby(sorted(names, key=part_of), part_of):
            if not part:
                shapes |= {name: tuple(self._pickled[name].shape) for name in group}
                continue
            try:
                with self._open(part) as opened:
                    shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in group}
            except SafetensorError as error:  # the index promises what is not there
                raise self._unreadable(part, error) from error
        return shapes

    def read(self, name: str, slices: tuple[slice, ...] = ()) -> Tensor:
        """One tensor, or a part of it.

        Raises:
            UserError: there is none of that name, or its file is missing or damaged.
        """
        if name not in self._part_of:
            raise UserError(f"{self._source}: has no weight {name}; give the model's whole folder")
        if name in self._pickled:
            return self._pickled[name][slices]
        part = self._part_of[name]
        # Opened anew each time: pages of a file that stays mapped would count as this process's.
        try:
            with self._open(part) as opened:
                tensor: Tensor = (
                    opened.get_slice(name)[slices] if slices else opened.get_tensor(name)
                )
        except SafetensorError as error:
            raise self._unreadable(part, error) from error
        return tensor

    def _parts(self, pickles: bool) -> dict[str, str]:
        """Key -> name of the file that holds it."""
        if self._find(WEIGHTS) is not None:
            with self._open(WEIGHTS) as opened:
                return dict.fromkeys(opened.keys(), WEIGHTS)
        if self._find(WEIGHTS_INDEX) is not None:
            return self._index(WEIGHTS_INDEX)
        if not pickles:
            raise UserError(
                f"{self._source} has no model.safetensors, and only safetensors can be read in "
                "shards; convert it with transformers' save_pretrained, or give teacher.layout "
                "replicated"
            )
        if self._find(PICKLE) is not None:
            files = [PICKLE]
        elif self._find(PICKLE_INDEX) is not None:
            files = sorted(set(self._index(PICKLE_INDEX).values()))
        else:
            raise UserError(f"{self._source}: no {WEIGHTS}; give a Hugging Face model's folder")
        for part in files:
            self._pickled |= self._unpickled(part)
        return dict.fromkeys(self._pickled, "")

    def _index(self, index: str) -> dict[str, str]:
        try:
            with open(self._path_of[index], encoding="utf-8") as file:
                parts: Any = json.load(file)["weight_map"]
            return {str(name): str(part) for name, part in parts.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._unreadable(index, error) from error

    def _unpickled(self, part: str) -> dict[str, Tensor]:
        path = self._path(part)
        try:
            # Files from before PyTorch 1.6 are no archives and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            return {name: value.detach() for name, value in state.items()}
        except Exception as error:  # torch has many kinds for what is damaged or unsafe
            raise self._unreadable(part, error) from error

    def _find(self, part: str) -> str | None:
        if part not in self._path_of:
            path = cached_file(
                self._folder,
                part,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            if path is None:
                return None
            self._path_of[part] = path
        return self._path_of[part]

    def _path(self, part: str) -> str:
        path = self._find(part)
        if path is None:
            raise self._unreadable(part, FileNotFoundError("no such file"))
        return path

    def _open(self, part: str) -> safe_open:
        try:
            return safe_open(self._path(part), framework="pt")
        except (OSError, SafetensorError) as error:
            raise self._unreadable(part, error) from error

    def _unreadable(self, part: str, error: Exception) -> UserError:
        reason = first_line(error)
        return UserError(
            f"{self._source} has no weights that can be loaded ({part}: {reason}); give a complete "
            "model.safetensors"
        )


class SlicedWeights:
    """What is on disk under the names that a model gives its parameters.

    Args:
        path: of the teacher as the user gave it, for messages.
        folder: where that is, or its name on the hub.
        prefix: of the encoder's names where a head stands beside it (``bert``).

    Raises:
        UserError: there are no safetensors, or none that can be read.
    """

    def __init__(self, path: str, folder: str, prefix: str) -> None:
        self._source = f"teacher.model_name_or_path: {path}"
        self._prefix = prefix
        self._weights = FolderWeights(self._source, folder)

    def check(self, model_type: str, shapes: Mapping[str, torch.Size]) -> None:
        """Refuses a model whose parameters are not all there; reads headers only.

        Args:
            model_type: for the message.
            shapes: of the parameters, by name.

        Raises:
            UserError: one is missing or has another shape.
        """
        keys = {name: self._key(name) for name in shapes}
        missing = [name for name, key in keys.items() if key is None]
        refuse_incomplete(self._source, model_type, missing, [])
        on_disk = self._weights.shapes(key for key in keys.values() if key is not None)
        wrong = [name for name, key in keys.items() if key and on_disk[key] != shapes[name]]
        refuse_incomplete(self._source, model_type, [], wrong)

    def copy_into(self, target: Tensor, name: str, dim: int = 0, start: int = 0) -> None:
        """Fills ``target`` with a parameter, or with the slice of it that has ``target``'s shape.

        Args:
            target: any device and floating-point type.
            name: the model's for the parameter.
            dim: along which ``target`` is a slice.
            start: of the slice.

        Raises:
            UserError: the file is damaged.
        """
        key = self._key(name)
        assert key is not None, f"{name} was not checked"
        slices = [slice(None)] * target.dim()
        slices[dim] = slice(start, start + target.shape[dim])
        target.copy_(self._weights.read(key, tuple(slices)))

    def _key(self, name: str) -> str | None:
        """The name on disk: perhaps of an encoder under a head, perhaps TensorFlow's."""
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old = old.replace("LayerNorm.bias", "LayerNorm.beta")
        for candidate in dict.fromkeys([name, old]):
            for key in (candidate, f"{self._prefix}.{candidate}"):
                if key in self._weights:
                    return key
        return None
