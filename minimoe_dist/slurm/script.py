"""Renders job scripts from shipped ones, with ``#SBATCH`` lines for one job."""

import re
import shlex
from collections.abc import Mapping, Sequence

from ..errors import UserError
from ..foreign import is_whole_number

_DIRECTIVE = re.compile(r"#SBATCH\s+--(?P<name>[a-z][\w-]*)(?:=(?P<value>.*))?")


def directives(text: str) -> dict[str, str]:
    """Parses the options of a script's ``#SBATCH`` lines; a missing value is an empty one."""
    options = {}
    for line in text.splitlines():
        match = _DIRECTIVE.match(line)
        if match:
            # sbatch knows quotes, and comments.
            words = shlex.split(match["value"] or "", comments=True)
            options[match["name"]] = words[0] if words else ""
    return options


def render(
    text: str,
    options: Mapping[str, str | None],
    variables: Mapping[str, str],
    arguments: Sequence[str],
) -> str:
    """Renders the script of one job from a shipped script.

    Args:
        text: content of the shipped file.
        options: options of sbatch, without dashes; they win over the file's, None removes one.
        variables: variables to export first.
        arguments: arguments that the script is called with.

    Returns:
        The script, without the comments of the shipped file.

    Raises:
        UserError: an option would end its line, behind which the shell reads commands.
    """
    merged = {**directives(text), **options}
    for name, value in merged.items():
        if value and not value.isprintable():
            raise UserError(f"--{name}: {value!r} has characters that end a line; take them out")
    header = [
        f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "")
        for name, value in merged.items()
        if value is not None
    ]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    body = [line for line in text.splitlines() if line and not line.startswith("#")]
    set_arguments = f"set -- {shlex.join(arguments)}"
    return "\n".join(["#!/bin/bash", *header, *exports, set_arguments, *body]) + "\n"


def parse_free_options(texts: Sequence[str]) -> dict[str, str]:
    """Parses options of sbatch, with or without dashes, such as ``constraint=a100``.

    Raises:
        UserError: a text is no long option.
    """
    options = {}
    for text in texts:
        name, _, value = text.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise UserError(f"--sbatch: {text!r} is no long option of sbatch; give NAME=VALUE")
        options[name] = value
    return options


def count_gpus(text: str) -> int:
    """Counts the GPUs that Slurm is asked for: of "4", "a100:4", "a100:2,v100:2"."""
    counts = (part.rpartition(":")[2] for part in text.split(","))
    return sum(int(count) for count in counts if is_whole_number(count))


def gpus_per_node(options: Mapping[str, str | None]) -> int | None:
    """Counts the GPUs of each node that options of sbatch ask for; None where they ask for none.

    Args:
        options: names without dashes, such as ``gpus-per-node``, ``gpus-per-task``, ``gres``.
    """
    if value := options.get("gpus-per-node"):
        return count_gpus(value)
    if value := options.get("gpus-per-task"):
        return count_gpus(value) * int(options.get("ntasks-per-node") or 1)
    found = None
    for resource in (options.get("gres") or "").split(","):
        name, _, rest = re.sub(r"\(.*", "", resource).removeprefix("gres/").partition(":")
        if name == "gpu":
            last = rest.rpartition(":")[2]
            found = (found or 0) + (int(last) if is_whole_number(last) else 1)
    return found


def time_limit_seconds(text: str) -> int | None:
    """Parses a time limit of sbatch into seconds; None for one without end.

    The forms are M, M:S, H:M:S, D-H, D-H:M and D-H:M:S.

    Raises:
        UserError: the text has none of these forms.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise UserError(f"--time: {text!r} is no time limit; give H:M:S or D-H:M:S")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    units: tuple[int, ...] = (3600, 60, 1)
    if days is None and len(numbers) < 3:
        units = (60, 1)
    return int(days or 0) * 86400 + sum(n * unit for n, unit in zip(numbers, units, strict=False))
