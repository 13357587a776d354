"""``minimoe-dist bench``: measures this machine, and a recipe's step on it."""

import shutil
from pathlib import Path

from rich.console import Console

from ..bench.measurement import RANDOM_MODEL, Measurement
from ..bench.view import draw, show
from ..config.commands import BenchOptions
from ..durable import write_json, write_text
from ..exit_status import ExitStatus
from ..planning.machine import machine_yaml
from ..preflight.bench import recipe_of
from ..runtime import Launch
from ..train.scope import open_scope


def run(options: BenchOptions, launch: Launch) -> int:
    """Measures on all ranks; rank 0 shows the findings and writes them.

    Returns:
        0.

    Raises:
        UserError: a model of the recipe is on this machine and cannot be loaded.
    """
    config, folder = recipe_of(options, launch.world_size), Path(options.output)
    parallel = config.parallel
    with open_scope(
        launch, use_cpu=parallel.use_cpu, timeout_seconds=parallel.timeout_seconds
    ) as scope:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            findings = Measurement(options, config, launch, scope).findings()
        finally:
            if launch.rank == 0:
                shutil.rmtree(folder / RANDOM_MODEL, ignore_errors=True)
    if launch.rank == 0:
        show(findings, Console())
        write_text(folder / "machine.yaml", machine_yaml(findings.machine))
        write_json(folder / "bench.json", findings.as_json())
        draw(findings, folder / "bench.png")
        print(f"{folder}/machine.yaml is for plan --machine; bench.json and bench.png beside it")
    return ExitStatus.DONE
