"""``minimoe-dist plan``: predicts what a run needs on a machine, before anything is started."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bench.machines import described_machines, machine_of
from ..config import ConfigError, RunConfig
from ..config.commands import PlanOptions
from ..durable import write_json
from ..model_description import ModelDescription
from ..planning.corpora import corpus_of
from ..planning.plan import Plan, Planner, nothing_fits
from ..planning.sizes import student_json
from ..planning.view import as_json, draw, show
from ..preflight.recipes import model_problems
from ..runtime import Launch


def run(options: PlanOptions, launch: Launch) -> int:
    """Predicts every stage of a recipe, shows it, and writes it where ``--output`` is given.

    Returns:
        0.

    Raises:
        ConfigError: the recipe or the machine is wrong, or no layout fits.
    """
    if options.output is not None and Path(options.output).suffix not in (".json", ".png"):
        raise ConfigError(f"--output: {options.output}: give a name that ends with .json or .png")
    machine = machine_of(options)
    # Imports torch and transformers, which take seconds, only once nothing above is wrong.
    from ..recipes.meta_passes import MetaPasses

    future_exports: dict[str, dict[str, Any]] = {}
    plans: list[tuple[RunConfig, Plan]] = []
    described: dict[str, ModelDescription | None] = {}
    for config in options.stages:
        problems = list(model_problems(config, machine.ranks, described, starts_here=False))
        if problems:
            raise ConfigError("; ".join(problems))
        corpus = corpus_of(config, options.tokens)
        planner = Planner(config, corpus, future_exports, MetaPasses(config, future_exports))
        plan = planner.plan(machine)
        if not plan.best:
            raise nothing_fits(planner, described_machines(), machine)
        plans.append((config, plan))
        show(config, plan, corpus)
        for student in config.students:
            future_exports[config.export_folder(student.name)] = student_json(
                config, student, future_exports
            )
    if options.output is not None:
        _write(Path(options.output), plans)
    return 0


def _write(path: Path, plans: Sequence[tuple[RunConfig, Plan]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        content = [as_json(config, plan) for config, plan in plans]
        write_json(path, content)
    else:
        draw(plans, path)
    print(f"written to {path}")
