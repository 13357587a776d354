"""Checks options of students against the models that they start from, without torch."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import ConfigError, RunConfig, StudentConfig
from ..config.model_types import Learns, Students, types_that
from ..errors import UserError
from ..model_description import EXPERTS, SLICEABLE, ModelDescription, require_model
from ..model_paths import resolve_model_path
from ..models.submodels import Sizes, once_for_all_map
from .models import check_relation_heads, check_same_vocabulary
from .problems import problems_of
from .weights import check_weights

# What a plain student must share with a student made of its copies, beside the sizes in options.
_COPIED = ("family", "intermediate_size", "max_position_embeddings", "type_vocab_size")
# Folders that earlier stages of a recipe will export, with descriptions where these are known.
FutureExports = Mapping[str, ModelDescription | None]


def is_future_export(path: str, future_exports: FutureExports) -> bool:
    """Tells whether a model is an export that an earlier stage has yet to write."""
    return path in future_exports and not Path(path, "config.json").is_file()


def student_problems(
    config: RunConfig,
    teacher: ModelDescription | None,
    future_exports: FutureExports,
    starts_here: bool = True,
) -> Iterator[str]:
    """Yields, one line each, why students cannot start as their options say.

    Args:
        config: the run.
        teacher: description of its teacher; None where that is not known.
        future_exports: exports that earlier stages will write.
        starts_here: whether models that are not on this machine are refused.
    """
    for student in config.students:
        yield from problems_of(
            _check_student, config, student, teacher, future_exports, starts_here
        )


def _check_student(
    config: RunConfig,
    student: StudentConfig,
    teacher: ModelDescription | None,
    future_exports: FutureExports,
    starts_here: bool,
) -> None:
    for name in ("model_name_or_path", "initial_weights"):
        path = getattr(student, name)
        if path is None:
            continue
        option, starts_it = f"students.{student.name}.{name}", _starts(config, student, name)
        model = _describe(path, option, future_exports, needed=starts_here, weights=starts_it)
        if model is None:
            continue
        if teacher is not None:
            check_same_vocabulary(option, model, teacher)
        if starts_it:
            _check_origin(config, student, option, model)
        if starts_it and student.has_copies:
            _check_copied(option, model, describe_export(config, student, teacher, future_exports))
        _check_family(config, option, model)
    if student.start == "teacher" and teacher is not None:
        _check_gives_weights(student, teacher)
    if config.kind.learns is Learns.STATES and teacher is not None:
        _check_tinybert_heads(student, teacher)
    if student.ofa_layer and student.ofa_hidden:
        head_size = student.hidden // student.heads
        sizes = Sizes(student.layer, student.heads, head_size, student.neurons_of_an_expert)
        once_for_all_map(sizes, student.ofa_layer, student.ofa_hidden)


def _starts(config: RunConfig, student: StudentConfig, option: str) -> bool:
    """Tells whether an option gives the first weights, not a configuration alone."""
    if option == "initial_weights":
        return True
    return config.kind.students is Students.SUB_MODEL and student.initial_weights is None


def _describe(
    path: str, option: str, future_exports: FutureExports, *, needed: bool, weights: bool
) -> ModelDescription | None:
    if is_future_export(path, future_exports):
        return future_exports[path]
    if not needed and not Path(path).expanduser().is_dir():
        return None
    if weights and not Path(resolve_model_path(path, option)).is_dir():
        raise ConfigError(f"{option}: {path} is no local folder; download it and give its folder")
    model = require_model(path, option, weights=weights)
    if weights:
        check_weights(option, model)
    return model


def _check_gives_weights(student: StudentConfig, teacher: ModelDescription) -> None:
    """Refuses a teacher whose weights a student's cannot be made of."""
    if teacher.is_native_student or teacher.is_published_student:
        raise ConfigError(
            f"students.{student.name}.start: teacher takes over weights of a plain encoder, and "
            f"{teacher.path} has experts or is sliceable; use split"
        )


def _check_tinybert_heads(student: StudentConfig, teacher: ModelDescription) -> None:
    if student.heads != teacher.num_attention_heads:
        raise ConfigError(
            f"students.{student.name}.heads: {student.heads}, but TinyBERT compares attention head "
            f"by head and {teacher.path} has {teacher.num_attention_heads}: give as many"
        )


def _check_origin(
    config: RunConfig, student: StudentConfig, option: str, model: ModelDescription
) -> None:
    """Refuses a folder that the student cannot start from."""
    is_sparse, prefix = config.kind.students is Students.SUB_MODEL, f"students.{student.name}"
    if is_sparse or config.kind.students is Students.ONCE_FOR_ALL:
        if model.sparsity_map is None:
            raise ConfigError(
                f"{option}: {model.path} has no sparsity map; "
                + ("sparsify it first" if is_sparse else "give a once-for-all student's folder")
            )
        if is_sparse:
            _check_sparse(config, student, model)
            # A sparse student has its origin's sizes; only what was asked for can contradict.
            _check_sizes(prefix, student, model, student.model_fields_set)
            return
        expected = {f"{x},{y}" for x in student.ofa_layer or () for y in student.ofa_hidden or ()}
        if set(model.sparsity_map) != expected:
            raise ConfigError(
                f"{prefix}.ofa_layer, ofa_hidden: {model.path} has the sub-models "
                f"{' '.join(model.sparsity_map)}, not {' '.join(sorted(expected))}; give the same "
                "sizes"
            )
    elif model.model_type == SLICEABLE:
        raise ConfigError(
            f"{option}: {model.path} is a sliceable student, no start of {config.model_type}; use "
            f"model_type sparsebert_minilm or {types_that(students=Students.ONCE_FOR_ALL)[0]}"
        )
    if student.has_copies and model.experts != (1, 1):
        raise ConfigError(
            f"{option}: {model.path} has experts itself ({_moe(model)}), but start: "
            f"{student.start} wants a plain student; give one, or start split"
        )
    compared = {"layer", "hidden", "heads", "neurons"} | (set() if student.has_copies else {"moe"})
    _check_sizes(prefix, student, model, compared)


def _check_copied(option: str, dense: ModelDescription, student: ModelDescription | None) -> None:
    """Refuses a plain student whose blocks are not of the size of a new student's experts."""
    for name in _COPIED if student is not None else ():
        expected, value = getattr(student, name), getattr(dense, name)
        if expected != value:
            raise ConfigError(
                f"{option}: {dense.path} has {name} {value}, and the student to be made of its "
                f"copies {expected}; give a plain student of the same base"
            )


def _check_sparse(config: RunConfig, student: StudentConfig, model: ModelDescription) -> None:
    if student.sparsity not in (model.sparsity_map or {}):
        choices = " ".join(model.sparsity_map or {}) or "none; sparsify it first"
        raise ConfigError(
            f"students.{student.name}.sparsity: {student.sparsity} is not in the map of "
            f"{model.path}; it has: {choices}"
        )
    if config.learns_relations:
        heads = config.objective.num_relation_heads
        check_relation_heads("objective.num_relation_heads", heads, "student", model)


def _check_family(config: RunConfig, option: str, model: ModelDescription) -> None:
    family = config.kind.family
    if family is not None and model.family != family:
        raise ConfigError(
            f"{option}: {model.path} is of family {model.family}, but {config.model_type} makes "
            f"students of {family}; give one of these"
        )


def _check_sizes(
    prefix: str, student: StudentConfig, model: ModelDescription, compared: Collection[str]
) -> None:
    sizes = {
        "layer": (student.layer, model.num_hidden_layers),
        "hidden": (student.hidden, model.hidden_size),
        "heads": (student.heads, model.heads_of_an_expert),
        "neurons": (student.neurons_of_an_expert, model.neurons_of_an_expert),
        "moe": (student.moe, _moe(model)),
    }
    for name, (value, size) in sizes.items():
        if name in compared and value != size:
            raise ConfigError(
                f"{prefix}.{name}: {value}, but {model.path} has {size}; give {name} {size}, or "
                "start from another folder"
            )


def _moe(model: ModelDescription) -> str:
    return "{},{}".format(*model.experts)


def describe_export(
    config: RunConfig,
    student: StudentConfig,
    teacher: ModelDescription | None,
    future_exports: FutureExports,
) -> ModelDescription | None:
    """Describes a student's future export; returns None where only its weights will tell.

    Args:
        config: the run that trains it.
        student: the student.
        teacher: description of the run's teacher; None where that is not known.
        future_exports: exports that earlier stages will write.
    """
    base = teacher
    if student.model_name_or_path is not None:
        option = f"students.{student.name}.model_name_or_path"
        try:
            path = student.model_name_or_path
            base = _describe(path, option, future_exports, needed=False, weights=False)
        except UserError:  # which is a problem of the student already
            return None
    if base is None or config.kind.students is Students.SUB_MODEL:
        return None
    folder = config.export_folder(student.name)
    is_sliceable = config.kind.students is Students.ONCE_FOR_ALL
    is_plain = student.moe == "1,1" and not is_sliceable
    changes: dict[str, Any] = {
        "path": folder,
        "folder": Path(folder),
        "model_type": base.family if is_plain else (SLICEABLE if is_sliceable else EXPERTS),
        "family_name": base.family,
        "hidden_size": student.hidden,
        "num_hidden_layers": student.layer,
        "num_attention_heads": student.heads,
        "intermediate_size": student.neurons_of_an_expert,
        "attention_experts": student.attention_experts,
        "feedforward_experts": student.feedforward_experts,
        "moe": "1,1",
        "sparsity": "0",
        "sparsity_map": None,
        "relation_projections": (is_sliceable and config.learns_relations)
        or config.projects_relations(student.attention_experts, student.feedforward_experts),
        "num_relation_heads": config.objective.num_relation_heads,
    }
    if is_sliceable:
        sizes = (student.ofa_layer or (), student.ofa_hidden or ())
        changes["sparsity_map"] = {f"{x},{y}": {} for x in sizes[0] for y in sizes[1]}
    return base.model_copy(update=changes)
