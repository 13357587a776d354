"""What options say of students, held against the folders that they start from; without torch."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..config import ConfigError, RunConfig, StudentConfig
from ..config.checks import check_tinybert_heads
from ..config.model_types import Learns, Students, types_that
from ..config.paths import check_same_vocabulary, read_model_json
from ..model_paths import resolve_model_path
from ..models.submodels import Sizes, once_for_all_map

_SLICEABLE = "minimoe-elastic"


def check_students(
    config: RunConfig, teacher: Mapping[str, Any], to_come: Collection[str] = ()
) -> None:
    """Refuses students whose folders are missing, or have other sizes than the options say.

    Args:
        config: the run.
        teacher: the teacher's ``config.json``; empty where it is not known yet.
        to_come: exports of earlier stages; one that is not there yet is not looked at.

    Raises:
        ConfigError: one does not fit.
    """
    for student in config.students:
        at = f"students.{student.name}"
        for option in ("model_name_or_path", "initial_weights"):
            path = getattr(student, option)
            if path is None or (path in to_come and not Path(path, "config.json").is_file()):
                continue
            model = read_model_json(resolve_model_path(path))
            check_same_vocabulary(dict(teacher), model, f"{at}.{option}", path)
            if _gives_weights(config, student, option):
                _check_origin(config, student, f"{at}.{option}", path, model)
        if config.kind.learns is Learns.STATES:
            name, heads = config.teacher.model_name_or_path, teacher.get("num_attention_heads")
            check_tinybert_heads(student, name, heads)
        _check_sub_models(student)


def _gives_weights(config: RunConfig, student: StudentConfig, option: str) -> bool:
    if option == "initial_weights":
        return True
    return config.kind.students is Students.SUB_MODEL and student.initial_weights is None


def _check_sub_models(student: StudentConfig) -> None:
    """Raises UserError for sizes that a once-for-all student cannot have."""
    if student.ofa_layer and student.ofa_hidden:
        sizes = Sizes(
            student.layer, student.heads, student.hidden // student.heads, 4 * student.hidden
        )
        once_for_all_map(sizes, student.ofa_layer, student.ofa_hidden)


def _check_origin(
    config: RunConfig, student: StudentConfig, option: str, path: str, model: Mapping[str, Any]
) -> None:
    """Refuses a folder that the student cannot start from."""
    if not model:
        raise ConfigError(f"{option}: {path} is no local folder; download it and give its folder")
    written, at = _written_sizes(model), f"students.{student.name}"
    is_sparse = config.kind.students is Students.SUB_MODEL
    if is_sparse or config.kind.students is Students.ONCE_FOR_ALL:
        there = model.get("sparsity_map")
        if there is None:
            raise ConfigError(
                f"{option}: {path} has no sparsity map; "
                + ("sparsify it first" if is_sparse else "give a once-for-all student's folder")
            )
        if is_sparse:
            _check_sparse(config, student, path, model)
            # A sparse student has its origin's sizes; only what was asked for can contradict.
            _check_sizes(at, path, student, written, student.model_fields_set)
            return
        wanted = {f"{x},{y}" for x in student.ofa_layer or () for y in student.ofa_hidden or ()}
        if set(there) != wanted:
            raise ConfigError(
                f"{at}.ofa_layer, ofa_hidden: {path} has the sub-models {' '.join(there)}, not "
                f"{' '.join(sorted(wanted))}; give the same sizes"
            )
    elif model.get("model_type") == _SLICEABLE:
        raise ConfigError(
            f"{option}: {path} is a sliceable student, no start of {config.model_type}; use "
            f"model_type sparsebert_minilm or {types_that(students=Students.ONCE_FOR_ALL)[0]}"
        )
    _check_family(config, option, path, model)
    if student.start == "copies" and written["moe"] != "1,1":
        raise ConfigError(
            f"{option}: {path} has experts itself ({written['moe']}), but start: copies wants a "
            "plain student; give one, or start split"
        )
    compared = {"layer", "hidden", "heads"} | ({"moe"} if student.start != "copies" else set())
    _check_sizes(at, path, student, written, compared)


def _check_sparse(
    config: RunConfig, student: StudentConfig, path: str, model: Mapping[str, Any]
) -> None:
    there = model["sparsity_map"] or {}
    if student.sparsity not in there:
        choices = " ".join(there) or "none; sparsify it first"
        raise ConfigError(
            f"students.{student.name}.sparsity: {student.sparsity} is not in the map of {path}; it "
            f"has: {choices}"
        )
    relation_heads, hidden = config.objective.num_relation_heads, model.get("hidden_size", 0)
    if config.objective.relation_weight and hidden % relation_heads:
        raise ConfigError(
            f"objective.num_relation_heads: {relation_heads} does not divide the hidden size "
            f"{hidden} of {path}; choose a divisor"
        )


def _check_family(config: RunConfig, option: str, path: str, model: Mapping[str, Any]) -> None:
    family, wanted = model.get("family", model.get("model_type")), config.kind.family
    if wanted is not None and family not in (None, wanted, _SLICEABLE):
        raise ConfigError(
            f"{option}: {path} is of family {family}, but {config.model_type} makes students of "
            f"{wanted}; give one of these"
        )


def _check_sizes(
    at: str,
    path: str,
    student: StudentConfig,
    written: Mapping[str, Any],
    compared: Collection[str],
) -> None:
    for name, theirs in written.items():
        ours = getattr(student, name)
        if name in compared and theirs is not None and ours != theirs:
            raise ConfigError(
                f"{at}.{name}: {ours}, but {path} has {theirs}; give {name} {theirs}, or start "
                "from another folder"
            )


def _written_sizes(model: Mapping[str, Any]) -> dict[str, Any]:
    """By their options' names; the published layout counts the heads of all experts."""
    moe = str(model.get("moe", "1,1")).replace(" ", "")
    heads = model.get("num_attention_heads")
    if "attention_experts" in model:
        moe = f"{model['attention_experts']},{model.get('feedforward_experts', 1)}"
    elif heads is not None and moe.split(",")[0].isdigit():
        heads //= max(1, int(moe.split(",")[0]))
    return {
        "layer": model.get("num_hidden_layers"),
        "hidden": model.get("hidden_size"),
        "heads": heads,
        "moe": moe,
    }
