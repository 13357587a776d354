"""Parses the command line of ``minimoe-dist`` and runs the subcommand that it names.

Options and paths are refused in one line, with exit status 2, before anything heavy is imported.
The same command runs alone, under torchrun, under deepspeed and under srun.
"""

import errno
import gc
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from . import __version__, roll_call
from .config import ConfigError, commands
from .config.command_line import help_page, read_options
from .config.problems import nearest
from .errors import UserError
from .exit_status import ExitStatus
from .last_words import LastWords, tell_torchrun
from .process_group import LaunchError
from .runs import launches
from .runtime import (
    Launch,
    detect_launch,
    logger,
    prepare_environment,
    start_logging,
)

_LAUNCHER_FLAGS = ("--local_rank", "--local-rank")


@dataclass(frozen=True)
class Command:
    """A subcommand, and the names of the modules that are imported once its options are read.

    Attributes:
        summary: one line for the help pages.
        options: class of its options; None of one whose ``run(words)`` reads its own.
        module: module of ``commands`` whose ``run(options, launch)`` returns the exit status.
        check: module of ``preflight`` whose ``check(options, launch)`` raises `ConfigError` for
            what can be refused before anything heavy is imported; where there is a ``--dry_run``,
            ``show(options, launch)`` prints what would be done instead.
        on_ranks: whether it may be started on several processes.
        is_run: whether its starts are noted in the folder of its run.
        uses_torch: whether the environment is prepared for torch here; a command that starts jobs
            elsewhere leaves it alone, and a recipe's check prepares it as the recipe says.
    """

    summary: str
    options: type[commands.CommandOptions] | None
    module: str
    check: str | None = None
    on_ranks: bool = False
    uses_torch: bool = True
    is_run: bool = False


COMMANDS = {
    "preprocess": Command(
        "raw text to indexed corpora: format, build, merge, inspect", None, "preprocess"
    ),
    "distill": Command(
        "train students of a teacher, from a recipe",
        commands.DistillOptions,
        "distill",
        is_run=True,
        check="distill",
        on_ranks=True,
        uses_torch=False,
    ),
    "sparsify": Command(
        "find what a BERT can lose, and the sub-models that sparse students start from",
        commands.SparsifyOptions,
        "sparsify",
        is_run=True,
        check="distill",
        on_ranks=True,
        uses_torch=False,
    ),
    "finetune": Command(
        "train a teacher or a student on tasks, over a grid of seeds and learning rates",
        commands.FinetuneOptions,
        "finetune",
        is_run=True,
        check="finetune",
        on_ranks=True,
    ),
    "predict": Command(
        "what a fine-tuned model says of texts: classes, numbers, tags, submissions",
        commands.PredictOptions,
        "predict",
        check="predict",
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
    "submit finetune": Command(
        "a fine-tuning as a Slurm job",
        commands.SubmitFinetuneOptions,
        "submit",
        uses_torch=False,
    ),
    "submit predict": Command(
        "a prediction as a Slurm job",
        commands.SubmitPredictOptions,
        "submit",
        uses_torch=False,
    ),
    "status": Command("how far a run is", commands.StatusOptions, "status", uses_torch=False),
    "demo": Command(
        "the whole way on text that this machine has, in minutes", commands.DemoOptions, "demo"
    ),
}

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Args:
        arguments: without the program's name; None takes those of the process.
    """
    tokens = _without_launcher_flags(list(sys.argv[1:] if arguments is None else arguments))
    words = LastWords.of_environment(os.environ)
    try:
        return _run(tokens, words)
    finally:
        roll_call.end(have_met=False)
        words.close()


def _run(tokens: list[str], words: LastWords) -> int:
    """Runs one command; an exception becomes its words and exit status."""
    try:
        status = _dispatch(tokens)
        launches.leave("finished" if status == ExitStatus.DONE else f"status {status}", status)
        if status == ExitStatus.STOPPED:
            tell_torchrun("stopped and saved: the same command, started again, goes on from there")
        return status
    except BaseException as error:
        status = _status_of(error, words)
        launches.leave(f"failed: {error}" if str(error) else type(error).__name__, status)
        return status


def _status_of(error: BaseException, words: LastWords) -> int:
    """Says why a command ended, and returns its exit status."""
    try:
        raise error
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except LaunchError:
        words.say(error)
        return ExitStatus.FAILED
    except UserError:
        words.say(error)
        return ExitStatus.REFUSED
    except BrokenPipeError:
        # The interpreter would try to flush stdout when it ends, and report the failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.PIPE_CLOSED
    except OSError as problem:
        if problem.errno in _NO_ROOM:
            words.say(error, remedy="make room, and start again to go on")
            return ExitStatus.IO_ERROR
        with suppress(OSError):  # nobody may be there to read it
            traceback.print_exc()
        words.say(error, remedy="start again to go on")
        return ExitStatus.IO_ERROR
    except Exception:
        with suppress(OSError):  # nobody may be there to read it
            traceback.print_exc()
        tell_torchrun(f"{type(error).__name__}: {error}")
        with suppress(OSError):
            print("minimoe-dist: this is a fault of the program, not yours", file=sys.stderr)
        return ExitStatus.BROKEN


def _dispatch(tokens: list[str]) -> int:
    if not tokens or tokens[0] in ("-h", "--help", "help"):
        print(_usage(), end="")
        return 0 if tokens else ExitStatus.REFUSED
    words = 2 if " ".join(tokens[:2]) in COMMANDS else 1
    name, rest = " ".join(tokens[:words]), tokens[words:]
    if name == "--version":
        print(f"minimoe-dist {__version__}")
        return 0
    if name in COMMANDS:
        return _run_command(name, COMMANDS[name], rest)
    suggestion = nearest(name, COMMANDS)
    hint = f"did you mean {suggestion}?" if suggestion else f"there are {', '.join(COMMANDS)}"
    raise ConfigError(f"{name} is not a command; {hint}")


def _usage() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = "".join(f"  {name:<{width}}{command.summary}\n" for name, command in COMMANDS.items())
    return (
        f"usage: minimoe-dist COMMAND [options]\n\ncommands:\n{lines}\n"
        "minimoe-dist COMMAND --help tells a command's options; --version tells the version.\n"
    )


def _run_command(name: str, command: Command, tokens: list[str]) -> int:
    if command.options is None:
        status_of_tool: int = import_module(f"minimoe_dist.commands.{command.module}").run(tokens)
        return status_of_tool
    if {"-h", "--help"} & set(tokens):
        print(help_page(name, command.summary, command.options), end="")
        return 0
    with _os_error_as_user_error():
        launch = detect_launch(os.environ)
        if command.is_run:
            roll_call.begin(launch)  # at once: nobody knows of a rank that dies before
        options = read_options(name, command.options, tokens)
        if launch.world_size > 1 and not command.on_ranks:
            raise ConfigError(
                f"{name}: runs on one process, not on {launch.world_size}; start it alone"
            )
        if command.uses_torch:
            prepare_environment(getattr(options, "use_cpu", False))
        if command.check is not None:
            preflight = import_module(f"minimoe_dist.preflight.{command.check}")
            if getattr(options, "dry_run", False):
                status: int = preflight.show(options, launch)
                return status
            preflight.check(options, launch)
    start_logging(launch)
    if command.is_run and launch.rank == 0:
        _note_start(options, [name, *tokens], launch)
    status = _import_heavy(f"minimoe_dist.commands.{command.module}").run(options, launch)
    return status


def _import_heavy(name: str) -> ModuleType:
    """Imports a module with all of torch behind it, a fifth faster than by `import_module`.

    What a module defines lives as long as the process, so that looking through it for garbage,
    again and again while it grows, is for nothing; nor is it looked through later.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _note_start(options: commands.CommandOptions, words: list[str], launch: Launch) -> None:
    """Writes this start into the run's folder, before anything can go wrong with it."""
    from .slurm import facts
    from .slurm.job import folder_of_run

    folder = folder_of_run(options)
    environment = facts.environment()
    try:
        launches.begin(
            folder,
            command=words,
            host=environment["host"],
            launcher=launch.launcher,
            world_size=launch.world_size,
            job=os.environ.get("SLURM_JOB_ID"),
            code=facts.code_version(),
            packages=environment["packages"],
            python=environment["python"],
        )
    except OSError as error:
        logger("cli").warning("this start is not noted in %s (%s); the run goes on", folder, error)


@contextmanager
def _os_error_as_user_error() -> Iterator[None]:
    """Turns an `OSError` into a `UserError`: before a start, it is about a path of the user's."""
    try:
        yield
    except OSError as error:
        raise UserError(str(error)) from error


def _without_launcher_flags(tokens: list[str]) -> list[str]:
    """Drops ``--local_rank N``: the environment says it too, and deepspeed puts it in front."""
    result: list[str] = []
    remaining = iter(tokens)
    for token in remaining:
        if token in _LAUNCHER_FLAGS:
            next(remaining, None)
        elif token.partition("=")[0] not in _LAUNCHER_FLAGS:
            result.append(token)
    return result
