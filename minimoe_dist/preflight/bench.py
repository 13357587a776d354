"""Finds what would make ``minimoe-dist bench`` fail, before anything heavy is imported."""

from ..config import ConfigError, RunConfig, StudentConfig, fit_to_ranks
from ..config.checks import check_command
from ..config.commands import BenchOptions
from ..config.model_types import Students
from ..config.paths import check_output_dir
from ..errors import UserError
from ..model_description import describe_model
from ..planning.layout import layout_of_recipe
from ..planning.plan import Planner
from ..rendezvous import check_rendezvous
from ..runtime import Launch, prepare_environment
from .teachers import describe_teacher, teacher_problems


def check(options: BenchOptions, launch: Launch) -> None:
    """Refuses recipes whose models' sizes are not known here, or whose teacher or ranks do not fit.

    Raises:
        ConfigError: one line that names what is wrong and the remedy.
        LaunchError: the rendezvous does not answer.
    """
    config = recipe_of(options, launch.world_size)
    check_output_dir(options.output)
    try:
        Planner(config, None)
        layout_of_recipe(config, launch.world_size)
        teacher = describe_teacher(config, starts_here=False)
    except UserError as error:
        raise ConfigError(str(error)) from None
    if teacher is not None:
        for problem in teacher_problems(config, teacher, launch.world_size):
            raise ConfigError(problem)  # the first of them
    prepare_environment(config.parallel.use_cpu)
    check_rendezvous(launch, config.parallel.timeout_seconds)


def recipe_of(options: BenchOptions, world_size: int) -> RunConfig:
    """Returns the run whose step is measured: of a recipe with stages, the first.

    Students whose first weights are missing start at random: that changes no step's time.

    Raises:
        ConfigError: a wrong option, or a sparse student whose first weights are missing.
    """
    config = fit_to_ranks(options.stages[0], world_size)
    check_command(config, "distill")
    students = [_with_start(config, student) for student in config.students]
    return config.model_copy(update={"students": students})


def _with_start(config: RunConfig, student: StudentConfig) -> StudentConfig:
    changes: dict[str, str | None] = {}
    for option in ("initial_weights", "model_name_or_path"):
        path = getattr(student, option)
        if path is None or has_weights(path):
            continue
        if config.kind.students is Students.SUB_MODEL:
            raise ConfigError(
                f"students.{student.name}.{option}: {path} is not there, and what a sparse student "
                "keeps is only known from it; run minimoe-dist sparsify first"
            )
        changes[option] = None
    if "initial_weights" in changes and student.has_copies:
        changes["start"] = "split"
    return student.model_copy(update=changes)


def has_weights(path: str) -> bool:
    """Tells whether a model's weights are on this machine."""
    try:
        model = describe_model(path, teaches=True)
    except UserError:
        return False
    return model is not None and model.has_weights
