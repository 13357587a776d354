"""Lists the options of a run in one table, with their names on the command line.

An option is named by its path in a recipe (``training.max_steps``) or by its flag, which is the
last name of the path wherever that says enough (``max_steps``), with dashes in front or without. A
flag for students means every student; ``stages.NAME.`` in front means one stage.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from ..foreign import UnreadableError, is_whole_number, parse_yaml
from .problems import ConfigError, Path, dotted, nearest
from .run import RunConfig
from .schema import Section, StudentConfig

STUDENTS: Path = ("students",)
# Options whose own name would not say whose they are, and those without a flag.
_FLAG_NAMES: dict[Path, str | None] = {
    ("teacher", "model_name_or_path"): "teacher_model_name_or_path",
    ("teacher", "dtype"): "teacher_dtype",
    ("teacher", "layout"): "teacher_layout",
    ("teacher", "implementation"): "teacher_implementation",
    ("teacher", "parallel_size"): "teacher_parallel_size",
    ("teacher", "offload"): "teacher_offload",
    ("teacher", "cache"): "teacher_cache",
    ("teacher", "cache_dir"): "teacher_cache_dir",
    ("teacher", "cache_epochs"): "teacher_cache_epochs",
    ("students", "*", "model_name_or_path"): "student_model_name_or_path",
    ("students", "*", "name"): None,
    ("training", "health", "window"): "health_window",
    STUDENTS: None,
}
USE_FP16 = FieldInfo(annotation=bool, default=False, description="short for --precision fp16")
SWITCH = "true|false"  # the kind of an option that may stand without a value, which means true
WORDS = "TEXT …"  # the kind of an option that takes a list of words


class Option(NamedTuple):
    """An option of a run: its path ("*" for every student), its field, and its stage if any."""

    path: Path
    field: FieldInfo
    stage: str | None = None


@dataclass(frozen=True)
class Setting:
    """A value that the command line gives an option of a run.

    Attributes:
        label: the option as the user wrote it, for messages.
        option: the option that it names.
        value: text, a list of texts, or what YAML makes of text that is a list.
    """

    label: str
    option: Option
    value: Any

    def __str__(self) -> str:
        return f"{self.label}={self.value}"


@cache
def known_options() -> Mapping[Path, FieldInfo | None]:
    """Maps every option's path to its field, depth first; a section maps to None."""
    table: dict[Path, FieldInfo | None] = {}

    def add(section: type[Section], prefix: Path) -> None:
        for name, field in section.model_fields.items():
            path: Path = (*prefix, name)
            nested: Any = field.annotation
            if path == STUDENTS:
                table[path] = field
                nested, path = StudentConfig, (*path, "*")
            is_section = isinstance(nested, type) and issubclass(nested, Section)
            table[path] = None if is_section else field
            if is_section:
                add(nested, path)

    add(RunConfig, ())
    return table


@cache
def known_flags() -> Mapping[str, Option]:
    """Maps every flag, without dashes, to its option, in the order of the schema."""
    flags: dict[str, Option] = {}
    for path, field in known_options().items():
        name = _FLAG_NAMES.get(path, str(path[-1]))
        if field is None or name is None:
            continue
        assert name not in flags, f"two options want the flag --{name}"
        flags[name] = Option(path, field)
    flags["use_fp16"] = Option(("parallel", "precision"), USE_FP16)
    return flags


def find_option(label: str) -> Option:
    """Finds the option of ``--max_steps``, ``training.max_steps`` or ``stages.NAME.max_steps``.

    Raises:
        ConfigError: there is none, with the nearest; or it is a section.
    """
    key, stage = label.removeprefix("--"), None
    if key.startswith("stages."):
        _, stage, key = [*key.split(".", 2), ""][:3]
        if not key:
            raise ConfigError(f"{label}: which option? give stages.{stage}.NAME=value")
    if key in known_flags():
        return known_flags()[key]._replace(stage=stage)
    path: Path = tuple(int(part) if is_whole_number(part) else part for part in key.split("."))
    if any_student(path) not in known_options():
        raise _unknown(label, key, path)
    if path[:1] == STUDENTS and len(path) == 2:
        raise ConfigError(f"{label}: whose? give students.NAME.{path[1]} or students.*.{path[1]}")
    field = known_options()[any_student(path)]
    if field is None:
        raise ConfigError(f"{label}: is a section; set one of its options, {label}.NAME=value")
    return Option(path, field, stage)


def read_settings(overrides: Iterable["str | Setting"]) -> list[Setting]:
    """Parses ``key.path=value`` and ``--flag=value``; settings that were read already stay.

    Raises:
        ConfigError: a text is none of these, or names no option.
    """
    settings = []
    for override in overrides:
        if isinstance(override, str):
            label, separator, text = override.partition("=")
            if not separator:
                raise ConfigError(f"{override}: not an option; give key.path=value or --flag value")
            option = find_option(label)
            override = Setting(label, option, parse_value(option.field, text))
        settings.append(override)
    return settings


def parse_value(field: FieldInfo, text: str) -> Any:
    """Parses null and lists of an option's value; pydantic does the rest."""
    kinds = (field.annotation, *get_args(field.annotation))
    if type(None) in kinds and text in ("null", "none"):
        return None
    if any(get_origin(kind) is list for kind in kinds) and text.startswith(("[", "{")):
        try:
            return parse_yaml(text)
        except UnreadableError:
            return text  # a glob may begin with a bracket
    return text


def _unknown(label: str, key: str, path: Path) -> ConfigError:
    """Words the refusal of an unknown label, with the nearest flag, else the nearest path."""
    prefix = label.removesuffix(key)
    suggestion = nearest(key, known_flags()) if len(path) == 1 else None
    if suggestion is None:
        return unknown_option(path, label, prefix)
    return ConfigError(f"{label} is not an option; did you mean {prefix}{suggestion}?")


def unknown_option(path: Path, label: str, prefix: str = "") -> ConfigError:
    """Words the refusal of a path that does not exist, with the nearest one in full.

    Args:
        path: as the user wrote it.
        label: the path with its file, or with its prefix.
        prefix: dashes or ``stages.NAME.`` before it, which the remedy repeats.
    """
    options = known_options()
    siblings = {
        str(option[len(path) - 1]): dotted(option[: len(path)])
        for option in options
        if len(option) >= len(path) and option[: len(path) - 1] == any_student(path)[:-1]
    }
    siblings.pop("*", None)
    leaves = {str(option[-1]): dotted(option) for option in options}
    leaves |= {name: dotted(option.path) for name, option in known_flags().items()}
    name = str(path[-1])
    suggestion = leaves.get(name)
    for candidates in (siblings, leaves):
        guess = nearest(name, candidates)
        suggestion = suggestion or (candidates[guess] if guess else None)
    choices = f"there are {', '.join(siblings)}" if siblings else "see --help for all"
    hint = f"did you mean {prefix}{suggestion}?" if suggestion else choices
    return ConfigError(f"{label} is not an option; {hint}")


def any_student(path: Path) -> Path:
    """Returns `path` with "*" in the place of a student."""
    if len(path) > 1 and path[:1] == STUDENTS:
        return ("students", "*", *path[2:])
    return path


def kind_of(annotation: Any) -> str:
    """Names what an option of a type takes, for the help page: "N", "X", "TEXT", WORDS, "a|b"."""
    if annotation is bool:
        return SWITCH
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if get_origin(annotation) is list:
        (element,) = get_args(annotation)
        element = get_args(element)[0] if get_origin(element) is Annotated else element
        return "N,N" if element in (int, float) else WORDS
    members = [member for member in get_args(annotation) if member is not type(None)]
    if members:
        return kind_of(members[0])
    return {int: "N", float: "X"}.get(annotation, "TEXT")
