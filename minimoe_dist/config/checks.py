"""Checks that options fit each other and the number of processes.

Each check returns problems as (path of the option, what is wrong with its value and the remedy).
"""

from collections import Counter
from collections.abc import Iterator

from .model_types import (
    MODEL_TYPES,
    SPARSIFICATION,
    Learns,
    Students,
    types_that,
)
from .problems import ConfigError, Path
from .schema import RunOptions, StudentConfig

BEST_CANDIDATE = "best"  # the export of the student with the best λ-tradeoff
SPARSIFIED = "sparsified"  # the export of a run of minimoe-dist sparsify
Problem = tuple[Path, str]


def run_problems(config: RunOptions) -> list[Problem]:
    """Lists what does not fit together in one run's options."""
    return (
        _objective_problems(config)
        + _teacher_problems(config)
        + _cache_problems(config)
        + _student_problems(config)
        + _tradeoff_problems(config)
        + _parallel_problems(config)
    )


def _objective_problems(config: RunOptions) -> list[Problem]:
    problems: list[Problem] = []
    objective, data_type = config.objective, config.data.data_type
    if config.kind.learns is Learns.STATES and not objective.relation_weight:
        message = "0 leaves nothing of TinyBERT; use 1, or model_type bert_mlm"
        problems.append((("objective", "relation_weight"), message))
    if objective.mlm_weight and not data_type.endswith("mlm"):
        message = f"{data_type!r} masks nothing to predict; use bert_mlm, or mlm_weight 0"
        problems.append((("data", "data_type"), message))
    if not objective.mlm_weight and not objective.relation_weight:
        message = "0, and so is mlm_weight: nothing is learnt; use 1"
        problems.append((("objective", "relation_weight"), message))
    if objective.state_weight:
        problems += _state_problems(config)
    if config.kind.family == "roberta" and not data_type.startswith("roberta"):
        message = f"{data_type!r} gives segments, which RoBERTa has not; use roberta_nil"
        problems.append((("data", "data_type"), message))
    if config.data.whole_word_mask and data_type.startswith("roberta"):
        message = "true, but RoBERTa's pieces do not mark continued words; use false"
        problems.append((("data", "whole_word_mask"), message))
    return problems


def _state_problems(config: RunOptions) -> list[Problem]:
    """Finds what keeps last states from being learnt beside relations."""
    kind = config.kind
    if kind.learns is not Learns.RELATIONS or kind.students is not Students.ENCODER:
        remedy = f"has no place in a {config.model_type} run; use 0"
    elif not config.learns_relations:
        remedy = "is learnt beside relations; give a relation_weight, or use 0"
    else:
        return []
    return [(("objective", "state_weight"), f"{config.objective.state_weight:g} {remedy}")]


def _teacher_problems(config: RunOptions) -> list[Problem]:
    teacher = config.teacher
    problems: list[Problem] = []
    if teacher.layout != "zero3" and teacher.offload != "none":
        message = f"{teacher.offload!r} goes with layout zero3 only; use none"
        problems.append((("teacher", "offload"), message))
    if teacher.dtype == "float8":
        path: Path = ("teacher", "dtype")
        if teacher.layout != "replicated" or config.kind.learns is Learns.STATES:
            message = "'float8' is for teachers of relations that every rank holds whole; use auto"
            problems.append((path, message))
        elif config.parallel.use_cpu:
            problems.append((path, "'float8' needs a GPU that multiplies it; use auto"))
    if teacher.implementation == "megatron":
        problems += _megatron_problems(config)
    if teacher.layout == "replicated":
        if teacher.parallel_size is not None:
            message = f"{teacher.parallel_size} needs layout zero3 or tensor; leave it out"
            problems.append((("teacher", "parallel_size"), message))
        return problems
    path = ("teacher", "layout")
    if config.kind.learns is Learns.STATES:
        message = f"{teacher.layout!r} has no place in {config.model_type}; use replicated"
        problems.append((path, message))
    elif not config.objective.relation_weight:
        message = f"{teacher.layout!r}, but no teacher runs without relations; use replicated"
        problems.append((path, message))
    return problems


def _megatron_problems(config: RunOptions) -> list[Problem]:
    teacher, path = config.teacher, ("teacher", "implementation")
    if not config.learns_relations:
        what = "a teacher of relations"
    elif teacher.layout == "zero3":
        what = "layout replicated or tensor"
    elif teacher.dtype == "float8":
        what = "another dtype than float8"
    else:
        return []
    return [(path, f"'megatron' needs {what}; use transformers")]


def _cache_problems(config: RunOptions) -> list[Problem]:
    teacher, path = config.teacher, ("teacher", "cache")
    if teacher.cache == "none":
        return [
            (("teacher", name), f"{value!r} belongs to a cache; give cache int8, or leave it out")
            for name, value, default in (
                ("cache_dir", teacher.cache_dir, None),
                ("cache_epochs", teacher.cache_epochs, 1),
            )
            if value != default
        ]
    if not config.learns_relations:
        return [(path, f"{teacher.cache!r}, but no relations are learnt; use none")]
    if config.data.data_type.endswith("mlm"):
        message = (
            f"{teacher.cache!r}, but {config.data.data_type} masks other tokens in every epoch, "
            "which the teacher reads; use data_type *_nil, or none"
        )
        return [(path, message)]
    if config.model_type == SPARSIFICATION and is_sparsification(config):
        return [(path, f"{teacher.cache!r}, but sparsify trains nothing; use none")]
    return []


def _student_problems(config: RunOptions) -> list[Problem]:
    problems: list[Problem] = []
    for index, student in enumerate(config.students):
        path: Path = ("students", index)
        student_problems = _size_problems(config, student) + _start_problems(config, student)
        problems += [((*path, name), message) for name, message in student_problems]
    for name, count in Counter(student.name for student in config.students).items():
        if count > 1:
            problems.append((("students",), f"{count} are named {name!r}; give each its own name"))
    for name in ("expert_rate_factor", "router_rate_factor"):
        factor = getattr(config.training, name)
        if factor != 1.0 and all(student.moe == "1,1" for student in config.students):
            message = f"{factor:g}, but no student has experts; use 1, or moe such as 1,4"
            problems.append((("training", name), message))
    return problems


def _tradeoff_problems(config: RunOptions) -> list[Problem]:
    if config.tradeoff_lambda is None:
        return []
    problems: list[Problem] = []
    if config.kind.students is not Students.SUB_MODEL or config.model_type == SPARSIFICATION:
        message = f"chooses among sparse students, not those of {config.model_type}; leave it out"
        problems.append((("tradeoff_lambda",), message))
    if config.data.heldout_path_or_regex is None:
        message = "is missing, and tradeoff_lambda measures students on it; give a corpus"
        problems.append((("data", "heldout_path_or_regex"), message))
    for index, student in enumerate(config.students):
        if student.name == BEST_CANDIDATE:
            message = f"{student.name!r} is where the best student goes; choose another name"
            problems.append((("students", index, "name"), message))
    return problems


def _size_problems(config: RunOptions, student: StudentConfig) -> list[tuple[str, str]]:
    problems: list[tuple[str, str]] = []
    relation_heads, model_type = config.objective.num_relation_heads, config.model_type
    if student.hidden % student.heads:
        message = (
            f"{student.hidden} is not divisible by heads {student.heads}; "
            "choose a multiple or other heads"
        )
        problems.append(("hidden", message))
    # A sparse student has the sizes of the model that it is cut out of.
    if (
        config.learns_relations
        and config.kind.students is not Students.SUB_MODEL
        and student.hidden % relation_heads
    ):
        message = (
            f"{student.hidden} is not divisible by objective.num_relation_heads "
            f"{relation_heads}; choose a multiple or other relation heads"
        )
        problems.append(("hidden", message))
    if not config.kind.has_experts and student.moe != "1,1":
        remedy = f"use '1,1', or model_type {types_that(has_experts=True)[0]}"
        problems.append(("moe", f"{student.moe!r} has no place in {model_type}; {remedy}"))
    return problems


def _start_problems(config: RunOptions, student: StudentConfig) -> list[tuple[str, str]]:
    model_type = config.model_type
    problems: list[tuple[str, str]] = []
    if student.start == "teacher":
        problems += _teacher_start_problems(config, student)
    elif student.start_tokens is not None:
        problems.append(("start_tokens", "is of start: teacher; leave it out"))
    if student.has_copies and student.initial_weights is None:
        message = f"{student.start!r} needs a plain student; give its folder as initial_weights"
        problems.append(("start", message))
    if student.has_copies and student.moe == "1,1":
        message = f"{student.start!r} is for students with experts; use split, or moe such as 1,4"
        problems.append(("start", message))
    kind = MODEL_TYPES[model_type].students
    is_sparse, is_sliced = kind is Students.SUB_MODEL, kind is Students.ONCE_FOR_ALL
    if is_sparse and student.sparsity is None and model_type != SPARSIFICATION:
        problems.append(("sparsity", "is missing; give one of the sparsified model's map, as 90"))
    starts_from = (student.initial_weights, student.model_name_or_path)
    if student.sparsity is not None and is_sparse and starts_from == (None, None):
        message = "is missing; give the folder that minimoe-dist sparsify wrote"
        problems.append(("initial_weights", message))
    if not is_sparse and student.sparsity is not None:
        owners = " and ".join(types_that(students=Students.SUB_MODEL))
        message = f"{student.sparsity!r} belongs to {owners}; leave it out"
        problems.append(("sparsity", message))
    for name, total in (("ofa_layer", student.layer), ("ofa_hidden", student.hidden)):
        sizes = getattr(student, name)
        if is_sliced and not sizes:
            problems.append((name, "is missing; give the sub-models' sizes, as 6,4,3"))
        elif not is_sliced and sizes is not None:
            owner = types_that(students=Students.ONCE_FOR_ALL)[0]
            problems.append((name, f"belongs to {owner}; leave it out"))
        for size in sizes or ():
            if is_sliced and not 1 <= size <= total:
                whole = name.removeprefix("ofa_")
                message = f"{size} is not in a student of {whole} {total}; choose 1 to {total}"
                problems.append((name, message))
    return problems


def _teacher_start_problems(
    config: RunOptions, student: StudentConfig
) -> Iterator[tuple[str, str]]:
    """Finds what keeps a student from starting with weights made of its teacher's."""
    if not config.learns_relations or config.kind.students is not Students.ENCODER:
        yield "start", f"'teacher' has no place in a {config.model_type} run; use split"
    for name in ("initial_weights", "model_name_or_path"):
        if getattr(student, name) is not None:
            yield name, "is what start: teacher would replace; leave one of them out"


def _parallel_problems(config: RunOptions) -> list[Problem]:
    parallel = config.parallel
    problems: list[Problem] = []
    size, path = parallel.expert_parallel_size, ("parallel", "expert_parallel_size")
    if parallel.zero_stage == 0 and parallel.precision not in ("auto", "fp32"):
        message = f"0 does not train in {parallel.precision}; use zero_stage 1, or precision fp32"
        problems.append((("parallel", "zero_stage"), message))
    if parallel.adamw in ("deepspeed", "apex") and parallel.zero_stage != 1:
        message = f"{parallel.adamw!r} goes with zero_stage 1; use auto"
        problems.append((("parallel", "adamw"), message))
    if parallel.use_cpu and parallel.precision == "fp16":
        message = "'fp16' does not train on CPUs; use bf16 or fp32, or drop use_cpu"
        problems.append((("parallel", "precision"), message))
    if size == 1:
        return problems
    if parallel.zero_stage == 3:
        message = f"{size} does not go with ZeRO stage 3; use 1, or zero_stage 2"
        problems.append((path, message))
    counts = {
        count
        for student in config.students
        for count in (student.attention_experts, student.feedforward_experts)
        if count > 1
    }
    if not counts:
        problems.append((path, f"{size}, but no student has experts; use 1, or moe such as 1,4"))
    for count in sorted(counts):
        if count % size:
            message = f"{size} does not divide the {count} experts of a student; use a divisor"
            problems.append((path, message))
    return problems


def is_sparsification(config: RunOptions) -> bool:
    """Tells whether a run is one of ``minimoe-dist sparsify``, which has no students."""
    has_students = any(student.sparsity is not None for student in config.students)
    return config.model_type == SPARSIFICATION and not has_students


def exported_names(config: RunOptions) -> list[str]:
    """Names a run's exports: students and the best of a tradeoff, or the sparsified model."""
    if is_sparsification(config):
        return [SPARSIFIED]
    best = [BEST_CANDIDATE] if config.tradeoff_lambda is not None else []
    return [*(student.name for student in config.students), *best]


def check_command(config: RunOptions, command: str) -> None:
    """Refuses a run that another command is for.

    Raises:
        ConfigError: ``distill`` without a student, or ``sparsify`` of something else.
    """
    if command == "sparsify" and config.model_type != SPARSIFICATION:
        raise ConfigError(f"model_type: {config.model_type} is for minimoe-dist distill; use that")
    if command == "sparsify" and not is_sparsification(config):
        raise ConfigError("students.sparsity: sparsify makes the whole map; leave it out")
    if command == "distill" and config.model_type == SPARSIFICATION:
        for student in config.students:
            if student.sparsity is None:
                raise ConfigError(
                    f"students.{student.name}.sparsity: is missing, and {SPARSIFICATION} trains a "
                    "sub-model; give one of a sparsified model's map, as 90 (minimoe-dist sparsify "
                    "makes the map)"
                )


def check_world_size(config: RunOptions, world_size: int) -> None:
    """Refuses a number of processes that the run cannot be spread over.

    Raises:
        ConfigError: the expert-parallel size or the teacher's does not divide `world_size`.
    """
    size = config.parallel.expert_parallel_size
    if world_size % size:
        raise ConfigError(
            f"parallel.expert_parallel_size: {size} does not divide the {world_size} processes of "
            f"this run; start a multiple of {size}, or use expert_parallel_size 1"
        )
    ranks = config.teacher.ranks(world_size)
    if world_size % ranks:
        raise ConfigError(
            f"teacher.parallel_size: {ranks} does not divide the {world_size} processes of this "
            f"run; start a multiple of {ranks}, or use a divisor"
        )
