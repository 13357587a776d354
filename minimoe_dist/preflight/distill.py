"""What would make ``minimoe-dist distill`` or ``sparsify`` fail, and what it would do."""

from ..config import ConfigError, RunConfig
from ..config.checks import check_command
from ..config.commands import DistillOptions, SparsifyOptions
from ..runtime import DeviceType, Launch, prepare_environment
from .recipes import problems_of_stages


def check(options: DistillOptions, launch: Launch) -> None:
    """Refuses a run that would not start on these processes.

    Raises:
        ConfigError: one line of everything that would stop it, with the remedies.
    """
    _, problems = _look_at(options, launch)
    if any(problems):
        raise ConfigError("; ".join(line for of_stage in problems for line in of_stage))


def show(options: DistillOptions, launch: Launch) -> None:
    """Prints the resolved run, once for all ranks, with what would stop it as comments.

    Raises:
        ConfigError: an option is wrong, or the run is another command's.
    """
    device_type, problems = _look_at(options, launch)
    if launch.rank == 0:
        for stage, of_stage in zip(options.stages, problems, strict=True):
            print(_resolved(stage, launch.world_size, device_type, of_stage), end="")


def _look_at(options: DistillOptions, launch: Launch) -> tuple[DeviceType, list[list[str]]]:
    """What the run would train on, and each stage's problems."""
    for stage in options.stages:
        check_command(stage, "sparsify" if isinstance(options, SparsifyOptions) else "distill")
    device_type = prepare_environment(options.stages[0].parallel.use_cpu)
    return device_type, problems_of_stages(options.stages, launch, device_type)


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
