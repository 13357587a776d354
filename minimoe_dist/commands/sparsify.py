"""``minimoe-dist sparsify``: measures a BERT's elements, orders them, and cuts sub-models."""

from pathlib import Path

from ..config import fit_to_ranks
from ..config.commands import SparsifyOptions
from ..exit_status import ExitStatus
from ..recipes.sparsifying import Sparsification
from ..runtime import Launch
from ..train.loop import run_steps
from ..train.scope import Scope, lock_run_folder, run_resumable


def run(options: SparsifyOptions, launch: Launch) -> int:
    """Sparsifies the teacher of the recipe's first stage.

    Returns:
        0 when done, 75 after a requested stop (saved; start again to go on), 1 when gradients
        stayed not finite.
    """
    config = fit_to_ranks(options.stages[0], launch.world_size)

    def sparsify(scope: Scope) -> ExitStatus:
        with lock_run_folder(Path(config.output_dir)):
            work = Sparsification(config, launch, scope.device)
            checkpoints = work.open_checkpoints(scope.saving)
            if not run_steps(work, work.options, checkpoints, scope.stop):
                return ExitStatus.STOPPED
            work.finish()
            return ExitStatus.DONE

    parallel = config.parallel
    return run_resumable(
        launch, use_cpu=parallel.use_cpu, timeout_seconds=parallel.timeout_seconds, work=sparsify
    )
