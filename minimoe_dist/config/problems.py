"""How a wrong option is worded: one line with the file or option, the value and the remedy."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import UserError

Path = tuple[str | int, ...]

_SHOWN = 5  # problems on one line; more would bury the first


class ConfigError(UserError):
    """What a user gave cannot be run; the text is one line."""


def dotted(path: Path) -> str:
    """Joins a path: ("students", 0, "moe") gives "students.0.moe"."""
    return ".".join(map(str, path))


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` most probably misspells, or None."""
    plain = {candidate.lower().replace("-", "_"): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=1, cutoff=0.6)
    return plain[found[0]] if found else None


def describe(
    error: ValidationError,
    origins: Mapping[Path, str],
    remedy_of: Callable[[Path], str],
) -> str:
    """Words a pydantic error as one line.

    Args:
        error: what pydantic raised.
        origins: path of an option -> where its value came from ("--moe", "recipe.yaml: …").
        remedy_of: says how the option at a path is given, where it is missing.
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
    """Where the value at `path` came from; its own name where it is a default."""
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            rest = dotted(path[length:])
            return origins[path[:length]] + (f".{rest}:" if rest else ":")
    return f"{dotted(path)}:"


def message_of(detail: Mapping[str, Any]) -> str:
    """What one of pydantic's errors says is wrong with a value; without its place."""
    kind, context, value = detail["type"], detail.get("ctx", {}), shown(detail["input"])
    if kind == "literal_error":
        expected = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        found = nearest(str(detail["input"]), expected)
        hint = f"; did you mean {found}?" if found else ""
        return f"must be one of {', '.join(expected)}, not {value}{hint}"
    if kind == "extra_forbidden":
        return "is not an option here; correct its name or drop it"
    if kind == "value_error":
        return f"{context['error']}, not {value}"
    if kind == "too_short":
        return f"needs at least {context['min_length']} entry, not {value}"
    if kind == "string_type" and isinstance(detail["input"], int | float):
        return f"must be text, not the number {value}; put it in quotes"
    for prefix, wanted in (
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
            return f"must be {wanted}, not {value}"
    for name, words in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if name in context:
            return f"must be {words} {context[name]:g}, not {value}"
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, not {value}"


def shown(value: object) -> str:
    """`value` as it is shown in an error: short, and on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
