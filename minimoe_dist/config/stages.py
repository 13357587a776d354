"""Recipes of one stage or several: what a stage learns, its export teaches the next one.

A recipe's ``stages`` is a list of mappings, each with a ``name`` and with the options in which the
stage differs from the rest of the recipe: sections are merged, lists such as ``students`` are
replaced. Stage NAME writes to ``output_dir/NAME``. All stages run on the same processes, so devices
and time-out are the recipe's. From the second stage on, the teacher is the export of the stage
before, unless the stage names one of its own; ``teaches`` names one of a stage's students where
there are several, or ``best`` for the one that ``tradeoff_lambda`` chooses when they are trained.
``stage:NAME/STUDENT`` is the export of a student of an earlier stage, as a teacher or as
``initial_weights``.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path as FilePath
from typing import Any

from .checks import BEST_CANDIDATE
from .folder_names import check_name
from .loading import read_recipe, resolve_run
from .problems import ConfigError, shown
from .run import RunConfig

_OWN_KEYS = ("name", "teaches")
_REFERENCE = "stage:"


def load_stages(config_path: str | None, overrides: Sequence[str] = ()) -> list[RunConfig]:
    """A recipe's stages in order; one where it names none.

    Arguments and errors are those of ``load_run_config``; options beside the recipe are for every
    stage, a teacher for the first one.
    """
    tree = read_recipe(config_path) if config_path is not None else {}
    if "stages" not in tree:
        return [resolve_run(tree, config_path, overrides)]
    entries = tree.pop("stages")
    where = f"{config_path}: stages"
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where}: must be a list of stages, not {shown(entries)}")
    stages: list[RunConfig] = []
    teacher: str | None = None
    names: set[str] = set()
    exports: dict[str, str] = {}
    for index, entry in enumerate(entries):
        name = _name_of(entry, f"{where}.{index}")
        if name in names:
            raise ConfigError(f"{where}.{index}.name: {name} is another stage's; choose one more")
        names.add(name)
        if "output_dir" in entry:
            raise ConfigError(
                f"{where}.{index}.output_dir: {shown(entry['output_dir'])}, but a stage writes to "
                f"output_dir/{name}; leave it out"
            )
        stage = _resolve(tree, entry, config_path, overrides)
        stage = stage.model_copy(update={"output_dir": str(FilePath(stage.output_dir) / name)})
        if index and not _own_teacher(entry):
            assert teacher is not None
            stage = _taught_by(stage, teacher, entry)
        stage = _with_exports(stage, entry, exports, f"{where}.{name}")
        stages.append(stage)
        _check_processes(stages[0], stage, f"{where}.{name}")
        for student in stage.students:
            exports[f"{name}/{student.name}"] = stage.export_folder(student.name)
        if index < len(entries) - 1 and not _own_teacher(entries[index + 1]):
            teacher = stage.export_folder(_teaching(stage, entry, f"{where}.{name}"))
    return stages


def _check_processes(first: RunConfig, stage: RunConfig, where: str) -> None:
    """Refuses what is decided once, when the processes of all stages start."""
    for option in ("use_cpu", "timeout_seconds"):
        wanted, own = (getattr(one.parallel, option) for one in (first, stage))
        if own != wanted:
            raise ConfigError(
                f"{where}.parallel.{option}: {own}, but the first stage has {wanted}; give one "
                "value for all stages"
            )


def _own_teacher(entry: Any) -> bool:
    """Whether a stage names a teacher, which then is not the export of the stage before."""
    given = entry.get("teacher") if isinstance(entry, dict) else None
    return isinstance(given, dict) and "model_name_or_path" in given


def _with_exports(
    stage: RunConfig, entry: Mapping[str, Any], exports: Mapping[str, str], where: str
) -> RunConfig:
    """The stage with folders in the place of ``stage:NAME/STUDENT``."""
    students = [
        student.model_copy(
            update={
                "initial_weights": _export(
                    student.initial_weights, exports, f"{where}.{student.name}.initial_weights"
                )
            }
        )
        for student in stage.students
    ]
    name = stage.teacher.model_name_or_path
    teacher = _export(name, exports, f"{where}.teacher.model_name_or_path")
    assert teacher is not None
    stage = stage.model_copy(update={"students": students})
    return stage if teacher == name else _taught_by(stage, teacher, entry)


def _export(path: str | None, exports: Mapping[str, str], where: str) -> str | None:
    if path is None or not path.startswith(_REFERENCE):
        return path
    found = exports.get(path.removeprefix(_REFERENCE))
    if found is None:
        there = ", ".join(_REFERENCE + name for name in exports) or "none"
        raise ConfigError(f"{where}: {path} is no student of an earlier stage; there is: {there}")
    return found


def _name_of(entry: Any, where: str) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise ConfigError(f"{where}: needs a name for its folder; give name: assistant, for one")
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"{where}.name: {error}, not {shown(name)}") from None
    return name


def _resolve(
    tree: Mapping[str, Any],
    entry: Mapping[str, Any],
    config_path: str | None,
    overrides: Sequence[str],
) -> RunConfig:
    own = {key: value for key, value in entry.items() if key not in _OWN_KEYS}
    merged = deepcopy(dict(tree))
    for key, value in own.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if is_section else value
    return resolve_run(merged, config_path, overrides)


def _taught_by(stage: RunConfig, teacher: str, entry: Mapping[str, Any]) -> RunConfig:
    """The stage with another teacher; a layer is the first teacher's unless the stage names it."""
    given = entry.get("teacher") or {}
    update = {
        "model_name_or_path": teacher,
        "relation_layer": given.get("relation_layer", -1),
    }
    return stage.model_copy(update={"teacher": stage.teacher.model_copy(update=update)})


def _teaching(stage: RunConfig, entry: Mapping[str, Any], where: str) -> str:
    """The student, or the best one by λ-tradeoff, whose export is the next stage's teacher."""
    names = [student.name for student in stage.students]
    if stage.tradeoff_lambda is not None:
        names.append(BEST_CANDIDATE)
    chosen = entry.get("teaches", names[0] if len(names) == 1 else None)
    if chosen not in names:
        raise ConfigError(
            f"{where}.teaches: {shown(chosen)} is no student of this stage; name one of "
            f"{', '.join(names)}"
        )
    return str(chosen)
