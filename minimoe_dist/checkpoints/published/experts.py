"""Dense students and mixtures of experts in the published layout.

Their configuration counts heads and neurons over all experts and carries ``moe: "x,y"``. Blocks of
one expert keep a router of one output there, which has no effect: reading sets it aside, writing
puts it (or a zero) back. RoBERTa's keys begin with ``roberta.``, other families' with ``bert.``;
TinyBERT's map (``hidden_transform``) has its published name here too.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...model_description import description_of
from ...models.configuration import MiniMoeConfig
from .layout import (
    DECODER,
    EMBEDDINGS,
    POSITION_IDS,
    SHARED_FIELDS,
    fresh_pooler,
    parameter_name,
    published_tensors,
    shared_fields,
    tied_decoder,
)


def config_from_published(published: Mapping[str, Any]) -> MiniMoeConfig:
    """Makes our configuration of a published ``config.json``.

    ``route_padding`` is on for students with experts, since the published ones were trained so;
    their router noise was their dropout.

    Raises:
        UserError: a field is missing, or the fields do not fit each other.
    """
    described = description_of(published, "published student", "")
    fields = {name: published[name] for name in SHARED_FIELDS if name in published}
    attention, feedforward = described.experts
    with_experts = described.experts != (1, 1)
    return MiniMoeConfig(
        **fields,
        family=described.family,
        num_attention_heads=described.heads_of_an_expert,
        intermediate_size=described.intermediate_size // feedforward,
        attention_experts=attention,
        feedforward_experts=feedforward,
        relation_projections=with_experts,
        route_padding=with_experts,
        router_noise=published.get("hidden_dropout_prob", 0.1),
    )


def config_to_published(config: MiniMoeConfig) -> dict[str, Any]:
    """Makes the published ``config.json`` of our configuration.

    Raises:
        UserError: a student with experts whose relations are its last layer's own.
    """
    if not config.is_dense and not config.relation_projections:
        raise UserError(
            "relation_projections: none, and published students with experts have them; give one "
            "that was distilled with state_weight 0"
        )
    fields = shared_fields(config)
    fields["num_attention_heads"] = config.num_attention_heads * config.attention_experts
    fields["intermediate_size"] = config.intermediate_size * config.feedforward_experts
    if config.relation_projections:
        fields["moe"] = f"{config.attention_experts},{config.feedforward_experts}"
        fields["attention_head_size"] = config.hidden_size // config.num_attention_heads
    return fields


def state_from_published(
    state: Mapping[str, Tensor], config: MiniMoeConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Splits a published state dict into our parameters and the tensors that have no effect."""
    idle = _idle_keys(config)
    parameters: dict[str, Tensor] = {}
    extras: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = parameter_name(key)
        if name in idle or name == POSITION_IDS:
            extras[key] = tensor
        elif not name.startswith(DECODER):
            parameters[name] = tensor
    return parameters, extras


def state_to_published(state: Mapping[str, Tensor], config: MiniMoeConfig) -> dict[str, Tensor]:
    """Makes a published state dict of our parameters."""
    head = tied_decoder(state, state[EMBEDDINGS])
    parameters = {**state, **head}
    if not config.with_pooler and not head:
        parameters |= fresh_pooler(config)
    parameters |= {key: torch.zeros(shape) for key, shape in _idle_keys(config).items()}
    return published_tensors(parameters, config)


def _idle_keys(config: MiniMoeConfig) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the routers of blocks with one expert."""
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
