"""What becomes of a trained student: its exports, and its size and cost in words and numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.export import export_elastic, export_student
from ..models.compute import RelationPath, encoder_gmac
from ..models.configuration import MiniMoeConfig
from ..models.elastic import ElasticForRelations
from ..models.elastic_configuration import ElasticConfig
from ..models.submodels import WHOLE


def export_all(
    config: MiniMoeConfig, weights: Mapping[str, Tensor], folder: Path, tokenizer: Any
) -> dict[str, str]:
    """Writes a student to ``folder``, and a once-for-all student's sub-models beside it.

    Returns:
        Sub-model ("3,384") -> its folder (``…_3l_384h``); empty for other students.
    """
    export_student(config, weights, folder, tokenizer)
    folders: dict[str, str] = {}
    if not is_once_for_all(config):
        return folders
    assert isinstance(config, ElasticConfig)
    with torch.random.fork_rng(devices=[]):
        model = ElasticForRelations(config)
    model.load_state_dict(dict(weights))
    for name in config.sparsity_map:
        layers, hidden = name.split(",")
        target = folder.with_name(f"{folder.name}_{layers}l_{hidden}h")
        folders[name] = str(export_elastic(model, target, tokenizer, name))
    return folders


def is_once_for_all(config: MiniMoeConfig) -> bool:
    """Whether a student's sub-models are trained together."""
    if not isinstance(config, ElasticConfig) or config.sparsity != WHOLE:
        return False
    return bool(config.sparsity_map) and all("," in name for name in config.sparsity_map)


def relation_paths(config: MiniMoeConfig) -> list[RelationPath]:
    """What each pass of a student computes for its signals."""
    if isinstance(config, ElasticConfig):
        names = list(config.sparsity_map) if is_once_for_all(config) else [config.sparsity]
        return [_sliced_path(config, name) for name in names]
    routers = sum(
        count for count in (config.attention_experts, config.feedforward_experts) if count > 1
    )
    layers = config.num_hidden_layers
    whole = layers if config.relation_projections else layers - 1
    return [RelationPath(whole, config.hidden_size, config.intermediate_size, routers)]


def _sliced_path(config: ElasticConfig, sparsity: str) -> RelationPath:
    shape, head_size = config.shape(sparsity), config.sizes.head_size
    there = [layer for layer in shape.layers if not layer.missing]
    heads = sum(layer.heads for layer in there) / len(there)
    return RelationPath(
        len(there),
        shape.hidden,
        sum(layer.neurons for layer in there) / len(there),
        attention=heads * head_size,
        signals=config.hidden_size,  # states are put back to the whole width
    )


def student_gmac(config: MiniMoeConfig) -> float:
    """10⁹ multiply-accumulates of a sequence of 128, of the whole student."""
    if isinstance(config, ElasticConfig):
        return config.shape().gmac(config.sizes.head_size)
    return encoder_gmac(config.num_hidden_layers, config.hidden_size)


def describe(config: MiniMoeConfig) -> str:
    """For people: "MiniMoE 3L;192H 1,4E", "MiniLM 3L;192H", "sparse MiniLM 12L;768H 90%"."""
    size = f"{config.num_hidden_layers}L;{config.hidden_size}H"
    if is_once_for_all(config):
        assert isinstance(config, ElasticConfig)
        return f"once-for-all {size}, {len(config.sparsity_map)} sub-models"
    if isinstance(config, ElasticConfig):
        return f"sparse MiniLM {size} {config.sparsity}%"
    if config.is_dense:
        return f"{'TinyBERT' if config.teacher_hidden_size else 'MiniLM'} {size}"
    return f"MiniMoE {size} {config.attention_experts},{config.feedforward_experts}E"
