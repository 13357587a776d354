"""What each model type stands for: the objective, its teacher, and how a student is made."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..checkpoints.export import load_student
from ..checkpoints.published import is_published_student
from ..config import RunConfig, StudentConfig
from ..config.paths import read_model_json
from ..models.build import build_student, student_config
from ..models.compute import RelationPath
from ..models.configuration import MiniMoeConfig
from ..models.elastic import ElasticForRelations
from ..models.elastic_build import load_sparse_student, once_for_all_config
from ..models.mlm_head import MiniMoeForMaskedLM
from ..models.moebert import MiniMoeForRelations
from ..models.pretrained import encoder_dtype, read_encoder_config
from ..models.teacher import RelationTeacher, load_teacher, teacher_of
from ..models.tinybert import MiniMoeForStates, load_state_teacher
from ..runtime import resolve_model_path
from ..train.objectives import (
    MaskedLmObjective,
    Objective,
    OnceForAllObjective,
    RelationObjective,
    TinyBertObjective,
)
from ..train.teacher_sharding import held_bytes, load_sharded_teacher

_SEED_RELATION_DROPOUT = 0.1


@dataclass(frozen=True)
class Lesson:
    """What is taught in a run.

    Attributes:
        objective: with the loaded teacher, if it has one.
        teacher: the configuration of the uncut teacher.
        path: what the teacher computes; None where no teacher runs.
        teacher_bytes: of the teacher's weights that this rank holds.
    """

    objective: Objective
    teacher: PreTrainedConfig
    path: RelationPath | None
    teacher_bytes: int = 0


@dataclass(frozen=True)
class ModelType:
    """How runs of a model type teach, and how their students are made."""

    teach: Callable[[RunConfig, torch.device], Lesson]
    make: Callable[[RunConfig, StudentConfig, Any], PreTrainedModel]


def open_lesson(config: RunConfig, device: torch.device) -> Lesson:
    """Loads the teacher of a run.

    Raises:
        ValueError: there is no such teacher, or it does not fit the run.
    """
    return _MODEL_TYPES[config.model_type].teach(config, device)


def make_student(config: RunConfig, index: int, lesson: Lesson) -> PreTrainedModel:
    """A run's student by number: whole, on CPU, the same on every rank.

    Raises:
        ValueError: its options do not fit each other, the teacher or the weights that they name.
    """
    options = config.students[index]
    base: Any = lesson.teacher
    if options.model_name_or_path is not None:
        base = AutoConfig.from_pretrained(resolve_model_path(options.model_name_or_path))
    student = _MODEL_TYPES[config.model_type].make(config, options, base)
    theirs, ours = lesson.teacher.vocab_size, student.config.vocab_size
    if theirs != ours:
        raise ValueError(
            f"students.{options.name}: has a vocabulary of {ours}, its teacher "
            f"{config.teacher.model_name_or_path} of {theirs}: give two of one tokenizer"
        )
    return student


def _relation_teacher(config: RunConfig, device: torch.device) -> RelationTeacher:
    options = config.teacher
    path = options.model_name_or_path
    folder = resolve_model_path(path)
    if options.layout != "replicated":
        return load_sharded_teacher(
            path,
            layout=options.layout,
            parallel_size=options.parallel_size,
            offload=options.offload == "cpu",
            relation_layer=options.relation_layer,
            dtype=options.dtype,
            device=device,
        )
    if is_published_student(read_model_json(folder)):
        if options.relation_layer != -1:
            raise ValueError(
                f"teacher.relation_layer: {options.relation_layer} is no layer with signals of "
                f"{path}, a student with relation projections behind its last layer; give -1"
            )
        dtype = encoder_dtype(options.dtype, device)
        return teacher_of(load_student(folder)).to(device, dtype)
    return load_teacher(
        path, relation_layer=options.relation_layer, dtype=options.dtype, device=device
    )


def _relation_objective(
    config: RunConfig, device: torch.device, objective_class: type[RelationObjective]
) -> tuple[RelationObjective, Lesson]:
    teacher = _relation_teacher(config, device)
    compat_seed = config.compat == "seed"
    objective = objective_class(
        teacher,
        config.objective.num_relation_heads,
        config.objective.relation_weight,
        compat_seed,
        _SEED_RELATION_DROPOUT if compat_seed else 0.0,
        config.seed,
    )
    path = RelationPath(teacher.layers_run, teacher.hidden_size, teacher.config.intermediate_size)
    return objective, Lesson(objective, teacher.config, path, held_bytes(teacher))


def _teach_relations(config: RunConfig, device: torch.device) -> Lesson:
    """Relations, masked LM, or both: as their weights say."""
    weight = config.objective.mlm_weight
    if not config.objective.relation_weight:
        path = config.teacher.model_name_or_path
        teacher = read_encoder_config(path, resolve_model_path(path))
        return Lesson(MaskedLmObjective(weight), teacher, None)
    objective, lesson = _relation_objective(config, device, RelationObjective)
    if not weight:
        return lesson
    return replace(lesson, objective=MaskedLmObjective(weight, objective))


def _teach_sub_models(config: RunConfig, device: torch.device) -> Lesson:
    return _relation_objective(config, device, OnceForAllObjective)[1]


def _teach_states(config: RunConfig, device: torch.device) -> Lesson:
    teacher = load_state_teacher(
        config.teacher.model_name_or_path, dtype=config.teacher.dtype, device=device
    )
    padded = config.data.max_length if config.compat == "seed" else None
    objective = TinyBertObjective(teacher, teacher.hidden_size, teacher.num_heads, padded)
    whole = teacher.config
    path = RelationPath(whole.num_hidden_layers, teacher.hidden_size, whole.intermediate_size)
    return Lesson(objective, whole, path)


def _student_config(config: RunConfig, options: StudentConfig, base: Any) -> MiniMoeConfig:
    learns_relations = config.objective.relation_weight and config.model_type != "bert_tinybert"
    return student_config(
        base,
        layers=options.layer,
        hidden=options.hidden,
        heads=options.heads,
        experts=(options.attention_experts, options.feedforward_experts),
        # One divides any width.
        num_relation_heads=config.objective.num_relation_heads if learns_relations else 1,
        router_noise=options.router_noise,
        compat_seed=config.compat == "seed",
    )


def _make_encoder(config: RunConfig, options: StudentConfig, base: Any) -> PreTrainedModel:
    masked = bool(config.objective.mlm_weight)
    model_class = MiniMoeForMaskedLM if masked else MiniMoeForRelations
    # Every student starts as it would alone, so the seed does not count them.
    given = options.initial_weights
    if given is None or options.start == "copies":
        return build_student(
            _student_config(config, options, base),
            config.seed,
            start=options.start,
            dense=None if given is None else _plain_student(given),
            copy_noise=options.copy_noise,
            model_class=model_class,
        )
    return _go_on(_load(given), model_class, config.seed)


def _load(path: str) -> PreTrainedModel:
    student: PreTrainedModel = load_student(resolve_model_path(path))
    return student


def _plain_student(path: str) -> MiniMoeForRelations:
    student = _load(path)
    if not isinstance(student, MiniMoeForRelations):
        raise ValueError(f"initial_weights: {path} is no plain student to copy: give a MiniLM one")
    return student


def _go_on(
    student: PreTrainedModel, model_class: type[PreTrainedModel], seed: int
) -> PreTrainedModel:
    """A student with the objective's own parts on top, fresh where its folder had none."""
    if type(student) is model_class:
        return student
    again = build_student(student.config, seed, model_class=model_class)
    own, given = again.state_dict(), student.state_dict()
    again.load_state_dict({name: given.get(name, value) for name, value in own.items()})
    return again


def _make_sparse(config: RunConfig, options: StudentConfig, base: Any) -> PreTrainedModel:
    path = options.initial_weights or options.model_name_or_path
    assert path is not None and options.sparsity is not None, "checked with the options"
    return load_sparse_student(
        path,
        options.sparsity,
        num_relation_heads=config.objective.num_relation_heads,
        seed=config.seed,
    )


def _make_once_for_all(config: RunConfig, options: StudentConfig, base: Any) -> PreTrainedModel:
    if options.initial_weights is not None:
        return _load(options.initial_weights)
    assert options.ofa_layer and options.ofa_hidden, "checked with the options"
    sliceable = once_for_all_config(
        base,
        layers=options.layer,
        hidden=options.hidden,
        heads=options.heads,
        sub_layers=options.ofa_layer,
        sub_hidden=options.ofa_hidden,
        num_relation_heads=config.objective.num_relation_heads,
        compat_seed=config.compat == "seed",
    )
    sliceable.relation_projections = True
    return build_student(sliceable, config.seed, model_class=ElasticForRelations)


def _make_tinybert(config: RunConfig, options: StudentConfig, base: Any) -> PreTrainedModel:
    path = config.teacher.model_name_or_path
    teacher = read_encoder_config(path, resolve_model_path(path))
    if options.heads != teacher.num_attention_heads:
        raise ValueError(
            f"students.{options.name}.heads: {options.heads}, but TinyBERT compares attention head "
            f"by head and {path} has {teacher.num_attention_heads}: give as many"
        )
    if options.initial_weights is not None:
        student = _load(options.initial_weights)
        student.config.teacher_hidden_size = teacher.hidden_size
        return _go_on(student, MiniMoeForStates, config.seed)
    own = _student_config(config, options, base)
    own.teacher_hidden_size = teacher.hidden_size
    return build_student(own, config.seed, model_class=MiniMoeForStates)


_ENCODERS = ModelType(_teach_relations, _make_encoder)
_MODEL_TYPES = {
    "bert_minilm": _ENCODERS,
    "moebert_minilm": _ENCODERS,
    "roberta_minilm": _ENCODERS,
    "megatronbert_minilm": _ENCODERS,
    "bert_mlm": _ENCODERS,
    "sparsebert_minilm": ModelType(_teach_relations, _make_sparse),
    "ofabert_minilm": ModelType(_teach_sub_models, _make_once_for_all),
    "bert_tinybert": ModelType(_teach_states, _make_tinybert),
}
