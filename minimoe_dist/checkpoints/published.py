"""The published implementation's Hugging Face layout, both ways.

A published folder is a BERT folder with keys ``bert.…`` and, for students with experts,
``self.{query,key,value}``; its configuration counts heads and neurons over all experts and carries
``moe: "x,y"``. Blocks of one expert keep a router of one output there, which has no effect: reading
sets it aside, writing puts it (or a zero) back.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..models.configuration import MiniMoeConfig
from ..models.moebert import MiniMoeForRelations

_RELATION_PREFIXES = ("self.", "relation.")
_POSITION_IDS = "bert.embeddings.position_ids"
_SHARED_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "hidden_act", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
    "initializer_range", "layer_norm_eps", "pad_token_id", "num_relation_heads",
)  # fmt: skip


def parse_moe(text: str) -> tuple[int, int]:
    """``"x,y"`` to (attention experts, feed-forward experts)."""
    attention, feedforward = (int(part) for part in text.split(","))
    return attention, feedforward


def config_from_published(published: Mapping[str, Any]) -> MiniMoeConfig:
    """Our configuration of a published ``config.json``.

    ``route_padding`` is on for students with experts, since the published ones were trained so.
    """
    attention, feedforward = parse_moe(str(published.get("moe", "1,1")))
    fields = {name: published[name] for name in _SHARED_FIELDS if name in published}
    return MiniMoeConfig(
        **fields,
        num_attention_heads=published["num_attention_heads"] // attention,
        intermediate_size=published["intermediate_size"] // feedforward,
        attention_experts=attention,
        feedforward_experts=feedforward,
        relation_projections=(attention, feedforward) != (1, 1),
        route_padding=(attention, feedforward) != (1, 1),
    )


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
    published.update({key: torch.zeros(shape) for key, shape in _idle_keys(config).items()})
    published[_POSITION_IDS] = torch.arange(config.max_position_embeddings)[None]
    published.update(extras or {})
    return published


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

    Raises:
        ValueError: a file is missing, or keys and configuration do not belong together.
    """
    folder = Path(folder)
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ValueError(f"{config_path}: missing: name a folder in the published layout")
    published = json.loads(config_path.read_text())
    config = config_from_published(published)
    state, extras = state_from_published(_read_state(folder), config)
    config.with_pooler = "bert.pooler.dense.weight" in state
    model = MiniMoeForRelations(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: weights do not fit config.json: {reason}") from error
    model.published_extras = extras
    return model.eval()


def _read_state(folder: Path) -> dict[str, Tensor]:
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    if safe.is_file():
        return load_file(safe)
    if pickled.is_file():
        state: dict[str, Tensor] = torch.load(pickled, map_location="cpu", weights_only=True)
        return state
    raise ValueError(f"{folder}: no model.safetensors or pytorch_model.bin: check the path")


def save_published(model: MiniMoeForRelations, folder: str | Path) -> None:
    """Writes ``model`` in the published layout."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    extras = getattr(model, "published_extras", None)
    published = state_to_published(state, model.config, extras)
    save_file(
        {key: value.contiguous() for key, value in published.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    text = json.dumps(config_to_published(model.config), indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n")
