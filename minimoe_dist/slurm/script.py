"""Job scripts: the ``#SBATCH`` lines of a shipped file, changed for one job."""

import re
import shlex
from collections.abc import Mapping, Sequence

from ..errors import UserError

_DIRECTIVE = re.compile(r"#SBATCH\s+--(?P<name>[a-z][\w-]*)(?:=(?P<value>.*?))?(?:\s+#.*)?$")


def directives(text: str) -> dict[str, str]:
    """The options of a script's ``#SBATCH`` lines; those without a value have an empty one."""
    found = {}
    for line in text.splitlines():
        match = _DIRECTIVE.match(line)
        if match:
            found[match["name"]] = match["value"] or ""
    return found


def render(
    text: str,
    options: Mapping[str, str | None],
    variables: Mapping[str, str],
    arguments: Sequence[str],
) -> str:
    """A shipped script as a script for one job.

    Args:
        text: of the shipped file.
        options: of sbatch, without dashes; they win over the file's, None takes one away.
        variables: exported before anything else.
        arguments: that the script is called with.

    Returns:
        The script; the comments of the shipped file stay behind.
    """
    merged = {**directives(text), **options}
    header = [
        f"#SBATCH --{name}" + (f"={value}" if value else "")
        for name, value in merged.items()
        if value is not None
    ]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    body = [line for line in text.splitlines() if line and not line.startswith("#")]
    given = f"set -- {shlex.join(arguments)}"
    return "\n".join(["#!/bin/bash", *header, *exports, given, *body]) + "\n"


def parse_free_options(words: Sequence[str]) -> dict[str, str]:
    """Options of sbatch as a user gives them, with or without dashes: ``constraint=a100``.

    Raises:
        UserError: a word that is no long option.
    """
    found = {}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise UserError(f"--sbatch: {word!r} is no long option of sbatch; give NAME=VALUE")
        found[name] = value
    return found


def time_limit_seconds(text: str) -> int | None:
    """Seconds of a time limit as sbatch takes it; None for one without end.

    The forms are M, M:S, H:M:S, D-H, D-H:M and D-H:M:S.

    Raises:
        UserError: it is none of them.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise UserError(f"--time: {text!r} is no time limit; give H:M:S or D-H:M:S")
    days, *parts = match.groups()
    given = [int(part) for part in parts if part is not None]
    units: tuple[int, ...] = (3600, 60, 1)
    if days is None and len(given) < 3:
        units = (60, 1)
    return int(days or 0) * 86400 + sum(n * unit for n, unit in zip(given, units, strict=False))
