"""Reads recipes of several stages, in which the export of a stage teaches the next one.

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

from ..foreign import shown
from .checks import exported_names
from .flags import Setting, read_settings
from .folder_names import check_name
from .loading import read_recipe, resolve_run
from .problems import ConfigError, nearest
from .run import RunConfig

_STAGE_KEYS = ("name", "teaches")
_NAME, _LAYER = "model_name_or_path", "relation_layer"  # which teacher it is
_REFERENCE = "stage:"


def load_stages(
    config_path: str | None, overrides: Sequence[str | Setting] = ()
) -> list[RunConfig]:
    """Loads a recipe's stages in order, or its one run where it names none.

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
    teacher_options = [
        _teacher_options(name, entry, settings) for name, entry in zip(names, entries, strict=True)
    ]
    stages: list[RunConfig] = []
    teacher: str | None = None
    exports: dict[str, str] = {}
    for index, (name, entry, own_teacher) in enumerate(
        zip(names, entries, teacher_options, strict=True)
    ):
        stage_settings = _settings_of(name, settings, own_teacher if index else ())
        stage = _resolve(tree, entry, config_path, stage_settings, name)
        stage = stage.model_copy(update={"output_dir": str(FilePath(stage.output_dir) / name)})
        if index and _NAME not in own_teacher:
            assert teacher is not None
            stage = _taught_by(stage, teacher, own_teacher)
        stage = _with_exports(stage, own_teacher, exports, f"{where}.{name}")
        stages.append(stage)
        _check_processes(stages[0], stage, f"{where}.{name}")
        for student in stage.students:
            exports[f"{name}/{student.name}"] = stage.export_folder(student.name)
        if index < len(entries) - 1 and _NAME not in teacher_options[index + 1]:
            teacher = stage.export_folder(_teaching(stage, entry, f"{where}.{name}"))
    return stages


def _names(entries: Sequence[Any], where: str) -> list[str]:
    """Returns each stage's name, which is its folder's too."""
    names: list[str] = []
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        label = f"{where}.{index}"
        if not isinstance(name, str):
            raise ConfigError(
                f"{label}: needs a name for its folder; give name: assistant, for one"
            )
        try:
            check_name(name)
        except ValueError as error:
            raise ConfigError(f"{label}.name: {error}, not {shown(name)}") from None
        if name in names:
            raise ConfigError(f"{label}.name: {name} is another stage's; choose one more")
        if "output_dir" in entry:
            raise _writes_to(f"{label}.output_dir", entry["output_dir"], name)
        names.append(name)
    return names


def _check_settings(settings: Sequence[Setting], names: Sequence[str]) -> None:
    """Refuses command-line settings for an unknown stage, or for a stage's folder."""
    for setting in settings:
        name = setting.option.stage
        if name is not None and name not in names:
            suggestion = nearest(name, names)
            hint = f"did you mean {suggestion}?" if suggestion else f"there are {', '.join(names)}"
            raise ConfigError(f"{setting.label}: no stage {name!r}; {hint}")
        if name is not None and setting.option.path == ("output_dir",):
            raise _writes_to(setting.label, setting.value, name)


def _writes_to(label: str, folder: Any, name: str) -> ConfigError:
    return ConfigError(
        f"{label}: {shown(folder)}, but a stage writes to output_dir/{name}; leave it out"
    )


def _settings_of(
    name: str, settings: Sequence[Setting], teacher_options: Collection[str]
) -> list[Setting]:
    """Returns the settings for a stage; settings for all do not change a teacher of its own."""
    own_paths = [("teacher", option) for option in (_NAME, _LAYER) if option in teacher_options]
    return [
        setting
        for setting in settings
        if setting.option.stage == name
        or (setting.option.stage is None and setting.option.path not in own_paths)
    ]


def _check_processes(first: RunConfig, stage: RunConfig, where: str) -> None:
    """Refuses stages that differ in what is decided once, when the processes start."""
    for option in ("use_cpu", "timeout_seconds"):
        expected, value = (getattr(run.parallel, option) for run in (first, stage))
        if value != expected:
            raise ConfigError(
                f"{where}.parallel.{option}: {value}, but the first stage has {expected}; give one "
                "value for all stages"
            )


def _teacher_options(name: str, entry: Mapping[str, Any], settings: Sequence[Setting]) -> set[str]:
    """Returns the teacher's options that a stage names itself, in the recipe or beside it.

    A stage that names ``model_name_or_path`` is not taught by the export of the stage before.
    """
    in_recipe = entry.get("teacher")
    return {
        *(in_recipe if isinstance(in_recipe, dict) else ()),
        *(
            str(setting.option.path[1])
            for setting in settings
            if setting.option.stage == name and setting.option.path[0] == "teacher"
        ),
    }


def _with_exports(
    stage: RunConfig, teacher_options: Collection[str], exports: Mapping[str, str], where: str
) -> RunConfig:
    """Returns the stage with folders in the place of ``stage:NAME/STUDENT``."""
    students = [
        student.model_copy(
            update={
                "initial_weights": _resolve_export(
                    student.initial_weights, exports, f"{where}.{student.name}.initial_weights"
                )
            }
        )
        for student in stage.students
    ]
    name = stage.teacher.model_name_or_path
    teacher = _resolve_export(name, exports, f"{where}.teacher.model_name_or_path")
    assert teacher is not None
    stage = stage.model_copy(update={"students": students})
    return stage if teacher == name else _taught_by(stage, teacher, teacher_options)


def _resolve_export(path: str | None, exports: Mapping[str, str], where: str) -> str | None:
    if path is None or not path.startswith(_REFERENCE):
        return path
    folder = exports.get(path.removeprefix(_REFERENCE))
    if folder is None:
        choices = ", ".join(_REFERENCE + name for name in exports) or "none"
        raise ConfigError(f"{where}: {path} is no student of an earlier stage; there is: {choices}")
    return folder


def _resolve(
    tree: Mapping[str, Any],
    entry: Mapping[str, Any],
    config_path: str | None,
    settings: Sequence[Setting],
    name: str,
) -> RunConfig:
    changes = {key: value for key, value in entry.items() if key not in _STAGE_KEYS}
    merged = deepcopy(dict(tree))
    for key, value in changes.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if is_section else value
    return resolve_run(merged, config_path, settings, name)


def _taught_by(stage: RunConfig, teacher: str, teacher_options: Collection[str]) -> RunConfig:
    """Returns the stage with another teacher, and its last layer unless the stage names one."""
    layer = stage.teacher.relation_layer if _LAYER in teacher_options else -1
    update = {_NAME: teacher, _LAYER: layer}
    return stage.model_copy(update={"teacher": stage.teacher.model_copy(update=update)})


def _teaching(stage: RunConfig, entry: Mapping[str, Any], where: str) -> str:
    """Returns the student, or ``best``, whose export is the next stage's teacher."""
    names = exported_names(stage)
    chosen = entry.get("teaches", names[0] if len(names) == 1 else None)
    if chosen not in names:
        raise ConfigError(
            f"{where}.teaches: {shown(chosen)} is no student of this stage; name one of "
            f"{', '.join(names)}"
        )
    return str(chosen)
