"""Reads and writes published folders; what was read is written back unchanged."""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...durable import written
from ...errors import UserError
from ...model_description import description_of, read_model_json
from ...models.configuration import MiniMoeConfig
from ...models.elastic import ElasticForRelations
from ...models.elastic_configuration import ElasticConfig
from ...models.mlm_head import ElasticForRelationsAndMaskedLM, MiniMoeForRelationsAndMaskedLM
from ...models.moebert import MiniMoeForRelations
from ...models.tinybert import MiniMoeForStates
from ..tensors import save_tensors
from . import elastic, experts
from .layout import POOLER_WEIGHT

Student = MiniMoeForRelations | MiniMoeForStates | ElasticForRelations

_HEAD, _TINYBERT_MAP = "cls.predictions.bias", "hidden_transform.weight"
_ENCODERS = ("bert.", "roberta.")


@dataclass(frozen=True)
class _Origin:
    """The folder that a student was read from.

    Attributes:
        published: its ``config.json``.
        config: ours of it, as a dictionary.
        dtypes: of the folder's tensors, by published key.
        extras: tensors that have no effect.
    """

    published: dict[str, Any]
    config: dict[str, Any]
    dtypes: dict[str, torch.dtype]
    extras: dict[str, Tensor]


def load_published(folder: str | Path) -> Student:
    """Reads a published folder (``model.safetensors`` or ``pytorch_model.bin``).

    Also takes a folder that transformers' own encoder saved, which is a plain student.

    Returns:
        The student in float32, of the class that the folder's weights are of: with a masked-LM head
        or TinyBERT's map where there is one.

    Raises:
        UserError: a file is missing or unreadable, or keys and configuration do not belong
            together.
    """
    folder = Path(folder)
    published = read_model_json(folder)
    description_of(published, str(folder), folder)
    state = read_state(folder)
    try:
        model_class, config, parameters, extras = _from_published(published, state)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error
    config.with_pooler = POOLER_WEIGHT in parameters
    model = student_of(model_class, config, parameters, folder)
    dtypes = {key: tensor.dtype for key, tensor in state.items()}
    model.published_origin = _Origin(published, model.config.to_dict(), dtypes, extras)
    return model


def _from_published(
    published: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[type[Student], MiniMoeConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Returns a student's class, configuration and weights, and the tensors that have no effect."""
    if elastic.is_elastic(published, state):
        sliceable = elastic.config_from_published(published, state)
        parameters, extras = elastic.state_from_published(state, sliceable)
        elastic_class = (
            ElasticForRelationsAndMaskedLM if _HEAD in parameters else ElasticForRelations
        )
        return elastic_class, sliceable, parameters, extras
    config = experts.config_from_published(published)
    parameters, extras = experts.state_from_published(state, config)
    if _TINYBERT_MAP in parameters:
        config.teacher_hidden_size = parameters[_TINYBERT_MAP].shape[0]
        return MiniMoeForStates, config, parameters, extras
    student_class = MiniMoeForRelationsAndMaskedLM if _HEAD in parameters else MiniMoeForRelations
    return student_class, config, parameters, extras


def student_of(
    model_class: type[Student],
    config: MiniMoeConfig,
    state: Mapping[str, Tensor],
    folder: str | Path,
) -> Student:
    """Makes a student with all of its weights from ``state``, in evaluation mode.

    Raises:
        UserError: ``state``, which was read from ``folder``, is not this student's.
    """
    model = model_class(config)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)
        raise UserError(f"{folder}: weights do not fit config.json: {reason}") from error
    return model.eval()


def read_state(folder: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a Hugging Face folder; an encoder's keys begin with ``bert.``.

    Raises:
        UserError: there is no file of weights, or not one of tensors alone.
    """
    folder = Path(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        path = folder / "pytorch_model.bin"
    if not path.is_file():
        raise UserError(f"{folder}: no model.safetensors or pytorch_model.bin: check the path")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own; torch's runs over many lines
        reason = textwrap.shorten(str(error), 150) or type(error).__name__
        raise UserError(
            f"{path}: unreadable, or holds more than tensors, which is never run ({reason}): get a "
            "safetensors file from its author"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: is not a dictionary of tensors: save a model's state_dict")
    if not any(key.startswith(_ENCODERS) for key in state):
        state = {f"bert.{key}": tensor for key, tensor in state.items()}
    return state


def save_published(model: Student, folder: str | Path) -> None:
    """Writes ``model`` in the published layout; other files in ``folder`` stay.

    A student that :func:`load_published` read gets the keys and precisions of what it was read
    from; with its configuration unchanged, also the same ``config.json``.
    """
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    config = model.config
    if isinstance(config, ElasticConfig):
        published = elastic.config_to_published(config)
        tensors = elastic.state_to_published(state, config)
    else:
        published = experts.config_to_published(config)
        tensors = experts.state_to_published(state, config)
    origin: _Origin | None = getattr(model, "published_origin", None)
    if origin is not None:
        published = origin.published | published
        if origin.config == config.to_dict():
            published = origin.published
        tensors |= origin.extras
        tensors = {key: tensors[key].to(dtype) for key, dtype in origin.dtypes.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Clones, since tied tensors share memory, which the format refuses.
    contiguous = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()
    }
    # Where one of them cannot be written, neither takes its name.
    with written(folder / "config.json") as aside:
        aside.write_text(json.dumps(published, indent=1) + "\n", "utf-8")
        save_tensors(contiguous, folder / "model.safetensors")
