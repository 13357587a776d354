"""The published implementation's Hugging Face layout, both ways.

A published folder is a BERT folder with keys ``bert.…`` and, for students with experts,
``self.{query,key,value}``; its configuration counts heads and neurons over all experts and carries
``moe: "x,y"``. Blocks of one expert keep a router of one output there, which has no effect: reading
sets it aside, writing puts it (or a zero) back.
"""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..models.configuration import MiniMoeConfig
from ..models.moebert import MiniMoeForRelations
from .files import PARTIAL, beside, save_tensors, write_json

_RELATION_PREFIXES = ("self.", "relation.")
_POSITION_IDS = "bert.embeddings.position_ids"
_POOLER_WEIGHT = "bert.pooler.dense.weight"
_REQUIRED_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
)  # fmt: skip
_SHARED_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "hidden_act", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
    "initializer_range", "layer_norm_eps", "pad_token_id", "num_relation_heads",
)  # fmt: skip


def parse_moe(text: str) -> tuple[int, int]:
    """``"x,y"`` to (attention experts, feed-forward experts).

    Raises:
        ValueError: anything else.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ValueError(f'moe: {text!r} is not two counts of experts: write "1,4"')
    return int(parts[0]), int(parts[1])


def config_from_published(published: Mapping[str, Any]) -> MiniMoeConfig:
    """Our configuration of a published ``config.json``.

    ``route_padding`` is on for students with experts, since the published ones were trained so;
    their router noise was their dropout.

    Raises:
        ValueError: a field is missing, or the fields do not fit each other.
    """
    missing = [name for name in _REQUIRED_FIELDS if not isinstance(published.get(name), int)]
    if missing:
        raise ValueError(f"{missing[0]}: missing or not a number: give a BERT student's config")
    attention, feedforward = parse_moe(str(published.get("moe", "1,1")))
    fields = {name: published[name] for name in _SHARED_FIELDS if name in published}
    return MiniMoeConfig(
        **fields,
        num_attention_heads=_of_one_expert(published, "num_attention_heads", attention),
        intermediate_size=_of_one_expert(published, "intermediate_size", feedforward),
        attention_experts=attention,
        feedforward_experts=feedforward,
        relation_projections=(attention, feedforward) != (1, 1),
        route_padding=(attention, feedforward) != (1, 1),
        router_noise=published.get("hidden_dropout_prob", 0.1),
    )


def _of_one_expert(published: Mapping[str, Any], name: str, experts: int) -> int:
    total: int = published[name]
    if total < 1 or total % experts:
        raise ValueError(f"{name}: {total} is no multiple of the {experts} experts of moe")
    return total // experts


def config_to_published(config: MiniMoeConfig) -> dict[str, Any]:
    """The published ``config.json`` of our configuration."""
    fields = {name: getattr(config, name) for name in _SHARED_FIELDS}
    fields["model_type"] = "bert"
    fields["num_attention_heads"] = config.num_attention_heads * config.attention_experts
    fields["intermediate_size"] = config.intermediate_size * config.feedforward_experts
    if config.relation_projections:
        fields["moe"] = f"{config.attention_experts},{config.feedforward_experts}"
        fields["attention_head_size"] = config.hidden_size // config.num_attention_heads
    return fields


def state_from_published(
    state: Mapping[str, Tensor], config: MiniMoeConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our parameters of a published state dict, and the tensors that have no effect."""
    idle = _idle_keys(config)
    ours: dict[str, Tensor] = {}
    extras: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key in idle or key == _POSITION_IDS:
            extras[key] = tensor
        elif key.startswith(_RELATION_PREFIXES[0]):
            ours[_RELATION_PREFIXES[1] + key.removeprefix(_RELATION_PREFIXES[0])] = tensor
        else:
            ours[key] = tensor
    return ours, extras


def state_to_published(
    state: Mapping[str, Tensor], config: MiniMoeConfig, extras: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A published state dict of our parameters; ``extras`` as :func:`state_from_published` gave."""
    published: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith(_RELATION_PREFIXES[1]):
            key = _RELATION_PREFIXES[0] + key.removeprefix(_RELATION_PREFIXES[1])
        published[key] = tensor
    if not config.with_pooler:
        published.update(fresh_pooler(config))
    published.update({key: torch.zeros(shape) for key, shape in _idle_keys(config).items()})
    published[_POSITION_IDS] = torch.arange(config.max_position_embeddings)[None]
    published.update(extras or {})
    return published


def fresh_pooler(config: MiniMoeConfig) -> dict[str, Tensor]:
    """The pooler of a student without one, the same in every file.

    Every BERT folder has one, untrained after distillation: ``BertModel`` would draw another one
    at each load, and say so.
    """
    size, generator = config.hidden_size, torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator) * config.initializer_range
    return {_POOLER_WEIGHT: weight, "bert.pooler.dense.bias": torch.zeros(size)}


def _idle_keys(config: MiniMoeConfig) -> dict[str, tuple[int, ...]]:
    """Routers of blocks with one expert: names and shapes."""
    if not config.relation_projections:
        return {}
    experts = {"attn_gate": config.attention_experts, "ffn_gate": config.feedforward_experts}
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(config.num_hidden_layers):
        for gate, count in experts.items():
            if count == 1:
                prefix = f"bert.encoder.layer.{index}.{gate}"
                shapes[f"{prefix}.weight"], shapes[f"{prefix}.bias"] = (1, config.hidden_size), (1,)
    return shapes


def load_published(folder: str | Path) -> MiniMoeForRelations:
    """Reads a published folder (``model.safetensors`` or ``pytorch_model.bin``).

    Also takes a folder that ``BertModel`` itself saved, which is a plain student.

    Raises:
        ValueError: a file is missing or unreadable, or keys and configuration do not belong
            together.
    """
    folder = Path(folder)
    published = read_config(folder)
    try:
        config = config_from_published(published)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    state, extras = state_from_published(read_state(folder), config)
    config.with_pooler = _POOLER_WEIGHT in state
    model = student_of(config, state, folder)
    model.published_extras = extras
    return model


def student_of(
    config: MiniMoeConfig, state: Mapping[str, Tensor], folder: str | Path
) -> MiniMoeForRelations:
    """A student with all of its weights from ``state``, in evaluation mode.

    Raises:
        ValueError: ``state``, which was read from ``folder``, is not this student's.
    """
    model = MiniMoeForRelations(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"{folder}: weights do not fit config.json: {reason}") from error
    return model.eval()


def read_config(folder: str | Path) -> dict[str, Any]:
    """``config.json`` of a Hugging Face folder.

    Raises:
        ValueError: it is missing or not a JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: missing: name a student's folder")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}): copy the folder again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: not a JSON object: copy the folder again")
    return config


def read_state(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder, their keys beginning with ``bert.`` in any case.

    Raises:
        ValueError: there is no file of weights, or not one of tensors alone.
    """
    folder = Path(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        path = folder / "pytorch_model.bin"
    if not path.is_file():
        raise ValueError(f"{folder}: no model.safetensors or pytorch_model.bin: check the path")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own; torch's runs over many lines
        reason = textwrap.shorten(str(error), 150) or type(error).__name__
        raise ValueError(
            f"{path}: unreadable, or holds more than tensors, which is never run ({reason}): get a "
            "safetensors file from its author"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: is not a dictionary of tensors: save a model's state_dict")
    if not any(key.startswith("bert.") for key in state):
        state = {f"bert.{key}": tensor for key, tensor in state.items()}
    return state


def save_published(model: MiniMoeForRelations, folder: str | Path) -> None:
    """Writes ``model`` in the published layout; other files in ``folder`` stay."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    extras = getattr(model, "published_extras", None)
    weights, config = folder / "model.safetensors", folder / "config.json"
    save_tensors(state_to_published(state, model.config, extras), beside(weights, PARTIAL))
    write_json(beside(config, PARTIAL), config_to_published(model.config))
    for path in (weights, config):
        beside(path, PARTIAL).rename(path)
