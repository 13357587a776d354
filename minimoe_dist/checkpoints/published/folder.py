"""Reads and writes published folders; what was read is written back unchanged."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...models.elastic import ElasticForRelations
from ...models.elastic_configuration import ElasticConfig
from ...models.elastic_mlm import ElasticForMaskedLM
from ...models.mlm_head import MiniMoeForMaskedLM
from ...models.moebert import MiniMoeForRelations
from ...models.tinybert import MiniMoeForStates
from . import elastic, experts

Student = MiniMoeForRelations | MiniMoeForStates | ElasticForRelations

_HEAD, _TINYBERT_MAP = "cls.predictions.bias", "hidden_transform.weight"


@dataclass(frozen=True)
class _Origin:
    """What a student was read from.

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

    Returns:
        The student in float32, of the class that the folder's weights are of: with a masked-LM head
        or TinyBERT's map where there is one.

    Raises:
        ValueError: a file is missing, or keys and configuration do not belong together.
    """
    folder = Path(folder)
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ValueError(f"{config_path}: missing: name a folder in the published layout")
    published = json.loads(config_path.read_text())
    state = _read_state(folder)
    try:
        model, extras = _from_state(published, state)
    except KeyError as error:
        raise ValueError(
            f"{config_path}: {error} is missing: not a BERT's configuration"
        ) from error
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: weights do not fit config.json: {reason}") from error
    dtypes = {key: tensor.dtype for key, tensor in state.items()}
    model.published_origin = _Origin(published, model.config.to_dict(), dtypes, extras)
    return model.eval()


def _from_state(
    published: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[Student, dict[str, Tensor]]:
    model: Student
    if elastic.is_elastic(published, state):
        config = elastic.config_from_published(published, state)
        ours, extras = elastic.state_from_published(state, config)
        model_class = ElasticForMaskedLM if _HEAD in ours else ElasticForRelations
    else:
        config = experts.config_from_published(published)
        ours, extras = experts.state_from_published(state, config)
        model_class = MiniMoeForMaskedLM if _HEAD in ours else MiniMoeForRelations
        if _TINYBERT_MAP in ours:
            config.teacher_hidden_size = ours[_TINYBERT_MAP].shape[0]
            model_class = MiniMoeForStates
    config.with_pooler = "bert.pooler.dense.weight" in ours
    model = model_class(config)
    model.load_state_dict(ours)
    return model, extras


def _read_state(folder: Path) -> dict[str, Tensor]:
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    if safe.is_file():
        return load_file(safe)
    if pickled.is_file():
        state: dict[str, Tensor] = torch.load(pickled, map_location="cpu", weights_only=True)
        return state
    raise ValueError(f"{folder}: no model.safetensors or pytorch_model.bin: check the path")


def save_published(model: Student, folder: str | Path) -> None:
    """Writes ``model`` in the published layout.

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
    whole = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()
    }
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(published, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n")
