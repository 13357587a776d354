"""Words wrong options: in one line, the file or option, the value and the remedy."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import UserError
from ..foreign import shown

Path = tuple[str | int, ...]

_SHOWN = 5  # problems on one line; more would bury the first


class ConfigError(UserError):
    """Says in one line that a user's options cannot be run."""


def dotted(path: Path) -> str:
    """Joins a path: ("students", 0, "moe") gives "students.0.moe"."""
    return ".".join(map(str, path))


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Returns the candidate that `name` most probably misspells, or None."""
    plain = {candidate.lower().replace("-", "_"): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=1, cutoff=0.6)
    return plain[matches[0]] if matches else None


def describe(
    error: ValidationError,
    origins: Mapping[Path, str],
    remedy_of: Callable[[Path], str],
) -> str:
    """Words a pydantic error as one line.

    Args:
        error: what pydantic raised.
        origins: path of an option -> where its value came from ("--moe", "recipe.yaml: …").
        remedy_of: words how the missing option at a path is given.
    """
    lines: list[str] = []
    for detail in error.errors():
        if detail["type"] == "run_problems":
            for path, message in detail["ctx"]["problems"]:
                lines.append(f"{_origin(path, origins)} {message}")
        elif detail["type"] == "missing":
            path = detail["loc"]
            lines.append(f"{dotted(path)} is missing; {remedy_of(path)}")
        else:
            lines.append(f"{_origin(detail['loc'], origins)} {message_of(detail)}")
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"and {len(lines) - _SHOWN} more"]
    return "; ".join(lines)


def _origin(path: Path, origins: Mapping[Path, str]) -> str:
    """Returns where the value at `path` came from; its own name where it is a default."""
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            rest = dotted(path[length:])
            return origins[path[:length]] + (f".{rest}:" if rest else ":")
    return f"{dotted(path)}:"


def message_of(detail: Mapping[str, Any]) -> str:
    """Words what one of pydantic's errors says of a value, without its path."""
    kind, context, value = detail["type"], detail.get("ctx", {}), shown(detail["input"])
    if kind == "literal_error":
        expected = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        suggestion = nearest(str(detail["input"]), expected)
        hint = f"; did you mean {suggestion}?" if suggestion else ""
        return f"must be one of {', '.join(expected)}, not {value}{hint}"
    if kind == "extra_forbidden":
        return "is not an option here; correct its name or drop it"
    if kind == "value_error":
        return f"{context['error']}, not {value}"
    if kind == "too_short":
        return f"needs at least {context['min_length']} entry, not {value}"
    if kind == "string_type" and isinstance(detail["input"], int | float):
        return f"must be text, not the number {value}; put it in quotes"
    for prefix, description in (
        ("int_", "a whole number"),
        ("float_", "a number"),
        ("bool_", "true or false"),
        ("string_", "text"),
        ("finite_", "a finite number"),
        ("list_", "a list"),
        ("model_", "a mapping of options"),
        ("dict_", "a mapping of options"),
    ):
        if kind.startswith(prefix):
            return f"must be {description}, not {value}"
    for name, relation in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if name in context:
            return f"must be {relation} {context[name]:g}, not {value}"
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, not {value}"
