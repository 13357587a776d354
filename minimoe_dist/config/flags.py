"""The command line's options, derived from the schema so that each has one home.

Every option has a flag of its own name (``--max_steps``); a flag for students sets every student.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from .problems import ConfigError, Path, dotted, nearest
from .run import RunConfig
from .schema import Section, StudentConfig

# Options whose own name would not say whose they are.
_FLAG_NAMES: dict[Path, str | None] = {
    ("teacher", "model_name_or_path"): "teacher_model_name_or_path",
    ("teacher", "dtype"): "teacher_dtype",
    ("teacher", "layout"): "teacher_layout",
    ("teacher", "parallel_size"): "teacher_parallel_size",
    ("teacher", "offload"): "teacher_offload",
    ("students", "*", "model_name_or_path"): "student_model_name_or_path",
    ("students", "*", "name"): None,
}
_PRECISION_FLAG = "use_fp16"
WORDS = "TEXT …"  # the kind of an option that takes a list of words


@dataclass(frozen=True)
class Flag:
    """One flag of the command line.

    Attributes:
        name: without the dashes.
        path: of the option that it sets; "*" stands for every student.
        description: for the help page.
        kind: what it takes, for the help page.
        default: shown on the help page; None where there is none.
        is_switch: it may stand without a value, which means true.
    """

    name: str
    path: Path
    description: str
    kind: str
    default: Any
    is_switch: bool


def options(
    section: type[Section] = RunConfig, at: Path = ()
) -> Iterator[tuple[Path, FieldInfo | None]]:
    """All options with their fields, depth first; sections come before theirs, without a field."""
    for name, field in section.model_fields.items():
        path = (*at, name)
        nested = field.annotation
        if name == "students":
            nested, path = StudentConfig, (*path, "*")
        if isinstance(nested, type) and issubclass(nested, Section):
            yield path, None
            yield from options(nested, path)
        else:
            yield path, field


@cache
def leaf_fields() -> dict[Path, FieldInfo]:
    """Path -> field of every option that holds a value."""
    return {path: field for path, field in options() if field is not None}


@cache
def known_flags() -> dict[str, Flag]:
    """Name -> flag, in the order of the schema."""
    found: dict[str, Flag] = {}
    for path, field in leaf_fields().items():
        name = _FLAG_NAMES.get(path, str(path[-1]))
        if name is None:
            continue
        assert name not in found, f"two options want the flag --{name}"
        default = None if field.is_required() else field.get_default()
        is_switch = field.annotation is bool
        found[name] = Flag(
            name, path, field.description or "", kind_of(field.annotation), default, is_switch
        )
    words = "short for --precision fp16"
    found[_PRECISION_FLAG] = Flag(
        _PRECISION_FLAG, ("parallel", "precision"), words, "true|false", False, True
    )
    return found


def flag_of(path: Path) -> str | None:
    """The flag that sets the option at `path`, or None."""
    wanted = _any_student(path)
    return next((flag.name for flag in known_flags().values() if flag.path == wanted), None)


def unknown_flag(name: str) -> ConfigError:
    """The refusal of a flag that is not there, with the nearest one."""
    found = nearest(name, [*known_flags(), "config", "dry_run", "help"])
    hint = f"did you mean --{found}?" if found else "see --help for all"
    return ConfigError(f"--{name} is not an option; {hint}")


def unknown_option(path: Path, label: str = "") -> ConfigError:
    """The refusal of a key that is not there, with the nearest one's full path.

    Args:
        path: as the user wrote it.
        label: the file in which it stands, or nothing.
    """
    known = [option for option, _ in options()]
    siblings = {
        str(option[len(path) - 1]): dotted(option[: len(path)])
        for option in known
        if len(option) >= len(path) and option[: len(path) - 1] == _any_student(path)[:-1]
    }
    siblings.pop("*", None)
    leaves = {str(option[-1]): dotted(option) for option in known}
    leaves |= {name: dotted(flag.path) for name, flag in known_flags().items()}
    name = str(path[-1])
    found = leaves.get(name)
    for candidates in (siblings, leaves):
        guess = nearest(name, candidates)
        found = found or (candidates[guess] if guess else None)
    there = f"there are {', '.join(siblings)}" if siblings else "see --help for all"
    hint = f"did you mean {found}?" if found else there
    return ConfigError(f"{label}{dotted(path)} is not an option; {hint}")


def is_known(path: Path) -> bool:
    """Whether `path` names an option or a section."""
    wanted = _any_student(path)
    return any(option[: len(wanted)] == wanted for option, _ in options())


def option_field(path: Path) -> FieldInfo | None:
    """The field of the option at `path`; None for a section, the list of students, or nothing."""
    return leaf_fields().get(_any_student(path))


def parse_text(path: Path, text: str) -> Any:
    """The value that `text` means for the option at `path`; pydantic does the rest."""
    field = option_field(path)
    if field is not None and type(None) in get_args(field.annotation) and text in ("null", "none"):
        return None
    kinds = () if field is None else (field.annotation, *get_args(field.annotation))
    takes_list = field is None or any(get_origin(kind) is list for kind in kinds)
    if takes_list and text.startswith(("[", "{")):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text  # a glob may begin with a bracket
    return text


def _any_student(path: Path) -> Path:
    if len(path) > 1 and path[0] == "students":
        return ("students", "*", *path[2:])
    return path


def kind_of(annotation: Any) -> str:
    """What an option of this type takes, for the help page: "N", "X", "TEXT", WORDS, "a|b"."""
    if annotation is bool:
        return "true|false"
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if get_origin(annotation) is list:
        (element,) = get_args(annotation)
        element = get_args(element)[0] if get_origin(element) is Annotated else element
        return "N,N" if element in (int, float) else WORDS
    members = [one for one in get_args(annotation) if one is not type(None)]
    if members:
        return kind_of(members[0])
    return {int: "N", float: "X"}.get(annotation, "TEXT")
