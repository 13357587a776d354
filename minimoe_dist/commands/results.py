"""What becomes of a trained student: its exports, and its size and cost in words and numbers."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.export import export_elastic, export_student
from ..checkpoints.files import PARTIAL, beside, make_empty, replace_folder
from ..config import RunConfig
from ..config.checks import BEST_CANDIDATE
from ..models.compute import RelationPath, encoder_gmac
from ..models.configuration import MiniMoeConfig
from ..models.elastic import ElasticForRelations
from ..models.elastic_configuration import ElasticConfig
from ..models.submodels import WHOLE
from ..objectives.tradeoff import best_candidate


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


def keep_best(config: RunConfig, heldout: Mapping[str, float]) -> dict[str, Any]:
    """Copies the export of the student with the best λ-tradeoff to ``export/best`` (MiniDisc).

    Args:
        config: the run, with ``tradeoff_lambda``.
        heldout: student -> relation loss on held-out text.

    Returns:
        For the summary: the student's name, and all students' scores.
    """
    assert config.tradeoff_lambda is not None
    sparsities = {one.name: float(one.sparsity or 0) / 100 for one in config.students}
    name, scores = best_candidate(heldout, sparsities, config.tradeoff_lambda)
    target = Path(config.export_folder(BEST_CANDIDATE))
    aside = beside(target, PARTIAL)
    make_empty(aside)
    shutil.copytree(config.export_folder(name), aside, dirs_exist_ok=True)
    replace_folder(aside, target)
    return {"best": name, "export": str(target), "candidates": scores}


def is_once_for_all(config: MiniMoeConfig) -> bool:
    """Whether a student's sub-models are trained together."""
    if not isinstance(config, ElasticConfig) or config.sparsity != WHOLE:
        return False
    return bool(config.sparsity_map) and all("," in name for name in config.sparsity_map)


def relation_paths(config: MiniMoeConfig) -> list[RelationPath]:
    """What each pass of a student computes for its signals; sparse layers count by their mean."""
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
    shape = config.shape(sparsity)
    there = [layer for layer in shape.layers if not layer.missing]
    neurons = sum(layer.neurons for layer in there) // len(there)
    return RelationPath(len(there), shape.hidden, neurons)


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
