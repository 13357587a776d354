"""Exports trained students, and tells their size and cost in words and numbers."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoints.export import elastic_student, export_elastic, export_student
from ..checkpoints.state_map import STATE_MAP, save_state_map
from ..checkpoints.tensors import replaced_model
from ..config import RunConfig
from ..config.checks import BEST_CANDIDATE
from ..models.compute import RelationPath, sequence_gmac
from ..models.configuration import MiniMoeConfig
from ..models.elastic_configuration import ElasticConfig
from ..models.submodels import once_for_all_name
from ..objectives.tradeoff import best_candidate
from ..runs.summaries import StudentSummary, SubModelSummary, Tradeoff


class Heldout(NamedTuple):
    """Held-out losses of students and sub-models by name; empty where nothing was evaluated."""

    before: Mapping[str, float]
    after: Mapping[str, float]

    def of(self, name: str) -> dict[str, float | None]:
        """Returns the fields of a summary."""
        return {
            "heldout_loss_before": self.before.get(name),
            "heldout_loss_after": self.after.get(name),
        }


def export_all(
    name: str,
    config: MiniMoeConfig,
    weights: Mapping[str, Tensor],
    folder: Path,
    tokenizer: Any,
    heldout: Heldout,
) -> StudentSummary:
    """Writes a student to ``folder``, and a once-for-all student's sub-models beside it.

    A map of last states goes beside the folder, for students that go on from there.

    Args:
        name: the student's in its run.
        config: its configuration.
        weights: all of them.
        folder: its own; a sub-model's has its size behind the name (``…_3l_384h``).
        tokenizer: saved beside each model.
        heldout: losses of the run.

    Returns:
        What a summary tells of the student.
    """
    export_student(config, weights, folder, tokenizer)
    save_state_map(weights, folder)
    summary = StudentSummary(
        student=describe(config),
        **heldout.of(name),
        student_gmac=sequence_gmac(config),
        student_parameters=sum(
            value.numel() for name, value in weights.items() if not name.startswith(STATE_MAP)
        ),
        export=str(folder),
    )
    if not config.sub_models:
        return summary
    assert isinstance(config, ElasticConfig)
    model, sub_models = elastic_student(config, weights), {}
    for sub_model in config.sub_models:
        target = folder.with_name(once_for_all_name(folder.name, sub_model))
        full_name = once_for_all_name(name, sub_model)
        sub_models[full_name] = SubModelSummary(
            sub_model=sub_model,
            **heldout.of(full_name),
            student_gmac=config.shape(sub_model).gmac(config.sizes.head_size),
            export=str(export_elastic(model, target, tokenizer, sub_model)),
        )
    return summary.model_copy(update={"sub_models": sub_models})


def keep_best(config: RunConfig, heldout: Mapping[str, float]) -> Tradeoff:
    """Copies the export of the student with the best λ-tradeoff to ``export/best`` (MiniDisc).

    Args:
        config: the run, with ``tradeoff_lambda``.
        heldout: student -> relation loss on held-out text.

    Returns:
        The choice, for the summary.
    """
    assert config.tradeoff_lambda is not None
    sparsities = {student.name: float(student.sparsity or 0) / 100 for student in config.students}
    name, scores = best_candidate(heldout, sparsities, config.tradeoff_lambda)
    target = Path(config.export_folder(BEST_CANDIDATE))
    with replaced_model(target) as aside:
        shutil.copytree(config.export_folder(name), aside, dirs_exist_ok=True)
    return Tradeoff(best=name, export=str(target), candidates=scores)


def relation_paths(config: MiniMoeConfig) -> list[RelationPath]:
    """Returns what each pass of a student computes for its signals."""
    if isinstance(config, ElasticConfig):
        names = config.sub_models or (config.sparsity,)
        return [_sliced_path(config, name) for name in names]
    routers = sum(
        count for count in (config.attention_experts, config.feedforward_experts) if count > 1
    )
    layers, width, state_width = config.num_hidden_layers, config.hidden_size, config.state_width
    runs_all = config.relation_projections or state_width is not None
    return [
        RelationPath(
            layers if runs_all else layers - 1,
            width,
            config.intermediate_size,
            routers,
            on_top=float(width * (state_width or 0)),
        )
    ]


def _sliced_path(config: ElasticConfig, sparsity: str) -> RelationPath:
    shape, head_size = config.shape(sparsity), config.sizes.head_size
    layers = [layer for layer in shape.layers if not layer.missing]
    heads = sum(layer.heads for layer in layers) / len(layers)
    return RelationPath(
        len(layers),
        shape.hidden,
        sum(layer.neurons for layer in layers) / len(layers),
        attention=heads * head_size,
        signals=config.hidden_size,  # states are put back to the whole width
    )


def describe(config: MiniMoeConfig) -> str:
    """Describes a student for people: "MiniMoE 3L;192H 1,4E", "sparse MiniLM 12L;768H 90%".

    Neurons of feed-forward blocks are told where they are not 4 H: "MiniLM 3L;192H, 3072 neurons".
    """
    size = f"{config.num_hidden_layers}L;{config.hidden_size}H"
    neurons = config.intermediate_size
    inner = f", {neurons} neurons" if neurons != 4 * config.hidden_size else ""
    if config.sub_models:
        return f"once-for-all {size}, {len(config.sub_models)} sub-models"
    if isinstance(config, ElasticConfig):
        return f"sparse MiniLM {size} {config.sparsity}%"
    if config.is_dense:
        return f"{'TinyBERT' if config.teacher_hidden_size else 'MiniLM'} {size}{inner}"
    return f"MiniMoE {size} {config.attention_experts},{config.feedforward_experts}E{inner}"
