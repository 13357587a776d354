"""Finds what would make ``minimoe-dist distill`` or ``sparsify`` fail, and shows their runs."""

import os
from contextlib import suppress
from pathlib import Path

from ..config import ConfigError, RunConfig, fit_to_ranks
from ..config.changes import changed_options, refusal_of
from ..config.checks import check_command
from ..config.commands import DistillOptions, SparsifyOptions
from ..errors import UserError
from ..exit_status import ExitStatus
from ..rendezvous import check_rendezvous
from ..runs.checkpoints import FINISHED, PROGRESS, newest_state, saved_step
from ..runs.locks import check_free
from ..runs.reading import parse_object, read_bytes
from ..runtime import DeviceType, Launch, prepare_environment
from .recipes import check_stages, problems_of_stages


def check(options: DistillOptions, launch: Launch) -> None:
    """Refuses a run that would not start on these processes.

    Raises:
        ConfigError: one line of everything that would stop it, with the remedies.
        UserError: another run is at work in the folder.
        LaunchError: the rendezvous does not answer.
    """
    check_run(options, launch)
    for stage in options.stages:
        check_free(Path(stage.output_dir))
    check_rendezvous(launch, options.stages[0].parallel.timeout_seconds)


def check_run(options: DistillOptions, launch: Launch) -> None:
    """Refuses a run that could not be done, whoever else is at work in its folder.

    Raises:
        ConfigError: one line of everything that would stop it, with the remedies.
    """
    # Around a job's tasks, whose packages are a container's.
    runs_elsewhere = "MINIMOE_JOB_PYTHON" in os.environ and "SLURM_STEP_ID" not in os.environ
    check_stages(options.stages, launch, _device_type(options), runs_elsewhere)
    for stage in options.stages:
        # A finished stage of several is not resumed: of its options the run says more.
        is_done = saved_step(Path(stage.output_dir)) == FINISHED
        if len(options.stages) == 1 or not is_done:
            _check_unchanged(stage, launch.world_size)


def _check_unchanged(config: RunConfig, world_size: int) -> None:
    """Refuses options that differ from those of the newest checkpoint.

    Resuming compares them again, with the contents of corpora and models, at the newest whole one.
    """
    state = newest_state(Path(config.output_dir))
    if state is None or config.resume == "never" or config.allow_changed_options:
        return
    try:
        saved = parse_object(read_bytes(state.path / PROGRESS), str(state.path))["facts"]
        known = dict(saved)
    except (UserError, KeyError, TypeError, ValueError):
        return  # damaged: an earlier one counts
    current = config.model_dump(mode="json")
    current["global_batch_size"] = config.global_batch_size(world_size)
    changes = changed_options({name: known.get(name) for name in current}, current)
    if changes:
        raise ConfigError(refusal_of(changes, state.path, may_be_allowed=True))


def show(options: DistillOptions, launch: Launch) -> ExitStatus:
    """Prints the resolved run, once for all ranks, with what would stop it as comments.

    Returns:
        The status that the run would end with at its start.

    Raises:
        ConfigError: an option is wrong, or the run is another command's.
    """
    device_type = _device_type(options)
    problems = problems_of_stages(options.stages, launch, device_type)
    if launch.rank == 0:
        for stage, stage_problems in zip(options.stages, problems, strict=True):
            print(_resolved(stage, launch.world_size, device_type, stage_problems), end="")
    return ExitStatus.REFUSED if any(problems) else ExitStatus.DONE


def _device_type(options: DistillOptions) -> DeviceType:
    """Chooses what the run would train on, and refuses a run that is another command's."""
    for stage in options.stages:
        check_command(stage, "sparsify" if isinstance(options, SparsifyOptions) else "distill")
    return prepare_environment(options.stages[0].parallel.use_cpu)


def _resolved(config: RunConfig, world_size: int, device_type: str, problems: list[str]) -> str:
    """Formats the run as YAML, with what follows from it and from this start as comments."""
    fitted = config
    with suppress(ConfigError):  # it is among the problems
        fitted = fit_to_ranks(config, world_size)
    facts = (
        f"# world size {world_size} on {device_type}, "
        f"global batch {config.global_batch_size(world_size)} "
        f"({fitted.training.per_device_train_batch_size} a rank × "
        f"{fitted.training.num_grad_accum_steps} micro-batches × {world_size} ranks)\n"
        f"# teacher {_teacher_layout(config, world_size)}\n"
    )
    return facts + "".join(f"# would stop: {line}\n" for line in problems) + config.to_yaml()


def _teacher_layout(config: RunConfig, world_size: int) -> str:
    """Describes the teacher's layout: "tensor, each copy over 2 of 4 ranks"."""
    teacher = config.teacher
    by = ", run by megatron-core" if teacher.implementation == "megatron" else ""
    if teacher.layout == "replicated":
        return f"replicated, whole on each rank{by}"
    where = ", parts in host memory" if teacher.offload == "cpu" else ""
    ranks = f"{teacher.ranks(world_size)} of {world_size} ranks"
    return f"{teacher.layout}, each copy over {ranks}{where}{by}"
