"""Maps of sub-models, which say what each layer of a sliceable BERT loses, and their sizes.

A map has an entry for every sub-model, by name: a sparsity in per cent ("90"), or, of once-for-all
students, "layers,hidden" ("3,384"). An entry counts what is *lost*, in the published layout::

    {"head": {"0": 4, …}, "neuron": {"0": 64, …}, "hidden": {"-1": 16, "0": 16, …}}

Keys of the inner maps are layers ("-1": the embeddings); an absent layer loses nothing. Elements
stand in falling importance, so a sub-model keeps the first of each. No torch here: maps are
checked before anything heavy is loaded.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .errors import UserError

MapEntry = Mapping[str, Mapping[str, int]]
SparsityMap = Mapping[str, MapEntry]

WHOLE = "0"
_EMBEDDINGS = "-1"
_KINDS = ("head", "neuron", "hidden")
_ROUNDING = 8  # removed numbers are multiples of it, so that products stay aligned
_MAX_HEADS_PERCENT = 90  # beyond it, neurons pay for the heads that stay


class Sizes(NamedTuple):
    """Sizes of the whole model; its hidden size is heads · head_size."""

    layers: int
    heads: int
    head_size: int
    neurons: int

    @property
    def hidden(self) -> int:
        """H, the hidden size."""
        return self.heads * self.head_size


class LayerShape(NamedTuple):
    """The elements that a layer keeps; a ``missing`` one is skipped wholly, its LayerNorms too."""

    heads: int
    neurons: int
    missing: bool = False

    def fits_in(self, larger: "LayerShape") -> bool:
        """Tells whether ``larger`` has all that this one keeps."""
        return self.missing or (
            not larger.missing and self.heads <= larger.heads and self.neurons <= larger.neurons
        )


class PlainSizes(NamedTuple):
    """Sizes of a sub-model that is a BERT of its own."""

    layers: int
    hidden: int
    heads: int
    neurons: int


class SubModelShape(NamedTuple):
    """The hidden size of a sub-model, and what each of its layers keeps."""

    hidden: int
    layers: tuple[LayerShape, ...]

    def fits_in(self, larger: "SubModelShape") -> bool:
        """Tells whether ``larger`` has all that this one keeps."""
        return (
            self.hidden <= larger.hidden
            and len(self.layers) == len(larger.layers)
            and all(map(LayerShape.fits_in, self.layers, larger.layers))
        )

    def plain(self, head_size: int) -> PlainSizes | None:
        """Returns the sizes of the ``BertModel`` that this is, or None where it is none.

        It is one where all layers that are there keep the same, none has an empty block, and the
        heads fill the hidden size.
        """
        distinct = {layer for layer in self.layers if not layer.missing}
        if len(distinct) != 1:
            return None
        (layer,) = distinct
        if layer.neurons == 0 or layer.heads == 0 or layer.heads * head_size != self.hidden:
            return None
        count = sum(not layer.missing for layer in self.layers)
        return PlainSizes(count, self.hidden, layer.heads, layer.neurons)

    def gmac(self, head_size: int, length: int = 128) -> float:
        """Counts a sequence's 10⁹ multiply-accumulates, as 12 · L · H² counts a plain BERT's."""
        outputs = sum(
            4 * layer.heads * head_size + 2 * layer.neurons
            for layer in self.layers
            if not layer.missing
        )
        return outputs * self.hidden * length / 1e9


def whole_shape(sizes: Sizes) -> SubModelShape:
    """Returns the shape of the whole model, in which every layer keeps everything."""
    return SubModelShape(sizes.hidden, (LayerShape(sizes.heads, sizes.neurons),) * sizes.layers)


def sub_model_shape(
    sizes: Sizes, sparsity_map: SparsityMap, sparsity: str, *, keep_missing_layers: bool = False
) -> SubModelShape:
    """Returns the sizes of the sub-model ``sparsity`` of a map.

    Removed numbers (of hidden dimensions, of neurons, of a layer's attention features) are rounded
    to multiples of eight.

    Args:
        sizes: of the whole model.
        sparsity_map: the model's.
        sparsity: a key of the map; "0" is the whole model in any map.
        keep_missing_layers: let a layer that a once-for-all sub-model does not have keep its two
            LayerNorms, as the published implementation does.

    Raises:
        UserError: the map has no such entry, or the entry does not fit the model.
    """
    if sparsity not in sparsity_map:
        if sparsity == WHOLE:
            return whole_shape(sizes)
        choices = " ".join(sparsity_map) or "none, the model was not sparsified"
        raise UserError(f"sparsity: {sparsity} is not in the model's map; it has: {choices}")
    entry = sparsity_map[sparsity]
    _check_entry(sizes, sparsity, entry)
    lost_hidden = entry.get("hidden", {}).get(_EMBEDDINGS, 0)
    hidden = sizes.hidden - _round_removed(lost_hidden, sizes.hidden)
    if hidden == 0:
        raise UserError(
            f"sparsity: {sparsity} leaves none of {sizes.hidden} hidden dimensions; choose less"
        )
    once_for_all = re.fullmatch(r"\d+,\d+", sparsity) is not None
    layers = []
    for index in range(sizes.layers):
        lost_heads, lost_neurons = (
            entry.get(kind, {}).get(str(index), 0) for kind in ("head", "neuron")
        )
        heads = sizes.heads - _round_removed_heads(lost_heads, sizes, sparsity)
        neurons = sizes.neurons - _round_removed(lost_neurons, sizes.neurons)
        missing = once_for_all and not keep_missing_layers and heads == neurons == 0
        layers.append(LayerShape(heads, neurons, missing))
    return SubModelShape(hidden, tuple(layers))


def _round_removed(count: int, total: int) -> int:
    if count == total:
        return total
    return min(total, round(count / _ROUNDING) * _ROUNDING)


def _round_removed_heads(count: int, sizes: Sizes, sparsity: str) -> int:
    features = _round_removed(count * sizes.head_size, sizes.hidden)
    if features % sizes.head_size:
        raise UserError(
            f"sparsity: {sparsity} removes {features} attention features, which is no number of "
            f"heads of size {sizes.head_size}; use heads whose size divides 8 or is a multiple"
        )
    return features // sizes.head_size


def _check_entry(sizes: Sizes, sparsity: str, entry: MapEntry) -> None:
    location = f"sparsity_map: entry {sparsity}"
    totals = dict(zip(_KINDS, (sizes.heads, sizes.neurons, sizes.hidden), strict=True))
    if unknown := set(entry) - set(_KINDS):
        raise UserError(f"{location} has {unknown.pop()}; choose among {', '.join(_KINDS)}")
    layers = {str(index) for index in range(sizes.layers)}
    for kind, total in totals.items():
        for layer, count in entry.get(kind, {}).items():
            if layer not in layers | ({_EMBEDDINGS} if kind == "hidden" else set()):
                raise UserError(f"{location} names layer {layer} of a model of {sizes.layers}")
            if not 0 <= count <= total:
                raise UserError(
                    f"{location} takes {count} of {total} ({kind}, layer {layer}); "
                    f"the map belongs to another model"
                )
    if len(set(entry.get("hidden", {}).values())) > 1:
        raise UserError(f"{location} gives layers different hidden sizes; they share one")


def build_sparsity_map(
    head_importance: Any, neuron_importance: Any, sizes: Sizes, sparsities: Sequence[float]
) -> dict[str, dict[str, dict[str, int]]]:
    """Builds the map of a model by importance.

    A sparsity of s per cent takes q = 100 - round(100 · √(1 - s/100)) per cent of the globally
    least important heads and neurons, and of the hidden dimensions everywhere: a map between two
    of these loses q on either side. Above 90 per cent heads stay at 90 and neurons pay.

    Args:
        head_importance: float [layers, heads].
        neuron_importance: float [layers, neurons].
        sizes: of the model.
        sparsities: in per cent, each in [0, 100).

    Raises:
        UserError: a sparsity out of range, or one that leaves nothing.
    """
    heads, neurons = np.asarray(head_importance), np.asarray(neuron_importance)
    assert heads.shape == (sizes.layers, sizes.heads), heads.shape
    assert neurons.shape == (sizes.layers, sizes.neurons), neurons.shape
    layers = (_EMBEDDINGS, *(str(index) for index in range(sizes.layers)))
    entries = {}
    for sparsity in sparsities:
        if not 0 <= sparsity < 100:
            raise UserError(f"sparsities: {sparsity} is not in [0, 100); give per cent to remove")
        percent = 100 - round(100 * math.sqrt(1 - sparsity / 100))
        extra = max(0, percent - _MAX_HEADS_PERCENT) * heads.size * sizes.head_size * 2
        lost_heads = round(min(percent, _MAX_HEADS_PERCENT) * heads.size / 100)
        lost_neurons = min(neurons.size, round((percent * neurons.size + extra) / 100))
        entries[f"{sparsity:g}"] = {
            "hidden": dict.fromkeys(layers, round(percent * sizes.hidden / 100)),
            "head": _least_important(heads, lost_heads),
            "neuron": _least_important(neurons, lost_neurons),
        }
    for name in entries:
        sub_model_shape(sizes, entries, name)
    return entries


def _least_important(importance: np.ndarray, count: int) -> dict[str, int]:
    """Counts by layer the ``count`` least important elements."""
    layers = np.argsort(importance, axis=None, kind="stable")[:count] // importance.shape[1]
    counts = np.bincount(layers, minlength=len(importance))
    return {str(layer): int(lost) for layer, lost in enumerate(counts) if lost}


def once_for_all_map(
    sizes: Sizes, layers: Sequence[int], hidden: Sequence[int]
) -> dict[str, dict[str, dict[str, int]]]:
    """Builds the map of a once-for-all student: every number of layers with every hidden size.

    A sub-model has the first layers and the first hidden dimensions, and heads and neurons in
    proportion to these; a layer that it does not have loses all.

    Args:
        sizes: of the student.
        layers: numbers of layers, for instance 6, 4, 3.
        hidden: hidden sizes, for instance 768, 512, 384.

    Raises:
        UserError: the student has no such sub-model.
    """
    if not layers or not hidden:
        raise UserError("ofa_layer, ofa_hidden: empty; give at least one number for each")
    for count in layers:
        if not 1 <= count <= sizes.layers:
            raise UserError(f"ofa_layer: {count} of a student of {sizes.layers}; choose 1 to it")
    for size in hidden:
        _check_hidden(size, sizes)
    return {
        f"{count},{size}": _proportional(sizes, count, size) for count in layers for size in hidden
    }


def once_for_all_name(student: str, sub_model: str) -> str:
    """Names a sub-model and its export, such as "student_3l_384h" for "3,384"."""
    layers, hidden = sub_model.split(",")
    return f"{student}_{layers}l_{hidden}h"


def _check_hidden(size: int, sizes: Sizes) -> None:
    full_size, removed = sizes.hidden, sizes.hidden - size
    if not 1 <= size <= full_size:
        raise UserError(
            f"ofa_hidden: {size} of a student of hidden size {full_size}; choose 1 to it"
        )
    uneven = [
        kind
        for kind, total in (("heads", sizes.heads), ("neurons", sizes.neurons))
        if total * size % full_size
    ]
    if uneven:
        raise UserError(
            f"ofa_hidden: {size} of {full_size} is no whole number of {' and '.join(uneven)}; "
            f"choose a multiple of the head size {sizes.head_size}"
        )
    if removed % _ROUNDING or sizes.neurons * removed // full_size % _ROUNDING:
        raise UserError(
            f"ofa_hidden: {size} removes {removed} of {full_size} dimensions; "
            f"choose sizes that remove a multiple of {_ROUNDING}"
        )


def _proportional(sizes: Sizes, count: int, size: int) -> dict[str, dict[str, int]]:
    removed = sizes.hidden - size
    names = [str(index) for index in range(sizes.layers)]
    entry = {}
    for kind, total in (("head", sizes.heads), ("neuron", sizes.neurons)):
        lost = total * removed // sizes.hidden
        entry[kind] = {name: lost if int(name) < count else total for name in names}
    entry["hidden"] = dict.fromkeys([*names, _EMBEDDINGS], removed)
    return entry
