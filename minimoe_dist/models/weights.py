"""Weights of a model folder, read tensor by tensor or in slices, so that nothing is held whole.

One ``model.safetensors`` or the parts that ``model.safetensors.index.json`` lists; of those only
the ones that hold something wanted are opened (and, from the hub, fetched).
"""

import json
from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def refuse_incomplete(
    where: str, model_type: str, missing: list[str], mismatched: list[str]
) -> None:
    """Refuses weights that are not those of the configuration.

    Args:
        where: option and value, for the message.
        model_type: of the configuration.
        missing: names of weights that are not there.
        mismatched: names of those of another shape.

    Raises:
        ValueError: one of the lists is not empty.
    """
    # transformers fills both with random numbers and only prints a warning.
    for what, names in (
        ("are missing", sorted(missing)),
        ("have another shape than config.json says", sorted(mismatched)),
    ):
        if names:
            raise ValueError(
                f"{where}: {len(names)} weights of a {model_type} encoder {what}, the first is "
                f"{names[0]}; give the checkpoint and the configuration of one model"
            )


class SlicedWeights:
    """What is on disk under the names that a model gives its parameters.

    Args:
        path: what the user gave, for messages.
        folder: where that is, or its name on the hub.
        prefix: of the encoder's names where a head stands beside it (``bert``).

    Raises:
        ValueError: there are no safetensors, or none that can be read.
    """

    def __init__(self, path: str, folder: str, prefix: str) -> None:
        self._where = f"teacher.model_name_or_path: {path}"
        self._folder = folder
        self._prefix = prefix
        self._parts: dict[str, str] = {}  # name of a file -> where it is
        self._part_of = self._keys()

    def check(self, model_type: str, shapes: Mapping[str, torch.Size]) -> None:
        """Refuses a model whose parameters are not all there; reads headers only.

        Args:
            model_type: for the message.
            shapes: of the parameters, by name.

        Raises:
            ValueError: one is missing or has another shape.
        """
        found = {name: self._key(name) for name in shapes}
        refuse_incomplete(
            self._where, model_type, [name for name, key in found.items() if key is None], []
        )
        by_part: dict[str, list[tuple[str, str]]] = {}
        for name, key in found.items():
            assert key is not None
            by_part.setdefault(self._part_of[key], []).append((name, key))
        wrong = []
        for part, entries in by_part.items():
            with self._open(part) as opened:
                for name, key in entries:
                    try:
                        found_shape = opened.get_slice(key).get_shape()
                    except SafetensorError as error:  # the index promises what is not there
                        raise self._unreadable(part, error) from error
                    if tuple(found_shape) != tuple(shapes[name]):
                        wrong.append(name)
        refuse_incomplete(self._where, model_type, [], wrong)

    def copy_into(self, target: Tensor, name: str, dim: int = 0, start: int = 0) -> None:
        """Fills ``target`` with a parameter, or with the slice of it that has ``target``'s shape.

        Args:
            target: any device and floating-point type.
            name: the model's for the parameter.
            dim: along which ``target`` is a slice.
            start: of the slice.

        Raises:
            ValueError: the file is damaged.
        """
        key = self._key(name)
        assert key is not None, f"{name} was not checked"
        part = self._part_of[key]
        index = [slice(None)] * target.dim()
        index[dim] = slice(start, start + target.shape[dim])
        # Opened anew each time: pages of a file that stays mapped would count as this process's.
        with self._open(part) as opened:
            try:
                target.copy_(opened.get_slice(key)[tuple(index)])
            except SafetensorError as error:
                raise self._unreadable(part, error) from error

    def _key(self, name: str) -> str | None:
        """The name on disk: perhaps of an encoder under a head, perhaps TensorFlow's."""
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old = old.replace("LayerNorm.bias", "LayerNorm.beta")
        for candidate in dict.fromkeys([name, old]):
            for key in (candidate, f"{self._prefix}.{candidate}"):
                if key in self._part_of:
                    return key
        return None

    def _keys(self) -> dict[str, str]:
        """Key -> name of the file that holds it."""
        if self._find(_WHOLE) is not None:
            with self._open(_WHOLE) as opened:
                return dict.fromkeys(opened.keys(), _WHOLE)
        index = self._find(_INDEX)
        if index is None:
            raise ValueError(
                f"{self._where} has no model.safetensors, and only safetensors can be read in "
                "shards; convert it with transformers' save_pretrained, or give teacher.layout "
                "replicated"
            )
        try:
            with open(index, encoding="utf-8") as file:
                parts: dict[str, str] = json.load(file)["weight_map"]
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(_INDEX, error) from error
        return parts

    def _find(self, part: str) -> str | None:
        if part not in self._parts:
            found = cached_file(
                self._folder,
                part,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            if found is None:
                return None
            self._parts[part] = found
        return self._parts[part]

    def _open(self, part: str) -> safe_open:
        found = self._find(part)
        if found is None:
            raise self._unreadable(part, FileNotFoundError("no such file"))
        try:
            return safe_open(found, framework="pt")
        except (OSError, SafetensorError) as error:
            raise self._unreadable(part, error) from error

    def _unreadable(self, part: str, error: Exception) -> ValueError:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ValueError(
            f"{self._where} has no weights that can be loaded ({part}: {words}); give a complete "
            "model.safetensors"
        )
