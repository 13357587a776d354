"""Makes what each model type stands for: the objective, its teacher, the students."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..checkpoints.export import load_student
from ..checkpoints.state_map import has_state_map, load_state_map
from ..config import RunConfig, StudentConfig
from ..config.model_types import Learns, Students
from ..config.schema import Start
from ..errors import UserError
from ..model_description import describe_model, require_model
from ..model_paths import resolve_model_path
from ..models.blocks import set_dropout
from ..models.build import build_student, build_student_from, student_config
from ..models.compute import RelationPath
from ..models.configuration import MiniMoeConfig
from ..models.elastic import ElasticForRelations
from ..models.elastic_build import once_for_all_config, sparse_student
from ..models.mlm_head import ElasticForRelationsAndMaskedLM, MiniMoeForRelationsAndMaskedLM
from ..models.moebert import MiniMoeForRelations, MiniMoePreTrainedModel
from ..models.pretrained import base_of_students, encoder_dtype, read_encoder_config, size_of
from ..models.teacher import RelationTeacher, load_teacher, teacher_of
from ..models.tinybert import (
    MiniMoeForStates,
    MiniMoeForStatesAndMaskedLM,
    load_state_teacher,
)
from ..runtime import logger
from ..train.objectives import (
    JointObjective,
    MaskedLmObjective,
    Objective,
    RelationObjective,
    TinyBertObjective,
)

_log = logger("model_types")
_SEED_RELATION_DROPOUT = 0.1
# What is built of starts that are then fitted to text.
_BUILT: Mapping[str, Start] = {"teacher": "split", "clusters": "copies"}

Loaded = TypeVar("Loaded", bound=PreTrainedModel)


@dataclass(frozen=True)
class Lesson:
    """The objective of a run's students, and the teacher.

    Attributes:
        objective: with the loaded teacher, if it has one.
        teacher: the configuration of the uncut teacher.
        path: what the teacher computes; None where no teacher runs.
        model: the loaded teacher, if there is one.
        teacher_bytes: of the teacher's weights that this rank holds.
    """

    objective: Objective
    teacher: PreTrainedConfig
    path: RelationPath | None
    model: nn.Module | None = None
    teacher_bytes: int = 0


@dataclass(frozen=True)
class _StudentFactory:
    """The way in which students of a kind are made.

    Attributes:
        make: makes a student of a class, of options, the teacher's configuration and the one that
            it is derived from.
        student_class: of students that learn from a teacher alone.
        masked_lm_class: of those that predict masked tokens too, or alone.
    """

    make: Callable[[RunConfig, StudentConfig, PreTrainedConfig, Any, type[Any]], PreTrainedModel]
    student_class: type[PreTrainedModel]
    masked_lm_class: type[PreTrainedModel]


def open_lesson(config: RunConfig, device: torch.device) -> Lesson:
    """Opens a run's lesson: a teacher teaches, text does (masked LM), or both, as weights say.

    Raises:
        UserError: there is no such teacher, or it does not fit the run.
    """
    if not config.objective.relation_weight:
        path = config.teacher.model_name_or_path
        teacher = read_encoder_config(path, resolve_model_path(path))
        return Lesson(make_objective(config, None), teacher, None)
    return _LESSON_OPENERS[config.kind.learns](config, device)


def make_objective(config: RunConfig, teacher: Any) -> Objective:
    """Makes the objective that the weights of a run ask for.

    Args:
        config: the run.
        teacher: None where text alone teaches.
    """
    masked_lm = MaskedLmObjective(config.objective.mlm_weight)
    if teacher is None:
        return masked_lm
    objective: Objective
    weight = config.objective.relation_weight
    compat_seed = config.compat == "seed"
    if config.kind.learns is Learns.STATES:
        padded = config.data.max_length if compat_seed else None
        objective = TinyBertObjective(
            teacher, teacher.hidden_size, teacher.num_heads, weight, padded
        )
    else:
        objective = RelationObjective(
            teacher,
            config.objective.num_relation_heads,
            weight,
            compat_seed,
            _SEED_RELATION_DROPOUT if compat_seed else 0.0,
            config.seed,
            config.objective.state_weight,
        )
    return JointObjective([objective, masked_lm]) if config.objective.mlm_weight else objective


def student_class(config: RunConfig) -> type[Any]:
    """Returns the class of a run's students, with what they are trained for on top."""
    factory = _FACTORIES[config.kind.learns, config.kind.students]
    return factory.masked_lm_class if config.objective.mlm_weight else factory.student_class


def make_student(config: RunConfig, index: int, lesson: Lesson) -> PreTrainedModel:
    """Makes a run's student by number: whole, on CPU, the same on every rank.

    Raises:
        UserError: its options do not fit each other, the teacher or the weights that they name.
    """
    options = config.students[index]
    base = _base(options, lesson.teacher)
    factory = _FACTORIES[config.kind.learns, config.kind.students]
    student = factory.make(config, options, lesson.teacher, base, student_class(config))
    assert student.config.vocab_size == lesson.teacher.vocab_size, options.name
    if options.dropout is not None:
        set_dropout(student, options.dropout)
    return student


def teacher_config(path: str) -> PreTrainedConfig:
    """Returns the configuration of a run's uncut teacher, of which its students are derived."""
    folder = resolve_model_path(path)
    if require_model(path, "teacher.model_name_or_path", teaches=True).is_published_student:
        return load_student(folder).config
    return read_encoder_config(path, folder)


def _base(options: StudentConfig, teacher: PreTrainedConfig) -> Any:
    """Returns the configuration that a student's is derived from: the teacher's, or a given one."""
    if options.model_name_or_path is None:
        return base_of_students(teacher)
    path = resolve_model_path(options.model_name_or_path)
    return AutoConfig.from_pretrained(path, trust_remote_code=False)


def make_fresh_student(
    config: RunConfig, options: StudentConfig, teacher: PreTrainedConfig
) -> MiniMoeForRelations:
    """Makes the student that a start is fitted in: a random one, or copies of a plain one.

    Args:
        config: the run.
        options: the student's.
        teacher: the configuration of the uncut teacher.
    """
    base = _base(options, teacher)
    # A head that predicts masked tokens goes along: a plain student's has learnt.
    student = _make_encoder(config, options, teacher, base, student_class(config))
    assert isinstance(student, MiniMoeForRelations)
    return student


def _relation_teacher(config: RunConfig, device: torch.device) -> RelationTeacher:
    options, with_states = config.teacher, config.learns_last_states
    path = options.model_name_or_path
    folder = resolve_model_path(path)
    if options.implementation == "megatron":
        from ..train.megatron_teacher import load_megatron_teacher

        return load_megatron_teacher(
            path,
            parallel_size=options.ranks(dist.get_world_size()),
            relation_layer=options.relation_layer,
            with_states=with_states,
            dtype=options.dtype,
            device=device,
            timeout_seconds=config.parallel.timeout_seconds,
        )
    if options.layout != "replicated":
        # Brings DeepSpeed, which takes seconds that plans need not wait for.
        from ..train.teacher_sharding import load_sharded_teacher

        return load_sharded_teacher(
            path,
            layout=options.layout,
            parallel_size=options.parallel_size,
            offload=options.offload == "cpu",
            relation_layer=options.relation_layer,
            with_states=with_states,
            dtype=options.dtype,
            device=device,
        )
    if require_model(path, "teacher.model_name_or_path", teaches=True).is_published_student:
        assert options.relation_layer == -1, options.relation_layer
        dtype = encoder_dtype(options.dtype, device)
        return teacher_of(load_student(folder), with_states).to(device, dtype)
    return load_teacher(
        path,
        relation_layer=options.relation_layer,
        with_states=with_states,
        dtype=options.dtype,
        device=device,
    )


def _teach_relations(config: RunConfig, device: torch.device) -> Lesson:
    from ..train.teacher_sharding import held_bytes

    if config.learns_last_states:
        _warn_of_untrained_states(config.teacher.model_name_or_path)
    teacher = _relation_teacher(config, device)
    objective = make_objective(config, teacher)
    neurons = size_of(teacher.config, "intermediate_size")
    path = RelationPath(teacher.layers_run, teacher.hidden_size, neurons)
    return Lesson(objective, teacher.config, path, teacher, held_bytes(teacher))


def _warn_of_untrained_states(path: str) -> None:
    """Warns of a plain student as a teacher whose last layer nothing has trained."""
    described = describe_model(path, "teacher.model_name_or_path", teaches=True)
    if (
        described is not None
        and described.is_student
        and not described.signals_on_top
        and "MaskedLM" not in described.architecture
        and not has_state_map(described.folder)
    ):
        _log.warning(
            "objective.state_weight: %s is a plain student that seems to have learnt relations "
            "alone; what its last layer gives is then untrained: use 0, or teach it with "
            "state_weight too",
            path,
        )


def _teach_states(config: RunConfig, device: torch.device) -> Lesson:
    teacher = load_state_teacher(
        config.teacher.model_name_or_path, dtype=config.teacher.dtype, device=device
    )
    whole = teacher.config
    path = RelationPath(whole.num_hidden_layers, teacher.hidden_size, whole.intermediate_size)
    return Lesson(make_objective(config, teacher), whole, path, teacher)


def _relation_heads(config: RunConfig) -> int:
    # Without relations 1, which divides any width.
    return config.objective.num_relation_heads if config.learns_relations else 1


def _student_config(
    config: RunConfig, options: StudentConfig, teacher: PreTrainedConfig, base: Any
) -> MiniMoeConfig:
    encoder_config = student_config(
        base,
        layers=options.layer,
        hidden=options.hidden,
        heads=options.heads,
        experts=(options.attention_experts, options.feedforward_experts),
        num_relation_heads=_relation_heads(config),
        neurons=options.neurons,
        router_noise=options.router_noise,
        compat_seed=config.compat == "seed",
    )
    _set_signals(config, encoder_config, teacher)
    return encoder_config


def _set_signals(config: RunConfig, student: MiniMoeConfig, teacher: PreTrainedConfig) -> None:
    """Says in a student's configuration what it gives for a run's objective, and by which maps."""
    experts = (student.attention_experts, student.feedforward_experts)
    student.relation_projections = config.projects_relations(*experts)
    learns_states = config.learns_last_states
    student.state_width = size_of(teacher, "hidden_size") if learns_states else None


def _make_encoder(
    config: RunConfig,
    options: StudentConfig,
    teacher: PreTrainedConfig,
    base: Any,
    student_class: type[Any],
) -> PreTrainedModel:
    # Every student starts as it would alone, so the seed does not count them.
    weights_path = options.initial_weights
    folder = None if weights_path is None else Path(resolve_model_path(weights_path))
    if weights_path is None or options.has_copies:
        built = build_student(
            _student_config(config, options, teacher, base),
            config.seed,
            # What is made at the start of a run is read from a folder; where none is made, sizes
            # are what counts.
            start=_BUILT.get(options.start, options.start),
            dense=None if weights_path is None else _load(weights_path, MiniMoeForRelations),
            copy_noise=options.copy_noise,
            # Its last layer has learnt more than these maps where it learnt last states.
            fits_maps=folder is None or not has_state_map(folder),
            model_class=student_class,
        )
    else:
        student = _load(weights_path, MiniMoePreTrainedModel)
        _set_signals(config, student.config, teacher)
        built = build_student_from(student, student.config, student_class, config.seed)
    if folder is not None:
        load_state_map(built, folder)
    return built


def _load(path: str, kind: type[Loaded]) -> Loaded:
    """Loads a student to start from, and checks its class: only weights tell a published one's."""
    student = load_student(resolve_model_path(path))
    if not isinstance(student, kind):
        raise UserError(
            f"initial_weights: {path} holds a {type(student).__name__}, which is no "
            f"{kind.__name__}: give a student of this model type"
        )
    return student


def _make_sparse(
    config: RunConfig,
    options: StudentConfig,
    teacher: PreTrainedConfig,
    base: Any,
    student_class: type[Any],
) -> PreTrainedModel:
    path = options.initial_weights or options.model_name_or_path
    assert path is not None and options.sparsity is not None, "checked with the options"
    return sparse_student(
        _load(path, ElasticForRelations),
        options.sparsity,
        num_relation_heads=_relation_heads(config),
        seed=config.seed,
        relation_projections=config.learns_relations,
        model_class=student_class,
    )


def _make_once_for_all(
    config: RunConfig,
    options: StudentConfig,
    teacher: PreTrainedConfig,
    base: Any,
    student_class: type[Any],
) -> PreTrainedModel:
    if options.initial_weights is not None:
        student = _load(options.initial_weights, ElasticForRelations)
        student.config.relation_projections = config.learns_relations
        return build_student_from(student, student.config, student_class, config.seed)
    assert options.ofa_layer and options.ofa_hidden, "checked with the options"
    elastic_config = once_for_all_config(
        base,
        layers=options.layer,
        hidden=options.hidden,
        heads=options.heads,
        sub_layers=options.ofa_layer,
        sub_hidden=options.ofa_hidden,
        num_relation_heads=_relation_heads(config),
        neurons=options.neurons,
        compat_seed=config.compat == "seed",
    )
    elastic_config.relation_projections = config.learns_relations
    return build_student(elastic_config, config.seed, model_class=student_class)


def _make_tinybert(
    config: RunConfig,
    options: StudentConfig,
    teacher: PreTrainedConfig,
    base: Any,
    student_class: type[Any],
) -> PreTrainedModel:
    assert options.heads == teacher.num_attention_heads, options.heads
    if options.initial_weights is not None:
        student = _load(options.initial_weights, MiniMoePreTrainedModel)
        student.config.teacher_hidden_size = teacher.hidden_size
        return build_student_from(student, student.config, student_class, config.seed)
    encoder_config = _student_config(config, options, teacher, base)
    encoder_config.teacher_hidden_size = teacher.hidden_size
    return build_student(encoder_config, config.seed, model_class=student_class)


_SLICED = _StudentFactory(_make_sparse, ElasticForRelations, ElasticForRelationsAndMaskedLM)
_LESSON_OPENERS = {Learns.RELATIONS: _teach_relations, Learns.STATES: _teach_states}
_FACTORIES = {
    (Learns.RELATIONS, Students.ENCODER): _StudentFactory(
        _make_encoder, MiniMoeForRelations, MiniMoeForRelationsAndMaskedLM
    ),
    (Learns.RELATIONS, Students.SUB_MODEL): _SLICED,
    (Learns.RELATIONS, Students.ONCE_FOR_ALL): replace(_SLICED, make=_make_once_for_all),
    (Learns.STATES, Students.ENCODER): _StudentFactory(
        _make_tinybert, MiniMoeForStates, MiniMoeForStatesAndMaskedLM
    ),
}
