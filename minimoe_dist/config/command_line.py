"""Command lines of flat options: words to an options class, and its help page."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar, get_origin

from pydantic import ValidationError

from .commands import CommandOptions, is_positional
from .flags import WORDS, Flag, kind_of, known_flags
from .loading import read_recipe
from .problems import ConfigError, Path, describe, nearest

Options = TypeVar("Options", bound=CommandOptions)

_TRUTH = ("true", "false")
_OVERRIDES = "overrides"


def take(name: str, remaining: list[str]) -> str:
    """Takes the word after a flag off `remaining`; a negative number is one, a flag is not.

    Raises:
        ConfigError: there is none.
    """
    if not remaining or remaining[0].startswith("--"):
        raise ConfigError(f"--{name}: needs a value; give --{name} VALUE")
    return remaining.pop(0)


def flag_value(flag: Flag, remaining: list[str]) -> str:
    """Takes what belongs to a flag off `remaining`: nothing for a switch, many words for a list.

    Raises:
        ConfigError: its value is missing.
    """
    if flag.is_switch:
        return remaining.pop(0) if remaining and remaining[0].lower() in _TRUTH else "true"
    values = [take(flag.name, remaining)]
    if flag.kind == WORDS:
        # The shell may have spread a pattern into many words.
        while remaining and not remaining[0].startswith("-") and "=" not in remaining[0]:
            values.append(remaining.pop(0))
    return values[0] if len(values) == 1 else json.dumps(values, ensure_ascii=False)


def parse_command(command: str, options_class: type[Options], tokens: Sequence[str]) -> Options:
    """Reads flags, positional words, ``--config`` and, where the class takes them, overrides.

    Args:
        command: its name, for messages.
        options_class: what the words mean.
        tokens: what stands behind the command's name.

    Raises:
        ConfigError: one line that names the option, the value and the remedy.
    """
    words = _Words(command, options_class)
    words.read(list(tokens))
    try:
        return options_class.model_validate(words.values)
    except ValidationError as error:
        text = describe(error, words.origins, lambda path: str(path[0]))
        raise ConfigError(text.replace("give it in the recipe or as", "give")) from None


class _Words:
    """What a command line says, option by option."""

    def __init__(self, command: str, options_class: type[CommandOptions]) -> None:
        self.command = command
        self.fields = options_class.model_fields
        self.flags = {
            _flag_name(name): Flag(
                _flag_name(name),
                (name,),
                field.description or "",
                kind_of(field.annotation),
                None,
                field.annotation is bool,
            )
            for name, field in self.fields.items()
            if name != _OVERRIDES
        }
        self.waiting = [
            name for name, field in self.fields.items() if is_positional(field.json_schema_extra)
        ]
        self.values: dict[str, Any] = {}
        self.origins: dict[Path, str] = {}

    def read(self, remaining: list[str]) -> None:
        while remaining:
            token = remaining.pop(0)
            name, separator, value = token.removeprefix("--").partition("=")
            if not token.startswith("--"):
                self._read_word(token)
            elif name == "config" and "config" not in self.flags:
                self._read_file(value if separator else take(name, remaining))
            elif name in self.flags:
                text = value if separator else flag_value(self.flags[name], remaining)
                flag = self.flags[name]
                self._set(str(flag.path[0]), _listed(text, flag), token.partition("=")[0])
            elif _OVERRIDES in self.fields and name in known_flags():
                text = value if separator else flag_value(known_flags()[name], remaining)
                self.values.setdefault(_OVERRIDES, []).append(f"--{name}={text}")
            else:
                self._refuse(token, name)

    def _read_word(self, token: str) -> None:
        if _OVERRIDES in self.fields and "=" in token and not token.startswith("-"):
            self.values.setdefault(_OVERRIDES, []).append(token)
        elif not self.waiting or token.startswith("-"):
            raise ConfigError(f"{token}: not an option of {self.command}; give --flag value")
        elif get_origin(self.fields[self.waiting[0]].annotation) is list:
            self.values.setdefault(self.waiting[0], []).append(token)
        else:
            name = self.waiting.pop(0)
            self._set(name, token, name)

    def _read_file(self, path: str) -> None:
        if "recipe" in self.fields:
            self.waiting = [name for name in self.waiting if name != "recipe"]
            self._set("recipe", path, "--config")
            return
        for name, value in read_recipe(path).items():
            if name not in self.fields:
                self._refuse(f"{path}: {name}", str(name))
            if (name,) not in self.origins:  # flags win wherever they stand
                self.values[name] = value
                self.origins[(name,)] = f"{path}: {name}"

    def _set(self, name: str, value: Any, origin: str) -> None:
        self.values[name] = value
        self.origins[(name,)] = origin

    def _refuse(self, shown: str, name: str) -> None:
        runs = known_flags() if _OVERRIDES in self.fields else {}
        found = nearest(name, [*self.flags, *runs])
        there = ", ".join(f"--{flag}" for flag in self.flags)
        hint = f"did you mean --{found}?" if found else f"there are {there}"
        raise ConfigError(f"{shown} is not an option of {self.command}; {hint}")


def _flag_name(field: str) -> str:
    """Of a field; one that would hide a method of pydantic's classes has a ``_`` more."""
    return field.rstrip("_")


def _listed(text: str, flag: Flag) -> Any:
    """Several words of a flag, which `flag_value` joined, apart again."""
    if flag.kind != WORDS or not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text  # a glob may begin with a bracket


def command_help(command: str, summary: str, options_class: type[CommandOptions]) -> str:
    """The page of ``COMMAND --help``."""
    fields = options_class.model_fields
    words = " ".join(
        name.upper() + " …" * (get_origin(field.annotation) is list)
        for name, field in fields.items()
        if is_positional(field.json_schema_extra)
    )
    overrides = " [key.path=value …]" * (_OVERRIDES in fields)
    lines = [
        f"usage: minimoe-dist {command}{' ' * bool(words)}{words} [--FLAG VALUE …]{overrides}\n\n"
        f"{summary[:1].upper()}{summary[1:]}.\n\n"
    ]
    for name, field in fields.items():
        if name == _OVERRIDES:
            continue
        kind = kind_of(field.annotation)
        takes = "" if field.annotation is bool else f" {kind if len(kind) < 40 else 'NAME'}"
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        told = "" if default in (None, "", False, []) else f" (default {_plainly(default)})"
        alternatives = f"; {kind.replace('|', ', ')}" if len(kind) >= 40 else ""
        lines.append(
            entry(f"--{_flag_name(name)}{takes}", (field.description or "") + alternatives + told)
        )
    return "".join(lines)


def _plainly(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)


def entry(left: str, right: str) -> str:
    """One entry of a help page: the flag, and what it means, wrapped."""
    indent = " " * 34
    text = textwrap.wrap(right, 66)
    first = f"  {left:<32}" if len(left) < 32 else f"  {left}\n{indent}"
    return first + f"\n{indent}".join(text) + "\n"
