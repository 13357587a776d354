"""The command ``minimoe-dist`` and its subcommands: parsing only.

Options and paths are refused in one line, with exit status 2, before anything heavy is imported.
The same command runs alone, under torchrun, under deepspeed and under srun.
"""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module

from . import __version__
from .config import ConfigError, RunConfig, commands, load_stages
from .config.checks import check_command
from .config.command_line import command_help, entry, flag_value, parse_command, take
from .config.flags import known_flags, unknown_flag
from .config.model_types import SPARSIFICATION
from .config.problems import nearest
from .errors import UserError
from .exit_status import ExitStatus
from .runtime import LaunchError, detect_launch, prepare_environment, start_logging

_LAUNCHER_FLAGS = ("--local_rank", "--local-rank")
_RECIPES = {
    "distill": "train students of a teacher, from a recipe",
    "sparsify": "find what a BERT can lose, and the sub-models that sparse students start from",
}
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


@dataclass(frozen=True)
class Command:
    """A command with flat options.

    Attributes:
        summary: one line for the help pages.
        options: class of its options.
        module: of ``commands``, whose ``run(options, launch)`` returns the exit status; imported
            when the options have been read.
        check: module of ``preflight`` whose ``check(options, launch)`` raises `ConfigError` for
            what can be refused before anything heavy is imported.
        on_ranks: whether it may be started on several processes.
        uses_torch: whether torch is told its device; what starts jobs elsewhere leaves the
            environment alone, and a recipe's check tells it what the recipe says.
    """

    summary: str
    options: type[commands.CommandOptions]
    module: str
    check: str | None = None
    on_ranks: bool = False
    uses_torch: bool = True


COMMANDS = {
    "finetune": Command(
        "train a teacher or a student on tasks, over a grid of seeds and learning rates",
        commands.FinetuneOptions,
        "finetune",
        check="finetune",
        on_ranks=True,
    ),
    "evaluate": Command(
        "a model's relation loss, size, speed and load of experts, as JSON",
        commands.EvaluateOptions,
        "evaluate",
        check="evaluate",
    ),
    "report": Command(
        "one page about one run or several: scores, costs, curves, experts",
        commands.ReportOptions,
        "report",
        uses_torch=False,
    ),
    "export": Command(
        "a model as a folder for others: model card, ONNX, sentence-transformers",
        commands.ExportOptions,
        "export",
        check="export",
    ),
    "convert": Command(
        "a BERT of Megatron-LM's to a Hugging Face folder, or the other way round",
        commands.ConvertOptions,
        "convert",
        check="convert",
    ),
    "plan": Command(
        "memory, time, traffic and cost of a recipe on a machine, before it runs",
        commands.PlanOptions,
        "plan",
        uses_torch=False,
    ),
    "bench": Command(
        "how fast this machine is, and a recipe's step on it by part; alone or on all ranks",
        commands.BenchOptions,
        "bench",
        check="bench",
        on_ranks=True,
        uses_torch=False,
    ),
    "doctor": Command(
        "what is wrong with these nodes, and how to mend it; alone or on all ranks of a job",
        commands.DoctorOptions,
        "doctor",
        on_ranks=True,
    ),
    "submit": Command(
        "a run as a Slurm job, or a chain of jobs",
        commands.SubmitOptions,
        "submit",
        uses_torch=False,
    ),
    "status": Command("how far a run is", commands.StatusOptions, "status", uses_torch=False),
    "demo": Command(
        "the whole way on text that this machine has, in minutes", commands.DemoOptions, "demo"
    ),
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
        return ExitStatus.INTERRUPTED
    except LaunchError as error:
        return _refuse(str(error), ExitStatus.FAILED)
    except UserError as error:
        return _refuse(str(error), ExitStatus.REFUSED)
    except BrokenPipeError:
        # The interpreter would try to write what is left, and tell of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.PIPE_CLOSED
    except OSError as error:
        traceback.print_exc()
        return _refuse(f"{error}: start again to go on", ExitStatus.IO_ERROR)
    except Exception:
        traceback.print_exc()
        print("minimoe-dist: this is a fault of the program, not yours", file=sys.stderr)
        return ExitStatus.BROKEN


def _dispatch(tokens: list[str]) -> int:
    if not tokens or tokens[0] in ("-h", "--help", "help"):
        print(_usage(), end="")
        return 0 if tokens else ExitStatus.REFUSED
    name, rest = tokens[0], tokens[1:]
    if name == "--version":
        print(f"minimoe-dist {__version__}")
        return 0
    if name in _RECIPES:
        return _run_recipe(name, rest)
    if name in COMMANDS:
        return _run_command(name, COMMANDS[name], rest)
    found = nearest(name, [*_RECIPES, *COMMANDS])
    hint = f"did you mean {found}?" if found else f"there are {', '.join([*_RECIPES, *COMMANDS])}"
    raise ConfigError(f"{name} is not a command; {hint}")


def _usage() -> str:
    summaries = _RECIPES | {name: command.summary for name, command in COMMANDS.items()}
    width = max(map(len, summaries)) + 2
    lines = "".join(f"  {name:<{width}}{summary}\n" for name, summary in summaries.items())
    return (
        f"usage: minimoe-dist COMMAND [options]\n\ncommands:\n{lines}\n"
        "minimoe-dist COMMAND --help tells a command's options; --version tells the version.\n"
    )


def _run_command(name: str, command: Command, tokens: list[str]) -> int:
    if {"-h", "--help"} & set(tokens):
        print(command_help(name, command.summary, command.options), end="")
        return 0
    with _paths_are_the_users():
        options = parse_command(name, command.options, tokens)
        launch = detect_launch(os.environ)
        if launch.world_size > 1 and not command.on_ranks:
            raise ConfigError(
                f"{name}: runs on one process, not on {launch.world_size}; start it alone"
            )
        if command.uses_torch:
            prepare_environment(getattr(options, "use_cpu", False))
        if command.check is not None:
            import_module(f"minimoe_dist.preflight.{command.check}").check(options, launch)
    start_logging(launch)
    status: int = import_module(f"minimoe_dist.commands.{command.module}").run(options, launch)
    return status


@contextmanager
def _paths_are_the_users() -> Iterator[None]:
    """Before a start, what a system call says is about a path that the user named."""
    try:
        yield
    except OSError as error:
        raise UserError(str(error)) from error


def _refuse(message: str, status: int) -> int:
    """Says it once a node: every rank of a node finds the same."""
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
        print(f"minimoe-dist: {' '.join(message.split())}", file=sys.stderr)
    return status


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
            parsed.config_path = value if separator else take(name, remaining)
        elif name not in known_flags():
            raise unknown_flag(name)
        else:
            text = value if separator else flag_value(known_flags()[name], remaining)
            parsed.overrides.append(f"--{name}={text}")
    return parsed


def _run_recipe(command: str, tokens: list[str]) -> int:
    arguments = parse_distill(tokens)
    if arguments.wants_help:
        print(_recipe_help(command), end="")
        return 0
    launch = detect_launch(os.environ)
    sparsifies = command == "sparsify"
    given = [f"--model_type={SPARSIFICATION}"] if sparsifies else []
    with _paths_are_the_users():
        stages = load_stages(arguments.config_path, [*given, *arguments.overrides])
        for config in stages:
            check_command(config, command)
        device_type = prepare_environment(stages[0].parallel.use_cpu)
        from .preflight.recipes import problems_of_stages

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
        from .commands import sparsify

        return sparsify.run(stages[0], launch)
    from .commands import distill

    return distill.run(stages, launch)


def _resolved(config: RunConfig, world_size: int, device_type: str, problems: list[str]) -> str:
    """The run as YAML, with what follows from it and from this start as comments."""
    facts = (
        f"# world size {world_size} on {device_type}, "
        f"global batch {config.global_batch_size(world_size)} "
        f"({config.training.per_device_train_batch_size} a rank × "
        f"{config.training.num_grad_accum_steps} micro-batches × {world_size} ranks)\n"
        f"# teacher {_teacher_layout(config, world_size)}\n"
    )
    return facts + "".join(f"# would stop: {line}\n" for line in problems) + config.to_yaml()


def _teacher_layout(config: RunConfig, world_size: int) -> str:
    """For people: "tensor, each copy over 2 of 4 ranks"."""
    teacher = config.teacher
    if teacher.layout == "replicated":
        return "replicated, whole on each rank"
    where = ", parts in host memory" if teacher.offload == "cpu" else ""
    return (
        f"{teacher.layout}, each copy over {teacher.ranks(world_size)} of {world_size} ranks{where}"
    )


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
        lines.append(entry(f"--{flag.name}{takes}", flag.description + alternatives + default))
    return "".join(lines)
