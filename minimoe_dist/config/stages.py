"""Recipes of one stage or several: what a stage learns, its export teaches the next one.

A recipe's ``stages`` is a list of mappings, each with a ``name`` and with the options in which the
stage differs from the rest of the recipe: sections are merged, lists such as ``students`` are
replaced. Stage NAME writes to ``output_dir/NAME``. All stages run on the same processes, so devices
and time-out are the recipe's. From the second stage on, the teacher is the export of the stage
before, unless the stage names one of its own; ``teaches`` names one of a stage's students where
there are several, or ``best`` for the one that ``tradeoff_lambda`` chooses when they are trained.
``stage:NAME/STUDENT`` is the export of a student of an earlier stage, as a teacher or as
``initial_weights``. Beside the recipe, ``stages.NAME.`` in front of an option means that stage's.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path as FilePath
from typing import Any

from .checks import exported_names
from .flags import Setting, read_settings
from .folder_names import check_name
from .loading import read_recipe, resolve_run
from .problems import ConfigError, nearest, shown
from .run import RunConfig

_OWN_KEYS = ("name", "teaches")
_NAME, _LAYER = "model_name_or_path", "relation_layer"  # which teacher it is
_REFERENCE = "stage:"


def load_stages(
    config_path: str | None, overrides: Sequence[str | Setting] = ()
) -> list[RunConfig]:
    """A recipe's stages in order; one where it names none.

    Arguments and errors are those of ``load_run_config``; options beside the recipe are for every
    stage where they name none, a teacher for the first one.
    """
    tree = read_recipe(config_path) if config_path is not None else {}
    settings = read_settings(overrides)
    if "stages" not in tree:
        return [resolve_run(tree, config_path, settings)]
    entries = tree.pop("stages")
    where = f"{config_path}: stages"
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where}: must be a list of stages, not {shown(entries)}")
    names = _names(entries, where)
    _check_settings(settings, names)
    of_teachers = [
        _own_teacher(name, entry, settings) for name, entry in zip(names, entries, strict=True)
    ]
    stages: list[RunConfig] = []
    teacher: str | None = None
    exports: dict[str, str] = {}
    for index, (name, entry, of_teacher) in enumerate(
        zip(names, entries, of_teachers, strict=True)
    ):
        stage_settings = _settings_of(name, settings, of_teacher if index else ())
        stage = _resolve(tree, entry, config_path, stage_settings, name)
        stage = stage.model_copy(update={"output_dir": str(FilePath(stage.output_dir) / name)})
        if index and _NAME not in of_teacher:
            assert teacher is not None
            stage = _taught_by(stage, teacher, of_teacher)
        stage = _with_exports(stage, of_teacher, exports, f"{where}.{name}")
        stages.append(stage)
        _check_processes(stages[0], stage, f"{where}.{name}")
        for student in stage.students:
            exports[f"{name}/{student.name}"] = stage.export_folder(student.name)
        if index < len(entries) - 1 and _NAME not in of_teachers[index + 1]:
            teacher = stage.export_folder(_teaching(stage, entry, f"{where}.{name}"))
    return stages


def _names(entries: Sequence[Any], where: str) -> list[str]:
    """Each stage's name, which is its folder's too."""
    names: list[str] = []
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        at = f"{where}.{index}"
        if not isinstance(name, str):
            raise ConfigError(f"{at}: needs a name for its folder; give name: assistant, for one")
        try:
            check_name(name)
        except ValueError as error:
            raise ConfigError(f"{at}.name: {error}, not {shown(name)}") from None
        if name in names:
            raise ConfigError(f"{at}.name: {name} is another stage's; choose one more")
        if "output_dir" in entry:
            raise _writes_to(f"{at}.output_dir", entry["output_dir"], name)
        names.append(name)
    return names


def _check_settings(settings: Sequence[Setting], names: Sequence[str]) -> None:
    """Refuses what is set beside the recipe for a stage that is not there, and its folder."""
    for setting in settings:
        name = setting.option.stage
        if name is not None and name not in names:
            found = nearest(name, names)
            hint = f"did you mean {found}?" if found else f"there are {', '.join(names)}"
            raise ConfigError(f"{setting.label}: no stage {name!r}; {hint}")
        if name is not None and setting.option.path == ("output_dir",):
            raise _writes_to(setting.label, setting.value, name)


def _writes_to(label: str, folder: Any, name: str) -> ConfigError:
    return ConfigError(
        f"{label}: {shown(folder)}, but a stage writes to output_dir/{name}; leave it out"
    )


def _settings_of(
    name: str, settings: Sequence[Setting], of_teacher: Collection[str]
) -> list[Setting]:
    """Those for a stage; what it says itself of which teacher it has is not for all to set."""
    own = [("teacher", option) for option in (_NAME, _LAYER) if option in of_teacher]
    return [
        setting
        for setting in settings
        if setting.option.stage == name
        or (setting.option.stage is None and setting.option.path not in own)
    ]


def _check_processes(first: RunConfig, stage: RunConfig, where: str) -> None:
    """Refuses what is decided once, when the processes of all stages start."""
    for option in ("use_cpu", "timeout_seconds"):
        wanted, own = (getattr(one.parallel, option) for one in (first, stage))
        if own != wanted:
            raise ConfigError(
                f"{where}.parallel.{option}: {own}, but the first stage has {wanted}; give one "
                "value for all stages"
            )


def _own_teacher(name: str, entry: Mapping[str, Any], settings: Sequence[Setting]) -> set[str]:
    """The options of its teacher that a stage names itself, in the recipe or beside it.

    A stage that names ``model_name_or_path`` is not taught by the export of the stage before.
    """
    of_recipe = entry.get("teacher")
    return {
        *(of_recipe if isinstance(of_recipe, dict) else ()),
        *(
            str(setting.option.path[1])
            for setting in settings
            if setting.option.stage == name and setting.option.path[0] == "teacher"
        ),
    }


def _with_exports(
    stage: RunConfig, of_teacher: Collection[str], exports: Mapping[str, str], where: str
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
    return stage if teacher == name else _taught_by(stage, teacher, of_teacher)


def _export(path: str | None, exports: Mapping[str, str], where: str) -> str | None:
    if path is None or not path.startswith(_REFERENCE):
        return path
    found = exports.get(path.removeprefix(_REFERENCE))
    if found is None:
        there = ", ".join(_REFERENCE + name for name in exports) or "none"
        raise ConfigError(f"{where}: {path} is no student of an earlier stage; there is: {there}")
    return found


def _resolve(
    tree: Mapping[str, Any],
    entry: Mapping[str, Any],
    config_path: str | None,
    settings: Sequence[Setting],
    name: str,
) -> RunConfig:
    own = {key: value for key, value in entry.items() if key not in _OWN_KEYS}
    merged = deepcopy(dict(tree))
    for key, value in own.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if is_section else value
    return resolve_run(merged, config_path, settings, name)


def _taught_by(stage: RunConfig, teacher: str, of_teacher: Collection[str]) -> RunConfig:
    """The stage with another teacher; a layer is the first teacher's unless the stage names it."""
    layer = stage.teacher.relation_layer if _LAYER in of_teacher else -1
    update = {_NAME: teacher, _LAYER: layer}
    return stage.model_copy(update={"teacher": stage.teacher.model_copy(update=update)})


def _teaching(stage: RunConfig, entry: Mapping[str, Any], where: str) -> str:
    """The student, or the best one by λ-tradeoff, whose export is the next stage's teacher."""
    names = exported_names(stage)
    chosen = entry.get("teaches", names[0] if len(names) == 1 else None)
    if chosen not in names:
        raise ConfigError(
            f"{where}.teaches: {shown(chosen)} is no student of this stage; name one of "
            f"{', '.join(names)}"
        )
    return str(chosen)
