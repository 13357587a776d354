"""Sparse and once-for-all students in the published layout.

Their configuration is the whole model's, with its ``sparsity_map`` and the ``sparsity`` whose
weights there are. ``bert.recover_indices`` is float32 there; here it is integers of the
configuration. Published once-for-all sub-models keep the LayerNorms of layers that they lack.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...models.elastic_configuration import ElasticConfig
from ...models.submodels import WHOLE
from .layout import (
    DECODER,
    EMBEDDINGS,
    POSITION_IDS,
    SHARED_FIELDS,
    parameter_name,
    published_tensors,
    shared_fields,
    tied_decoder,
)

_RECOVER_INDICES = "bert.recover_indices"
_KEEPS = "keep_missing_layers"  # not in published folders: they all do


def is_elastic(published: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Returns whether a folder is of this kind; a map does not tell, every BERT there has one."""
    return _RECOVER_INDICES in state or str(published.get("sparsity", WHOLE)) != WHOLE


def config_from_published(
    published: Mapping[str, Any], state: Mapping[str, Tensor]
) -> ElasticConfig:
    """Makes our configuration of a published folder's.

    Raises:
        ValueError: the map has no such sub-model, or ``recover_indices`` is no order.
    """
    fields = {name: published[name] for name in SHARED_FIELDS if name in published}
    indices = None
    if _RECOVER_INDICES in state:
        indices = state[_RECOVER_INDICES].double().round().long().tolist()
    return ElasticConfig(
        **fields,
        num_attention_heads=published["num_attention_heads"],
        intermediate_size=published["intermediate_size"],
        sparsity=str(published.get("sparsity", WHOLE)),
        sparsity_map=published.get("sparsity_map"),
        recover_indices=None if indices == list(range(len(indices or ()))) else indices,
        keep_missing_layers=published.get(_KEEPS, True),
        relation_projections="self.query.weight" in state,
    )


def config_to_published(config: ElasticConfig) -> dict[str, Any]:
    """Makes the published ``config.json`` of our configuration."""
    fields = shared_fields(config) | {
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "attention_head_size": config.sizes.head_size,
        "sparsity": config.sparsity,
        "sparsity_map": config.sparsity_map,
    }
    if not config.keep_missing_layers:
        fields[_KEEPS] = False
    return fields


def state_from_published(
    state: Mapping[str, Tensor], config: ElasticConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Splits a published state dict into our parameters and the tensors that have no effect."""
    parameters: dict[str, Tensor] = {}
    extras: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key in (POSITION_IDS, _RECOVER_INDICES):
            continue
        if key.startswith(DECODER) or _is_of_empty_block(key, config):
            extras[key] = tensor
        else:
            parameters[parameter_name(key)] = tensor
    tied = _tied_decoder(parameters, config)
    for key in [key for key in extras if key in tied and torch.equal(extras[key], tied[key])]:
        del extras[key]
    return parameters, extras


def state_to_published(state: Mapping[str, Tensor], config: ElasticConfig) -> dict[str, Tensor]:
    """Makes a published state dict of our parameters."""
    published = published_tensors(state, config)
    published[_RECOVER_INDICES] = _recover_indices(config).float()
    return published | _tied_decoder(state, config)


def _recover_indices(config: ElasticConfig) -> Tensor:
    return torch.tensor(config.recover_indices or range(config.hidden_size))


def _tied_decoder(state: Mapping[str, Tensor], config: ElasticConfig) -> dict[str, Tensor]:
    """Returns the masked-LM decoder: word embeddings with dimensions at their original places."""
    embeddings = state[EMBEDDINGS]
    indices = _recover_indices(config)[: embeddings.shape[1]]
    wide = embeddings.new_zeros(len(embeddings), config.hidden_size)
    return tied_decoder(state, wide.index_copy(1, indices, embeddings))


def _is_of_empty_block(key: str, config: ElasticConfig) -> bool:
    """Returns whether a key is of a block without heads or neurons, LayerNorms aside."""
    match = re.fullmatch(
        r"bert\.encoder\.layer\.(\d+)\.(attention\.(?:self|output\.dense)|intermediate|output\.dense)\..+",
        key,
    )
    if match is None or int(match[1]) >= config.num_hidden_layers:
        return False
    layer = config.shape().layers[int(match[1])]
    return not (layer.heads if match[2].startswith("attention") else layer.neurons)
