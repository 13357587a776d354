"""Parses the arguments of every command into typed options, and prints its help page."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from .commands import POSITIONAL, CommandOptions, DistillOptions, RecipeOptions
from .flags import (
    SWITCH,
    WORDS,
    Option,
    Setting,
    find_option,
    kind_of,
    known_flags,
    parse_value,
    read_settings,
)
from .loading import read_recipe
from .problems import ConfigError, Path, describe, nearest
from .stages import load_stages

Options = TypeVar("Options", bound=CommandOptions)

_TRUTH = ("true", "false")
_RUN_USAGE = """\
Defaults < recipe < flags and key.path=value in the order given. A recipe of several stages runs
them in order, finished ones are skipped; stages.NAME.OPTION=value is for one. Starts alone, or as
  torchrun --nproc-per-node N -m minimoe_dist {command} …
  deepspeed --module minimoe_dist {command} …
  srun python -m minimoe_dist {command} …

"""


def read_options(command: str, options_class: type[Options], tokens: Sequence[str]) -> Options:
    """Parses a command's arguments into its options.

    Arguments are flags with their values, positional ones, ``--config FILE`` and, where the command
    takes a run, that run's options as flags or as ``key.path=value``.

    Args:
        command: its name, for messages.
        options_class: class of its options.
        tokens: the arguments behind the command's name.

    Raises:
        ConfigError: one line that names the option, the value and the remedy.
    """
    reader = _Reader(command, options_class, tokens)
    reader.read()
    try:
        options = options_class.model_validate(reader.values)
    except ValidationError as error:
        text = describe(error, reader.origins, lambda path: f"give --{_flag_name(str(path[0]))}")
        raise ConfigError(text) from None
    if not isinstance(options, RecipeOptions):
        return options
    run_options = {
        "overrides": [str(setting) for setting in reader.settings],
        "stages": load_stages(options.recipe, [*options.presets, *reader.settings]),
    }
    return options.model_copy(update=run_options)


class _Reader:
    """Reads the arguments of a command from left to right."""

    def __init__(
        self, command: str, options_class: type[CommandOptions], tokens: Sequence[str]
    ) -> None:
        self.command = command
        self.fields = options_class.model_fields
        self.takes_run = issubclass(options_class, RecipeOptions)
        self.flags = _flags(options_class)
        self.positionals = [
            name for name, field in self.fields.items() if field.json_schema_extra == POSITIONAL
        ]
        self.remaining = list(tokens)
        self.settings: list[Setting] = []
        self.values: dict[str, Any] = {}
        self.origins: dict[Path, str] = {}

    def read(self) -> None:
        while self.remaining:
            token = self.remaining.pop(0)
            label, separator, text = token.partition("=")
            name, value = label.removeprefix("--"), text if separator else None
            if not token.startswith("--"):
                self._read_positional(token)
            elif name in self.flags:
                self._set_by_flag(name, label, value)
            elif name == "config":
                self._read_file(self._next(label) if value is None else value)
            elif self.takes_run and (name in known_flags() or "." in name):
                option = find_option(label)
                parsed = self._value(label, option.field, value)
                self.settings.append(Setting(label, option, parsed))
            else:
                self._refuse(label, name)

    def _value(self, label: str, field: FieldInfo, text: str | None) -> Any:
        """Parses what stands behind "=", else no token for a switch, several for a list, or one."""
        if text is not None:
            return parse_value(field, text)
        kind = kind_of(field.annotation)
        if kind == SWITCH:
            has_value = self.remaining and self.remaining[0].lower() in _TRUTH
            return self.remaining.pop(0) if has_value else "true"
        values = [self._next(label)]
        # The shell may have expanded a pattern to many values.
        while kind == WORDS and self.remaining and not self.remaining[0].startswith("-"):
            if "=" in self.remaining[0]:
                break
            values.append(self.remaining.pop(0))
        return parse_value(field, values[0]) if len(values) == 1 else values

    def _next(self, label: str) -> str:
        """Takes the value after a flag; it may be a negative number, but not another flag."""
        if not self.remaining or self.remaining[0].startswith("--"):
            raise ConfigError(f"{label}: needs a value; give {label} VALUE")
        return self.remaining.pop(0)

    def _set_by_flag(self, name: str, label: str, text: str | None) -> None:
        path, field, _ = self.flags[name]
        option = str(path[0])
        if self.origins.get(path) == option:
            raise ConfigError(
                f"{label}: {option} {self.values[option]} is given already; keep one of the two"
            )
        self.positionals = [name for name in self.positionals if name != option]
        self._set(option, self._value(label, field, text), label)

    def _read_positional(self, token: str) -> None:
        if self.takes_run and "=" in token and not token.startswith("-"):
            self.settings += read_settings([token])
        elif not self.positionals or token.startswith("-"):
            alternative = " or key.path=value" * self.takes_run
            raise ConfigError(
                f"{token}: not an option of {self.command}; give --flag value{alternative}"
            )
        elif get_origin(self.fields[self.positionals[0]].annotation) is list:
            self.values.setdefault(self.positionals[0], []).append(token)
        else:
            name = self.positionals.pop(0)
            self._set(name, token, name)

    def _read_file(self, path: str) -> None:
        for name, value in read_recipe(path).items():
            if name not in self.fields:
                self._refuse(f"{path}: {name}", str(name))
            if (name,) not in self.origins:  # flags win wherever they stand
                self._set(name, value, f"{path}: {name}")

    def _set(self, name: str, value: Any, origin: str) -> None:
        self.values[name] = value
        self.origins[(name,)] = origin

    def _refuse(self, shown: str, name: str) -> None:
        suggestion = nearest(
            name, [*self.flags, *(known_flags() if self.takes_run else ()), "help"]
        )
        choices = f"there are {', '.join(f'--{flag}' for flag in self.flags)}"
        if self.takes_run:
            choices = f"see minimoe-dist {self.command} --help"
        hint = f"did you mean --{suggestion}?" if suggestion else choices
        raise ConfigError(f"{shown} is not an option of {self.command}; {hint}")


def _flags(options_class: type[CommandOptions]) -> dict[str, Option]:
    """Maps a command's own flags, without dashes, to their options."""
    return {
        _flag_name(name): Option((name,), field)
        for name, field in options_class.model_fields.items()
        if not field.exclude
    }


def _flag_name(field: str) -> str:
    """Returns a field's flag: without the ``_`` that keeps it from hiding a pydantic method."""
    return "config" if field == "recipe" else field.rstrip("_")


def help_page(command: str, summary: str, options_class: type[CommandOptions]) -> str:
    """Returns the page of ``COMMAND --help``, for commands that do a run with all its options."""
    takes_run = issubclass(options_class, RecipeOptions)
    tokens = [command, *_positional_names(options_class), "[--FLAG VALUE …]"]
    usage = " ".join([*tokens, "[key.path=value …]"] if takes_run else tokens)
    lines = [f"usage: minimoe-dist {usage}\n\n{summary[:1].upper()}{summary[1:]}.\n\n"]
    does_run = issubclass(options_class, DistillOptions)
    if does_run:
        lines.append(_RUN_USAGE.format(command=command))
    lines += [_entry(name, option.field) for name, option in _flags(options_class).items()]
    if does_run:
        lines += _run_entries()
    elif takes_run:
        lines.append("\nOptions of the run besides: see minimoe-dist distill --help.\n")
    return "".join(lines)


def _positional_names(options_class: type[CommandOptions]) -> Iterator[str]:
    for name, field in options_class.model_fields.items():
        if field.json_schema_extra == POSITIONAL:
            word = name.upper() + " …" * (get_origin(field.annotation) is list)
            yield word if field.is_required() else f"[{word}]"


def _run_entries() -> Iterator[str]:
    """Yields the help of every flag of a run, section by section."""
    section: str | None = None
    for name, option in known_flags().items():
        owner = str(option.path[0]) if len(option.path) > 1 else "run"
        if owner != section:
            section = owner
            note = " (set for every student; students.NAME.KEY=value for one)" * (
                owner == "students"
            )
            yield f"\n{owner}{note}:\n"
        yield _entry(name, option.field)


def _entry(name: str, field: FieldInfo) -> str:
    """Formats one entry of a help page: the flag, and its description, wrapped."""
    kind = kind_of(field.annotation)
    is_long = len(kind) >= 40
    flag = f"--{name}" + ("" if kind == SWITCH else f" {'NAME' if is_long else kind}")
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    text = (field.description or "") + f"; {kind.replace('|', ', ')}" * is_long
    if default not in (None, "", False, []):
        shown = ",".join(map(str, default)) if isinstance(default, list) else default
        text += f" (default {shown})"
    indent = " " * 34
    first = f"  {flag:<32}" if len(flag) < 32 else f"  {flag}\n{indent}"
    return first + f"\n{indent}".join(textwrap.wrap(text, 66)) + "\n"
