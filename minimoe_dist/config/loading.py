"""Merges options: defaults < recipe YAML < flags and ``key.path=value`` in the order given."""

from collections.abc import Hashable, Sequence
from copy import deepcopy
from typing import Any

import yaml
from pydantic import ValidationError

from ..foreign import UnreadableError, parse_yaml, read_text, shown
from .deepspeed_json import (
    check_deepspeed_json,
    chosen_precision,
    chosen_stage,
    find_deepspeed_json,
)
from .flags import (
    STUDENTS,
    USE_FP16,
    Setting,
    any_student,
    known_flags,
    known_options,
    read_settings,
    unknown_option,
)
from .problems import ConfigError, Path, describe, dotted
from .run import RunConfig

_SECTIONS = ("teacher", "objective", "data", "training", "parallel", "sparsify")
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def load_run_config(config_path: str | None, overrides: Sequence[str | Setting] = ()) -> RunConfig:
    """Builds a run's options and checks them all.

    Args:
        config_path: recipe in YAML, or None for defaults only.
        overrides: ``key.path=value`` and ``--flag=value``, applied in this order.

    Raises:
        ConfigError: one line that names the file or option, the value and the remedy.
    """
    tree = read_recipe(config_path) if config_path is not None else {}
    if "stages" in tree:
        raise ConfigError(f"{config_path}: has stages, and one run is wanted here; give another")
    return resolve_run(tree, config_path, read_settings(overrides))


def resolve_run(
    tree: dict[str, Any],
    config_path: str | None,
    settings: Sequence[Setting],
    stage: str | None = None,
) -> RunConfig:
    """Builds the options of a recipe that was read from ``config_path``, or of a stage of it.

    Raises:
        ConfigError: as `load_run_config`, or a setting is for a stage, and this is none.
    """
    merge = _Merge()
    if config_path is not None:
        merge.add_recipe(tree, config_path)
    for setting in settings:
        scope = setting.option.stage
        if scope not in (None, stage):
            plain = setting.label.replace(f"stages.{scope}.", "")
            raise ConfigError(f"{setting.label}: the run has no stages; give {plain}")
        merge.set(setting)
    config = merge.validated()
    if config.parallel.deepspeed is None:
        return config
    return merge.with_deepspeed_json(config, config_path)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Loads YAML, but refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is given twice; keep one", key.start_mark
                )
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_recipe(config_path: str) -> dict[str, Any]:
    """Reads a recipe's YAML.

    Raises:
        ConfigError: the file is not there, or no YAML mapping.
    """
    try:
        text = read_text(config_path)
    except (OSError, UnreadableError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{config_path}: {reason}; give --config a recipe file") from None
    try:
        tree = parse_yaml(text, _UniqueKeyLoader)
    except UnreadableError as error:
        line = f":{error.line}" if error.line else ""
        raise ConfigError(f"{config_path}{line}: {error}; correct the YAML") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{config_path}: must be a mapping of options, not {shown(tree)}")
    return tree


class _Merge:
    """Collects options, and where each came from, in the order in which they win."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.origins: dict[Path, str] = {}
        self.after_recipe: set[Path] = set()

    def add_recipe(self, tree: dict[str, Any], config_path: str) -> None:
        """Takes all options of a recipe file."""
        self._note_origins(tree, (), config_path)
        self.tree = tree

    def _note_origins(self, node: Any, prefix: Path, config_path: str) -> None:
        """Refuses unknown keys, and notes for every known one the file that it came from."""
        entries: list[tuple[Any, Any]] = []
        if isinstance(node, dict):
            entries = list(node.items())
        elif isinstance(node, list) and prefix == ("students",):
            entries = list(enumerate(node))
        for key, value in entries:
            path = (*prefix, key)
            if any_student(path) not in known_options():
                raise unknown_option(path, f"{config_path}: {dotted(path)}")
            self.origins[path] = f"{config_path}: {dotted(path)}"
            if path == STUDENTS or known_options()[any_student(path)] is None:
                self._note_origins(value, path, config_path)

    def set(self, setting: Setting) -> None:
        """Takes one setting on top."""
        label, value = setting.label, setting.value
        if setting.option.field is USE_FP16:
            value = self._fp16_precision(label, value)
            if value is None:
                return
        for path in self._student_paths(setting.option.path):
            node: Any = self.tree
            for key in path[:-1]:
                if isinstance(node, dict) and node.get(key) is None:
                    node[key] = {}
                node = node[key]
                if not isinstance(node, dict | list):
                    message = f"{dotted(path[:-1])} is {shown(node)}, not a section"
                    raise ConfigError(f"{label}: {message}; correct the recipe")
            node[path[-1]] = value
            self.origins = {
                option: origin
                for option, origin in self.origins.items()
                if option[: len(path)] != path
            }
            self.origins[path] = label
            self.after_recipe.add(path)

    def _fp16_precision(self, label: str, value: str) -> str | None:
        """Returns the precision that ``--use_fp16 value`` asks for; None where nothing changes."""
        text = value.lower()
        if text not in _TRUE + _FALSE:
            raise ConfigError(f"{label}: must be true or false, not {shown(value)}")
        if text in _TRUE:
            return "fp16"
        parallel = self.tree.get("parallel")
        may_be_fp16 = isinstance(parallel, dict) and parallel.get("precision") in ("auto", "fp16")
        return "fp32" if may_be_fp16 else None

    def _student_paths(self, path: Path) -> list[Path]:
        """Replaces the student of a path (index, name or "*") by the indices that it means."""
        if path[:1] != STUDENTS or len(path) < 2:
            return [path]
        students = self.tree.setdefault("students", [{}])
        if not isinstance(students, list) or not all(
            isinstance(student, dict) for student in students
        ):
            raise ConfigError(f"students: must be a list of mappings, not {shown(students)}")
        names = [student.get("name", "student") for student in students]
        which = path[1]
        chosen = [i for i, name in enumerate(names) if which in ("*", i, name)]
        if not chosen:
            choices = ", ".join(map(str, names))
            raise ConfigError(f"{dotted(path)}: no student {which!r}; there are {choices}")
        return [("students", index, *path[2:]) for index in chosen]

    def validated(self) -> RunConfig:
        """Builds the run from everything that was given, checked."""
        # Empty sections name their missing options where absent ones would only name themselves.
        sections = {name: self.tree.get(name) or {} for name in ("teacher", "data")}
        sections |= {
            name: {} for name, value in self.tree.items() if value is None and name in _SECTIONS
        }
        try:
            return RunConfig.model_validate({**self.tree, **sections})
        except ValidationError as error:
            raise ConfigError(describe(error, self.origins, _where_to_give)) from None

    def with_deepspeed_json(self, config: RunConfig, config_path: str | None) -> RunConfig:
        """Takes stage and precision from the DeepSpeed JSON, and refuses contradictions."""
        assert config.parallel.deepspeed is not None
        path = find_deepspeed_json(config.parallel.deepspeed, config_path)
        settings = check_deepspeed_json(path)
        tree = deepcopy(self.tree)
        chosen = {"zero_stage": chosen_stage(settings), "precision": chosen_precision(settings)}
        for name, value in chosen.items():
            stated = getattr(config.parallel, name)
            if value is None:
                continue
            if stated not in (value, "auto") and self._contends_with_json(("parallel", name)):
                label = self.origins[("parallel", name)]
                raise ConfigError(
                    f"{path}: has {name} {value}, but {label} is {stated}; drop one of the two"
                )
            tree["parallel"][name] = value
            self.origins[("parallel", name)] = f"{path}: {name}"
        tree["parallel"]["deepspeed"] = path
        self.tree = tree
        config = self.validated()
        check_deepspeed_json(path, config)
        return config

    def _contends_with_json(self, path: Path) -> bool:
        """Tells whether `path` was given, and not only in a recipe that flags overrule."""
        json_by_flag = ("parallel", "deepspeed") in self.after_recipe
        return path in (self.after_recipe if json_by_flag else self.origins)


def _where_to_give(path: Path) -> str:
    """Words the remedy for an option that is missing."""
    flags = [name for name, option in known_flags().items() if option.path == any_student(path)]
    return "give it in the recipe" + "".join(f" or as --{name}" for name in flags[:1])
