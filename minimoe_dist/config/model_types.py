"""Defines every model type: what a run of it teaches, and what its students are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Students(StrEnum):
    """The kinds of students that a run builds."""

    ENCODER = "encoder"
    SUB_MODEL = "sub-model"  # cut out of a sparsified model
    ONCE_FOR_ALL = "once-for-all"  # whole, with all of its sub-models


class Learns(StrEnum):
    """The signals that students learn from their teacher, if one runs."""

    RELATIONS = "relations"
    STATES = "states"  # TinyBERT's: states of layers, and attention scores


@dataclass(frozen=True)
class ModelType:
    """One model type; `recipes.model_types` has the classes and functions that go with it.

    Attributes:
        family: the students' family; None for any.
        students: how they are made.
        learns: what they learn from the teacher.
        has_experts: whether students may be mixtures of experts.
        defaults: section -> options that hold where a run does not set them.
    """

    family: str | None = None
    students: Students = Students.ENCODER
    learns: Learns = Learns.RELATIONS
    has_experts: bool = False
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_MASKED_LM: dict[str, dict[str, Any]] = {
    "data": {"data_type": "bert_mlm"},
    "objective": {"relation_weight": 0.0, "mlm_weight": 1.0},
}
# What `minimoe-dist sparsify` does; with a sparsity, `distill` trains that sub-model so.
SPARSIFICATION = "sparsebert_mlm"
MODEL_TYPES: dict[str, ModelType] = {
    "bert_minilm": ModelType("bert"),
    "moebert_minilm": ModelType(has_experts=True),
    "roberta_minilm": ModelType("roberta", defaults={"data": {"data_type": "roberta_nil"}}),
    "megatronbert_minilm": ModelType("megatron-bert"),
    "sparsebert_minilm": ModelType("bert", Students.SUB_MODEL),
    "ofabert_minilm": ModelType("bert", Students.ONCE_FOR_ALL),
    "bert_tinybert": ModelType("bert", learns=Learns.STATES),
    "bert_mlm": ModelType(defaults=_MASKED_LM),
    SPARSIFICATION: ModelType("bert", Students.SUB_MODEL, defaults=_MASKED_LM),
}


def types_that(**values: Any) -> list[str]:
    """Returns the names of the model types with these attributes."""
    return [
        name
        for name, kind in MODEL_TYPES.items()
        if all(getattr(kind, attribute) == value for attribute, value in values.items())
    ]


def defaults_of(model_type: object) -> dict[str, Mapping[str, Any]]:
    """Maps sections to the options that hold where a run of a model type does not set them."""
    kind = MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
    if kind is None:
        return {}
    plain = {} if kind.has_experts else {"students": {"moe": "1,1"}}
    return {**plain, **kind.defaults}
