"""Reads a model folder's weights tensor by tensor or in slices, so that nothing is held whole.

One ``model.safetensors`` or the parts that ``model.safetensors.index.json`` lists; of those only
the ones that hold something wanted are opened (and, from the hub, fetched).
"""

import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from ..encoder_families import EncoderFamily, StoredPlace
from ..errors import UserError, first_line
from ..foreign import read_json
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


def refuse_unread(
    source: str,
    model_type: str,
    family: EncoderFamily | None,
    names: Iterable[str],
    layers: int,
) -> None:
    """Refuses maps of a teacher's layers that its class does not have.

    With them a checkpoint is of another architecture, and without them other signals come of it.

    Args:
        source: option and value, for the message.
        model_type: of the configuration.
        family: of the encoder; nothing is refused of students.
        names: that are in a checkpoint and not in the model, with or without the encoder's prefix.
        layers: how many are read.

    Raises:
        UserError: one of the names is of such a layer.
    """
    if family is None:
        return
    read = tuple(
        place.name
        for number in range(layers)
        for place in family.places_of(f"{family.shared_layer or f'{family.layers}.{number}'}.")
    )
    starts = tuple(prefix + place for prefix in ("", *family.prefixes) for place in read)
    unread = sorted(
        name
        for name in names
        if name.startswith(starts)
        and name.endswith((".weight", ".bias"))
        and ".crossattention." not in name  # what a decoder had beside the encoder's own
    )
    if unread:
        raise UserError(
            f"{source}: {len(unread)} weights are of no {model_type} encoder and would not be "
            f"read, the first is {unread[0]}; give the checkpoint and the configuration of one "
            "model"
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
        self._paths: dict[str, str] = {}  # name of a file -> where it is
        self._pickled: dict[str, Tensor] = {}
        self._file_of = self._locate_tensors(pickles)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def shapes(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of some tensors; reads the header of each of their files once.

        Raises:
            UserError: a file is missing or damaged.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        file_of = self._file_of.__getitem__
        for file_name, group in groupby(sorted(names, key=file_of), file_of):
            if not file_name:
                shapes |= {name: tuple(self._pickled[name].shape) for name in group}
                continue
            try:
                with self._open(file_name) as opened:
                    shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in group}
            except SafetensorError as error:  # the index promises what is not there
                raise self._unreadable(file_name, error) from error
        return shapes

    def read(self, name: str, slices: tuple[slice, ...] = ()) -> Tensor:
        """Reads one tensor, or a part of it.

        Raises:
            UserError: there is none of that name, or its file is missing or damaged.
        """
        if name not in self._file_of:
            raise UserError(f"{self._source}: has no weight {name}; give the model's whole folder")
        if name in self._pickled:
            return self._pickled[name][slices]
        file_name = self._file_of[name]
        # Opened anew each time: pages of a file that stays mapped would count as this process's.
        try:
            with self._open(file_name) as opened:
                tensor: Tensor = (
                    opened.get_slice(name)[slices] if slices else opened.get_tensor(name)
                )
        except SafetensorError as error:
            raise self._unreadable(file_name, error) from error
        return tensor

    def _locate_tensors(self, pickles: bool) -> dict[str, str]:
        """Finds the file of each tensor, by the names of both."""
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
        for file_name in files:
            self._pickled |= self._unpickled(file_name)
        return dict.fromkeys(self._pickled, "")

    def _index(self, index: str) -> dict[str, str]:
        try:
            parts: Any = read_json(self._paths[index])["weight_map"]
            return {str(name): str(file_name) for name, file_name in parts.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._unreadable(index, error) from error

    def _unpickled(self, file_name: str) -> dict[str, Tensor]:
        path = self._path(file_name)
        try:
            # Files from before PyTorch 1.6 are no archives and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            return {name: value.detach() for name, value in state.items()}
        except Exception as error:  # torch has many kinds for what is damaged or unsafe
            raise self._unreadable(file_name, error) from error

    def _find(self, file_name: str) -> str | None:
        if file_name not in self._paths:
            path = cached_file(
                self._folder,
                file_name,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            if path is None:
                return None
            self._paths[file_name] = path
        return self._paths[file_name]

    def _path(self, file_name: str) -> str:
        path = self._find(file_name)
        if path is None:
            raise self._unreadable(file_name, FileNotFoundError("no such file"))
        return path

    def _open(self, file_name: str) -> safe_open:
        try:
            return safe_open(self._path(file_name), framework="pt")
        except (OSError, SafetensorError) as error:
            raise self._unreadable(file_name, error) from error

    def _unreadable(self, file_name: str, error: Exception) -> UserError:
        reason = first_line(error)
        return UserError(
            f"{self._source} has no weights that can be loaded ({file_name}: {reason}); give a "
            "complete model.safetensors"
        )


class SlicedWeights:
    """Weights on disk under the names that a model gives its parameters.

    Args:
        path: of the teacher as the user gave it, for messages.
        folder: where that is, or its name on the hub.
        prefix: of a student's names where a head stands beside it (``bert``).
        family: of an encoder, which knows its names; None for students.

    Raises:
        UserError: there are no safetensors, or none that can be read.
    """

    def __init__(
        self, path: str, folder: str, prefix: str, family: EncoderFamily | None = None
    ) -> None:
        self._source = f"teacher.model_name_or_path: {path}"
        self._prefixes = ("", *((f"{prefix}.",) if family is None else family.prefixes))
        self._family = family
        self._weights = FolderWeights(self._source, folder)

    def check(self, model_type: str, shapes: Mapping[str, torch.Size]) -> None:
        """Refuses a model whose parameters are not all there; reads headers only.

        Args:
            model_type: for the message.
            shapes: of the parameters, by name.

        Raises:
            UserError: one is missing or has another shape.
        """
        places = {name: self._place(name) for name in shapes}
        missing = [name for name, place in places.items() if place is None]
        refuse_incomplete(self._source, model_type, missing, [])
        found = {name: place for name, place in places.items() if place is not None}
        on_disk = self._weights.shapes({place.name for place in found.values()})
        mismatched = [
            name
            for name, place in found.items()
            if on_disk[place.name] != place.whole(tuple(shapes[name]))
        ]
        refuse_incomplete(self._source, model_type, [], mismatched)

    def refuse_unread(self, model_type: str, names: Collection[str], layers: int) -> None:
        """Refuses maps of the layers that are read which the model does not have.

        Args:
            model_type: for the message.
            names: of all of the model's parameters.
            layers: how many there are.

        Raises:
            UserError: one is on disk.
        """
        known = {
            prefix + place.name
            for name in names
            for place in self._places(name)
            for prefix in self._prefixes
        }
        refuse_unread(self._source, model_type, self._family, set(self._weights) - known, layers)

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
        place = self._place(name)
        assert place is not None, f"{name} was not checked"
        slices = [slice(None)] * target.dim()
        slices[dim] = slice(start, start + target.shape[dim])
        if place.parts > 1:
            (rows, *_) = self._weights.shapes([place.name])[place.name]
            first = rows // place.parts * place.part + (start if dim == 0 else 0)
            slices[0] = slice(first, first + target.shape[0])
        target.copy_(self._weights.read(place.name, tuple(slices)))

    def _place(self, name: str) -> StoredPlace | None:
        """Finds a tensor on disk: perhaps of an encoder under a head, perhaps TensorFlow's."""
        for place in self._places(name):
            for prefix in self._prefixes:
                if prefix + place.name in self._weights:
                    return place._replace(name=prefix + place.name)
        return None

    def _places(self, name: str) -> list[StoredPlace]:
        tensorflow_name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        tensorflow_name = tensorflow_name.replace("LayerNorm.bias", "LayerNorm.beta")
        others = () if self._family is None else self._family.places_of(name)
        return [StoredPlace(name), StoredPlace(tensorflow_name), *others]
