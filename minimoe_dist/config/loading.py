"""Merging: defaults < recipe YAML < flags and ``key.path=value`` in the order given."""

from collections.abc import Hashable, Sequence
from copy import deepcopy
from pathlib import Path as FilePath
from typing import Any

import yaml
from pydantic import ValidationError

from .deepspeed_json import (
    check_deepspeed_json,
    chosen_precision,
    chosen_stage,
    find_deepspeed_json,
)
from .flags import (
    flag_of,
    is_known,
    known_flags,
    option_field,
    parse_text,
    unknown_flag,
    unknown_option,
)
from .problems import ConfigError, Path, describe, dotted, shown
from .run import RunConfig

_SECTIONS = ("teacher", "objective", "data", "training", "parallel", "sparsify")
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def load_run_config(config_path: str | None, overrides: Sequence[str] = ()) -> RunConfig:
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
    return resolve_run(tree, config_path, overrides)


def resolve_run(
    tree: dict[str, Any], config_path: str | None, overrides: Sequence[str]
) -> RunConfig:
    """The same of a recipe that was read already, from ``config_path``."""
    merge = _Merge()
    if config_path is not None:
        merge.add_recipe(tree, config_path)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"{override}: not an option; give key.path=value or --flag value")
        if key.startswith("--"):
            merge.set_flag(key[2:], text)
        else:
            merge.set_key(key, text)
    config = merge.validated()
    if config.parallel.deepspeed is None:
        return config
    return merge.with_deepspeed_json(config, config_path)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is given twice; keep one", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_recipe(config_path: str) -> dict[str, Any]:
    """A recipe's YAML.

    Raises:
        ConfigError: the file is not there, or no YAML mapping.
    """
    try:
        text = FilePath(config_path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{config_path}: {reason}; give --config a recipe file") from None
    try:
        tree = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"{config_path}{line}: {reason}; correct the YAML") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{config_path}: must be a mapping of options, not {shown(tree)}")
    return tree


class _Merge:
    """The options given so far, and where each came from."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.origins: dict[Path, str] = {}
        self.after_recipe: set[Path] = set()

    def add_recipe(self, tree: dict[str, Any], config_path: str) -> None:
        """Takes all options of a recipe file."""
        self._note_origins(tree, (), config_path)
        self.tree = tree

    def _note_origins(self, node: Any, at: Path, config_path: str) -> None:
        """Refuses unknown keys, and notes for every known one the file that it came from."""
        entries: list[tuple[Any, Any]] = []
        if isinstance(node, dict):
            entries = list(node.items())
        elif isinstance(node, list) and at == ("students",):
            entries = list(enumerate(node))
        for key, value in entries:
            path = (*at, key)
            if not is_known(path):
                raise unknown_option(path, f"{config_path}: ")
            self.origins[path] = f"{config_path}: {dotted(path)}"
            if option_field(path) is None:
                self._note_origins(value, path, config_path)

    def set_flag(self, name: str, text: str) -> None:
        """Sets the option of one flag."""
        flag = known_flags().get(name)
        if flag is None:
            raise unknown_flag(name)
        if name == "use_fp16":
            precision = self._precision(text)
            if precision is None:
                return
            text = precision
        self._set(flag.path, text, f"--{name}")

    def set_key(self, key: str, text: str) -> None:
        """Sets one option by its path in the recipe."""
        path: Path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        if path[0] == "students" and len(path) == 2:
            raise ConfigError(f"{key}: whose? give students.NAME.{path[1]} or students.*.{path[1]}")
        if not is_known(path):
            raise unknown_option(path)
        if option_field(path) is None and path != ("students",):
            raise ConfigError(f"{key}: is a section; set one of its options, {key}.NAME=value")
        self._set(path, text, key)

    def _precision(self, value: str) -> str | None:
        """The precision that ``--use_fp16 value`` asks for; None where nothing changes."""
        text = value.lower()
        if text not in _TRUE + _FALSE:
            raise ConfigError(f"--use_fp16: must be true or false, not {shown(value)}")
        if text in _TRUE:
            return "fp16"
        parallel = self.tree.get("parallel")
        may_be_fp16 = isinstance(parallel, dict) and parallel.get("precision") in ("auto", "fp16")
        return "fp32" if may_be_fp16 else None

    def _set(self, path: Path, text: str, label: str) -> None:
        value = parse_text(path, text)
        for concrete in self._concrete(path):
            node: Any = self.tree
            for key in concrete[:-1]:
                if isinstance(node, dict) and node.get(key) is None:
                    node[key] = {}
                node = node[key]
                if not isinstance(node, dict | list):
                    words = f"{dotted(concrete[:-1])} is {shown(node)}, not a section"
                    raise ConfigError(f"{label}: {words}; correct the recipe")
            node[concrete[-1]] = value
            self.origins = {
                known: origin
                for known, origin in self.origins.items()
                if known[: len(concrete)] != concrete
            }
            self.origins[concrete] = label
            self.after_recipe.add(concrete)

    def _concrete(self, path: Path) -> list[Path]:
        """Replaces the student of a path (index, name or "*") by the indices that it means."""
        if path[0] != "students" or len(path) < 2:
            return [path]
        students = self.tree.setdefault("students", [{}])
        if not isinstance(students, list) or not all(isinstance(one, dict) for one in students):
            raise ConfigError(f"students: must be a list of mappings, not {shown(students)}")
        names = [one.get("name", "student") for one in students]
        which = path[1]
        chosen = [i for i, name in enumerate(names) if which in ("*", i, name)]
        if not chosen:
            there = ", ".join(map(str, names))
            raise ConfigError(f"{dotted(path)}: no student {which!r}; there are {there}")
        return [("students", index, *path[2:]) for index in chosen]

    def validated(self) -> RunConfig:
        """Checks everything that was given."""
        # Empty sections name their missing options where absent ones would only name themselves.
        sections = {name: self.tree.get(name) or {} for name in ("teacher", "data")}
        sections |= {
            name: {} for name, value in self.tree.items() if value is None and name in _SECTIONS
        }
        try:
            return RunConfig.model_validate({**self.tree, **sections})
        except ValidationError as error:
            raise ConfigError(describe(error, self.origins, flag_of)) from None

    def with_deepspeed_json(self, config: RunConfig, config_path: str | None) -> RunConfig:
        """Takes stage and precision from the DeepSpeed JSON, and refuses contradictions."""
        assert config.parallel.deepspeed is not None
        path = find_deepspeed_json(config.parallel.deepspeed, config_path)
        settings = check_deepspeed_json(path)
        tree = deepcopy(self.tree)
        chosen = {"zero_stage": chosen_stage(settings), "precision": chosen_precision(settings)}
        for name, value in chosen.items():
            given = getattr(config.parallel, name)
            if value is None:
                continue
            if given not in (value, "auto") and self._stands_beside_json(("parallel", name)):
                label = self.origins[("parallel", name)]
                raise ConfigError(
                    f"{path}: has {name} {value}, but {label} is {given}; drop one of the two"
                )
            tree["parallel"][name] = value
            self.origins[("parallel", name)] = f"{path}: {name}"
        tree["parallel"]["deepspeed"] = path
        self.tree = tree
        config = self.validated()
        check_deepspeed_json(path, config)
        return config

    def _stands_beside_json(self, path: Path) -> bool:
        """Whether the option at `path` was given, and not only in a recipe that flags overrule."""
        json_by_flag = ("parallel", "deepspeed") in self.after_recipe
        return path in (self.after_recipe if json_by_flag else self.origins)
