"""Holds the weights in a model's folder against its ``config.json`` by the files' headers alone.

Headers of safetensors are read by that library, which refuses one that is too long, and tensors
that lie outside their file. Of a pickle in a zip archive the names and shapes are read without
making anything; one of PyTorch before 1.6, which is no archive, is left to the loading. What names
more than tensors' parts is refused in both.
"""

import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..encoder_families import EncoderFamily, StoredPlace
from ..errors import UserError, first_line
from ..foreign import read_json
from ..model_description import (
    PICKLE,
    PICKLE_INDEX,
    SLICEABLE,
    WEIGHTS,
    WEIGHTS_INDEX,
    ModelDescription,
)
from ..model_paths import resolve_model_path
from ..pickled import Pickled, Shape, UnsafePickleError, read_pickled

# Before an encoder's names where a head stands beside it.
_ENCODER = "bert."
_TENSORFLOWS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_REMEDY = "give the checkpoint and the configuration of one model"


def check_weights(
    option: str, model: ModelDescription, layers: int | None = None, *, whole: bool = True
) -> None:
    """Refuses weights that cannot be read, or that are not those of the configuration.

    Nothing is refused of a model that is not in a folder of its own (the hub's client completes
    those), and of an old pickle only what could run code.

    Args:
        option: the option that names the model, for messages.
        model: the model.
        layers: how many of its layers are loaded; None for all.
        whole: whether all files are opened, and all of the last layer is loaded; else what leads
            to that layer's queries, keys and values.

    Raises:
        UserError: a file is missing or damaged, or a tensor is missing or has another shape.
    """
    if not Path(resolve_model_path(model.path, option)).is_dir() or model.is_megatrons:
        return  # a checkpoint of Megatron's is described by the weights of all its ranks
    source = f"{option}: {model.path}"
    expected = expected_tensors(model, layers, whole=whole)
    family = model.encoder_family
    prefixes = (_ENCODER,) if family is None else family.prefixes
    places = {name: _places_of(family, name) for name in expected}
    needed = {place.name for some in places.values() for place in some}
    shapes = _stored_shapes(source, model.folder, None if whole else needed, prefixes)
    if shapes is None:
        return
    stored = {_plain_name(name, prefixes): shape for name, shape in shapes.items()}
    found = {
        name: next((place for place in some if place.name in stored), None)
        for name, some in places.items()
    }
    missing = [name for name, place in found.items() if place is None]
    if missing:
        has_others = shapes and len(missing) == len(expected)
        there = f" (there is {next(iter(shapes))})" if has_others else ""
        raise UserError(
            f"{source}: {len(missing)} weights of a {model.model_type} encoder are missing, the "
            f"first is {missing[0]}{there}; {_REMEDY}"
        )
    for name, place in found.items():
        assert place is not None, name
        shape, wanted = stored[place.name], place.whole(expected[name])
        if None not in (shape, wanted) and shape != wanted:
            raise UserError(
                f"{source}: {place.name} is {list(shape or ())}, config.json says "
                f"{list(wanted or ())}; {_REMEDY}"
            )


def expected_tensors(
    model: ModelDescription, layers: int | None = None, *, whole: bool = True
) -> dict[str, Shape]:
    """Returns the tensors of an encoder and their shapes, by the names that it has alone.

    Of a student, whose layers may be made of experts, these are its word embeddings, and where
    hidden dimensions may be cut off, any.
    Arguments are those of :func:`check_weights`.
    """
    family = model.encoder_family
    if family is not None and family.only_teaches:
        return _maps_of(model, family, layers)
    hidden, inner = model.hidden_size, model.intermediate_size
    words = {"embeddings.word_embeddings.weight": (model.vocab_size, hidden)}
    if model.model_type == SLICEABLE or model.is_published_student:
        return dict.fromkeys(words)
    if family is None:
        return dict(words)
    norms_first = model.model_type == "megatron-bert"
    count = model.num_hidden_layers if layers is None else layers
    tensors: dict[str, Shape] = {
        **words,
        "embeddings.position_embeddings.weight": (model.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings.weight": (model.type_vocab_size, hidden),
        **({} if norms_first else _norm("embeddings.LayerNorm", hidden)),
    }
    for number in range(count):
        prefix = f"encoder.layer.{number}."
        tensors |= _norm(prefix + "attention.ln", hidden) if norms_first else {}
        for part in ("query", "key", "value"):
            tensors |= _map(prefix + "attention.self." + part, hidden, hidden)
        if number == count - 1 and not whole:
            return tensors
        tensors |= _map(prefix + "attention.output.dense", hidden, hidden)
        tensors |= _map(prefix + "intermediate.dense", inner, hidden)
        tensors |= _map(prefix + "output.dense", hidden, inner)
        norms = ("ln",) if norms_first else ("attention.output.LayerNorm", "output.LayerNorm")
        for norm in norms:
            tensors |= _norm(prefix + norm, hidden)
    return {**tensors, **(_norm("encoder.ln", hidden) if norms_first else {})}


def _maps_of(
    model: ModelDescription, family: EncoderFamily, layers: int | None
) -> dict[str, Shape]:
    """Returns what is known of an encoder that only teaches: its words, and its layers' maps."""
    count = model.num_hidden_layers if layers is None else layers
    places = [family.shared_layer or f"{family.layers}.{number}" for number in range(count)]
    # Word embeddings may be narrower than the layers.
    tensors: dict[str, Shape] = {f"{family.words}.weight": None}
    outputs = model.hidden_size * 3 // len(family.maps)
    for place in places:
        for name in family.maps:
            tensors[f"{place}.{name}.weight"] = (outputs, model.hidden_size)
    return tensors


def tensor_names(model: ModelDescription) -> set[str] | None:
    """Returns the names of a model's tensors as they are stored; None where they are not known."""
    try:
        shapes = _stored_shapes(model.path, model.folder)
    except UserError:  # which `check_weights` says
        return None
    return None if shapes is None else set(shapes)


def _map(name: str, outputs: int, inputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> dict[str, Shape]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _places_of(family: EncoderFamily | None, name: str) -> tuple[StoredPlace, ...]:
    return (StoredPlace(name),) if family is None else family.places_of(name)


def _plain_name(name: str, prefixes: Iterable[str]) -> str:
    """Returns the name that an encoder has without a head beside it, and not TensorFlow's."""
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    for old, new in _TENSORFLOWS.items():
        name = name.replace(old, new)
    return name


def _stored_shapes(
    source: str,
    folder: Path,
    needed: Collection[str] | None = None,
    prefixes: Collection[str] = (_ENCODER,),
) -> dict[str, Shape] | None:
    """Reads the shapes of a folder's tensors; None where there are none to be read like this.

    Args:
        source: what the user gave, for messages.
        folder: of the files.
        needed: names whose files are read alone, where an index tells their files.
        prefixes: that may stand before an encoder's names.
    """
    readers: tuple[tuple[str, str, Callable[[Path], Mapping[str, Shape] | None]], ...] = (
        (WEIGHTS, WEIGHTS_INDEX, _safetensors_shapes),
        (PICKLE, PICKLE_INDEX, _pickled_shapes),
    )
    for file, index, read in readers:
        if (folder / file).is_file():
            files = [file]
        elif (folder / index).is_file():
            parts = _read(source, folder / index, _index)
            files = sorted(
                {
                    file
                    for name, file in parts.items()
                    if needed is None or _plain_name(name, prefixes) in needed
                }
            )
        else:
            continue
        shapes: dict[str, Shape] = {}
        for name in files:
            found = _read(source, folder / name, read)
            if found is None:
                return None
            shapes |= found
        return shapes
    return None


def _read(source: str, path: Path, read: Callable[[Path], Any]) -> Any:
    """Reads a file by a function, whose many kinds of errors become the user's."""
    try:
        return read(path)
    except FileNotFoundError:
        reason = "no such file"
    except UnsafePickleError as error:
        raise UserError(
            f"{source} has weights in a pickle of more than tensors ({path.name} names {error}), "
            "which could run any code; give a model.safetensors"
        ) from None
    except Exception as error:  # of libraries, for what is damaged
        reason = first_line(error)
    raise UserError(
        f"{source} has no weights that can be loaded ({path.name}: {reason}); copy it again"
    )


def _index(path: Path) -> dict[str, str]:
    parts = read_json(path)["weight_map"]
    return {str(name): str(file) for name, file in parts.items()}


def _safetensors_shapes(path: Path) -> dict[str, Shape]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _pickled_shapes(path: Path) -> dict[str, Shape] | None:
    state = read_pickled(path)
    if not zipfile.is_zipfile(path) or state is None:
        return None
    if not isinstance(state, dict):
        return {}
    return {str(name): value.shape for name, value in state.items() if isinstance(value, Pickled)}
