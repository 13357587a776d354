"""Names and fields that all published folders have in common."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...models.build import COMMON_FIELDS

POSITION_IDS = "bert.embeddings.position_ids"
EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
SHARED_FIELDS = (*COMMON_FIELDS, "hidden_size", "num_hidden_layers", "num_relation_heads")
POOLER_WEIGHT = "bert.pooler.dense.weight"
# Published beginnings of keys, and ours.
_PREFIXES = {"self.": "relation."}
_ROBERTA_PREFIXES = {
    "roberta.": "bert.",
    "lm_head.dense.": "cls.predictions.transform.dense.",
    "lm_head.layer_norm.": "cls.predictions.transform.LayerNorm.",
    "lm_head.": "cls.predictions.",
}
_HEAD_BIAS, DECODER = "cls.predictions.bias", "cls.predictions.decoder."


def fresh_pooler(config: Any) -> dict[str, Tensor]:
    """Draws the pooler of a student without one, the same for every file.

    Every BERT folder has one, untrained after distillation: ``BertModel`` would draw another one
    at each load, and say so.
    """
    size, generator = config.hidden_size, torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator) * config.initializer_range
    return {POOLER_WEIGHT: weight, "bert.pooler.dense.bias": torch.zeros(size)}


def shared_fields(config: Any) -> dict[str, Any]:
    """Returns the fields of a published ``config.json`` that are ours by name."""
    return {name: getattr(config, name) for name in SHARED_FIELDS} | {"model_type": config.family}


def parameter_name(key: str) -> str:
    """Returns our name of a published key: ``self.query.weight`` is ``relation.query.weight``."""
    for published, prefix in (_PREFIXES | _ROBERTA_PREFIXES).items():
        if key.startswith(published):
            return prefix + key.removeprefix(published)
    return key


def published_name(key: str, family: str = "bert") -> str:
    """Returns the published key of our name: the inverse of :func:`parameter_name`."""
    prefixes = _PREFIXES | (_ROBERTA_PREFIXES if family == "roberta" else {})
    for published, prefix in prefixes.items():
        if key.startswith(prefix):
            return published + key.removeprefix(prefix)
    return key


def published_tensors(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Puts our parameters under published keys, with the position ids that folders used to have."""
    family = config.family
    tensors = {published_name(key, family): tensor for key, tensor in state.items()}
    positions = torch.arange(config.max_position_embeddings)[None]
    return tensors | {published_name(POSITION_IDS, family): positions}


def tied_decoder(state: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """Returns the decoder of a masked-LM head by our names: tied weights, and the bias again."""
    if _HEAD_BIAS not in state:
        return {}
    return {f"{DECODER}weight": weight, f"{DECODER}bias": state[_HEAD_BIAS]}
