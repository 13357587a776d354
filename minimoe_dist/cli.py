"""The command ``minimoe-dist`` and its subcommands: parsing only.

Options and paths are refused in one line, with exit status 2, before anything heavy is imported.
The same command runs alone, under torchrun, under deepspeed and under srun.
"""

import json
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from minimoe_dist import __version__
from minimoe_dist.config import ConfigError, RunConfig, load_stages
from minimoe_dist.config.checks import SPARSIFICATION
from minimoe_dist.config.flags import Flag, known_flags, unknown_flag
from minimoe_dist.config.problems import nearest
from minimoe_dist.runtime import LaunchError, detect_launch, prepare_environment, start_logging

USER_ERROR = 2
FAILED_START = 1
INTERRUPTED = 130

_LAUNCHER_FLAGS = ("--local_rank", "--local-rank")
_TRUTH = ("true", "false")
_USAGE = """\
usage: minimoe-dist COMMAND [options]

commands:
  distill   train students of a teacher, from a recipe
  sparsify  find what a BERT can lose, and the sub-models that sparse students start from
  demo      the whole way on text that this machine has, in minutes

minimoe-dist COMMAND --help tells a command's options; --version tells the version.
"""
_RECIPE_USAGE = """\
usage: minimoe-dist {command} [--config RECIPE.yaml] [--FLAG VALUE …] [key.path=value …]

Defaults < recipe < flags and key.path=value in the order given. A recipe of several stages runs
them in order, finished ones are skipped. Starts alone, or as
  torchrun --nproc-per-node N -m minimoe_dist {command} …
  deepspeed --module minimoe_dist {command} …
  srun python -m minimoe_dist {command} …

  --config RECIPE.yaml   options from a file, see configs/recipes
  --dry_run              print the resolved run and stop
  --help                 this page
"""
_DEMO_FLAGS = {
    "output_dir": "folder of corpus, run and export (default runs/demo)",
    "steps": "optimizer steps (default: the recipe's)",
    "num_processes": "processes to distil on (default: 2 on CPUs, else one per GPU)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Args:
        arguments: without the program's name; None takes those of the process.
    """
    tokens = _without_launcher_flags(list(sys.argv[1:] if arguments is None else arguments))
    try:
        return _dispatch(tokens)
    except KeyboardInterrupt:
        return INTERRUPTED
    except LaunchError as error:
        return _refuse(str(error), FAILED_START)
    except ConfigError as error:
        return _refuse(str(error), USER_ERROR)
    except (ValueError, OSError) as error:
        # Ours are worded for users; a library's are bugs here and keep their traceback.
        if not _raised_by_us(error.__traceback__):
            raise
        return _refuse(str(error), USER_ERROR)


def _dispatch(tokens: list[str]) -> int:
    if not tokens or tokens[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0 if tokens else USER_ERROR
    if tokens[0] == "--version":
        print(f"minimoe-dist {__version__}")
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "distill": lambda rest: _run_recipe("distill", rest),
        "sparsify": lambda rest: _run_recipe("sparsify", rest),
        "demo": _demo,
    }
    command = commands.get(tokens[0])
    if command is None:
        found = nearest(tokens[0], commands)
        hint = f"did you mean {found}?" if found else f"there are {', '.join(commands)}"
        raise ConfigError(f"{tokens[0]} is not a command; {hint}")
    return command(tokens[1:])


def _refuse(message: str, status: int) -> int:
    """Says it once a node: every rank of a node finds the same."""
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
        print(f"minimoe-dist: {' '.join(message.split())}", file=sys.stderr)
    return status


def _raised_by_us(traceback: TracebackType | None) -> bool:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return False
    return Path(__file__).parent in Path(traceback.tb_frame.f_code.co_filename).parents


def _without_launcher_flags(tokens: list[str]) -> list[str]:
    """Drops ``--local_rank N``: the environment says it too, and deepspeed puts it in front."""
    kept: list[str] = []
    remaining = iter(tokens)
    for token in remaining:
        if token in _LAUNCHER_FLAGS:
            next(remaining, None)
        elif token.partition("=")[0] not in _LAUNCHER_FLAGS:
            kept.append(token)
    return kept


@dataclass
class _DistillArguments:
    """What the command line of ``distill`` says; `overrides` are in the order given."""

    config_path: str | None = None
    overrides: list[str] = field(default_factory=list)
    dry_run: bool = False
    wants_help: bool = False


def parse_distill(tokens: Sequence[str]) -> _DistillArguments:
    """Reads ``--config``, ``--dry_run``, flags and ``key.path=value``.

    Raises:
        ConfigError: an unknown flag, a flag without its value, or a stray word.
    """
    parsed = _DistillArguments()
    remaining = list(tokens)
    while remaining:
        token = remaining.pop(0)
        name, separator, value = token.removeprefix("--").partition("=")
        if token in ("-h", "--help"):
            parsed.wants_help = True
        elif token == "--dry_run":
            parsed.dry_run = True
        elif not token.startswith("-") and separator:
            parsed.overrides.append(token)
        elif not token.startswith("--"):
            raise ConfigError(f"{token}: not an option; give --flag value or key.path=value")
        elif name == "config":
            parsed.config_path = value if separator else _take(name, remaining)
        elif name not in known_flags():
            raise unknown_flag(name)
        else:
            text = value if separator else _flag_value(known_flags()[name], remaining)
            parsed.overrides.append(f"--{name}={text}")
    return parsed


def _take(name: str, remaining: list[str]) -> str:
    """The word after a flag; a negative number is one, another flag is not."""
    if not remaining or remaining[0].startswith("--"):
        raise ConfigError(f"--{name}: needs a value; give --{name} VALUE")
    return remaining.pop(0)


def _flag_value(flag: Flag, remaining: list[str]) -> str:
    if flag.is_switch:
        return remaining.pop(0) if remaining and remaining[0].lower() in _TRUTH else "true"
    values = [_take(flag.name, remaining)]
    if flag.kind == "PATH":
        # The shell may have spread a pattern into many words.
        while remaining and not remaining[0].startswith("-") and "=" not in remaining[0]:
            values.append(remaining.pop(0))
    return values[0] if len(values) == 1 else json.dumps(values, ensure_ascii=False)


def _run_recipe(command: str, tokens: list[str]) -> int:
    arguments = parse_distill(tokens)
    if arguments.wants_help:
        print(_recipe_help(command), end="")
        return 0
    launch = detect_launch(os.environ)
    sparsifies = command == "sparsify"
    given = [f"--model_type={SPARSIFICATION}"] if sparsifies else []
    stages = load_stages(arguments.config_path, [*given, *arguments.overrides])
    for config in stages:
        if (config.model_type == SPARSIFICATION) != sparsifies:
            other = "distill" if sparsifies else "sparsify"
            words = f"{config.model_type} is for minimoe-dist {other}; use that"
            raise ConfigError(f"model_type: {words}")
    device_type = prepare_environment(stages[0].parallel.use_cpu)
    from minimoe_dist.commands.preflight import problems_of_stages

    problems = problems_of_stages(stages, launch, device_type)
    if arguments.dry_run:
        if launch.rank == 0:
            for config, found in zip(stages, problems, strict=True):
                print(_resolved(config, launch.world_size, device_type, found), end="")
        return 0
    if any(problems):
        raise ConfigError("; ".join(line for found in problems for line in found))
    start_logging(launch)
    if sparsifies:
        from minimoe_dist.commands import sparsify

        return sparsify.run(stages[0], launch)
    from minimoe_dist.commands import distill

    return distill.run(stages, launch)


def _resolved(config: RunConfig, world_size: int, device_type: str, problems: list[str]) -> str:
    """The run as YAML, with what follows from it and from this start as comments."""
    facts = (
        f"# world size {world_size} on {device_type}, "
        f"global batch {config.global_batch_size(world_size)} "
        f"({config.training.per_device_train_batch_size} a rank × "
        f"{config.training.num_grad_accum_steps} micro-batches × {world_size} ranks)\n"
    )
    return facts + "".join(f"# would stop: {line}\n" for line in problems) + config.to_yaml()


def _recipe_help(command: str) -> str:
    """The page of ``COMMAND --help``: every flag under its section, from the schema."""
    lines = [_RECIPE_USAGE.format(command=command)]
    section: str | None = None
    for flag in known_flags().values():
        own = str(flag.path[0]) if len(flag.path) > 1 else "run"
        if own != section:
            section = own
            note = " (set for every student; students.NAME.KEY=value for one)" * (own == "students")
            lines.append(f"\n{own}{note}:\n")
        takes = "" if flag.is_switch else f" {flag.kind if len(flag.kind) < 40 else 'NAME'}"
        default = "" if flag.default in (None, "", False) else f" (default {flag.default})"
        alternatives = f"; {flag.kind.replace('|', ', ')}" if len(flag.kind) >= 40 else ""
        lines.append(_entry(f"--{flag.name}{takes}", flag.description + alternatives + default))
    return "".join(lines)


def _entry(left: str, right: str) -> str:
    indent = " " * 34
    text = textwrap.wrap(right, 66)
    first = f"  {left:<32}" if len(left) < 32 else f"  {left}\n{indent}"
    return first + f"\n{indent}".join(text) + "\n"


def _demo(tokens: list[str]) -> int:
    values: dict[str, str] = {}
    remaining = list(tokens)
    while remaining:
        token = remaining.pop(0)
        name, separator, value = token.removeprefix("--").partition("=")
        if token in ("-h", "--help"):
            flags = "".join(_entry(f"--{one} VALUE", text) for one, text in _DEMO_FLAGS.items())
            print(f"usage: minimoe-dist demo [--FLAG VALUE …]\n\n{flags}", end="")
            return 0
        if not token.startswith("--") or name not in _DEMO_FLAGS:
            found = nearest(name, _DEMO_FLAGS)
            there = ", ".join(f"--{one}" for one in _DEMO_FLAGS)
            hint = f"did you mean --{found}?" if found else f"there are {there}"
            raise ConfigError(f"{token} is not an option of demo; {hint}")
        values[name] = value if separator else _take(name, remaining)
    steps, processes = (_count(values, name) for name in ("steps", "num_processes"))
    launch = detect_launch(os.environ)
    if launch.world_size > 1:
        raise ConfigError("demo: starts its own processes; run it alone, with --num_processes N")
    prepare_environment(use_cpu=False)
    start_logging(launch)
    from minimoe_dist.commands import demo

    return demo.run(values.get("output_dir", "runs/demo"), steps, processes)


def _count(values: dict[str, str], name: str) -> int | None:
    text = values.get(name)
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--{name}: must be a whole number of at least 1, not {text!r}")
    return int(text)
