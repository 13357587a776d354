"""What all published folders have in common."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

POSITION_IDS = "bert.embeddings.position_ids"
SHARED_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "hidden_act", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
    "initializer_range", "layer_norm_eps", "pad_token_id", "num_relation_heads",
)  # fmt: skip
_PUBLISHED, _OURS = "self.", "relation."


def shared_fields(config: Any) -> dict[str, Any]:
    """Fields of a published ``config.json`` that are ours by name."""
    return {name: getattr(config, name) for name in SHARED_FIELDS} | {"model_type": "bert"}


def our_name(key: str) -> str:
    """A published key in our words: ``self.query.weight`` to ``relation.query.weight``."""
    return _OURS + key.removeprefix(_PUBLISHED) if key.startswith(_PUBLISHED) else key


def published_name(key: str) -> str:
    """The inverse of :func:`our_name`."""
    return _PUBLISHED + key.removeprefix(_OURS) if key.startswith(_OURS) else key


def published_tensors(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Our parameters under published keys, with the position ids that folders used to have."""
    named = {published_name(key): tensor for key, tensor in state.items()}
    named[POSITION_IDS] = torch.arange(config.max_position_embeddings)[None]
    return named
