"""``minimoe-dist distill``: trains the students of a recipe and exports them."""

import gc
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from ..config import RunConfig, fit_to_ranks
from ..config.commands import DistillOptions
from ..exit_status import ExitStatus
from ..preflight.recipes import check_stages
from ..recipes.distilling import Distillation
from ..recipes.finished import is_finished
from ..runtime import DeviceType, Launch, logger
from ..train.agreement import decided_by_rank_0
from ..train.loop import run_steps
from ..train.out_of_memory import naming_batch
from ..train.scope import Scope, lock_run_folder, run_resumable

_log = logger("distill")


def run(options: DistillOptions, launch: Launch) -> int:
    """Trains and exports the students of each stage; of several, finished ones are skipped.

    Returns:
        0 when done, 75 after a requested stop (saved; start again to go on), 1 when the loss
        stayed not finite. Ends the process with 1 where another rank is lost.

    Raises:
        UserError: what was given does not fit, or ``training.health`` asked for an end.
    """
    stages = options.stages

    def distill(scope: Scope) -> ExitStatus:
        for number, stage in enumerate(stages, 1):
            if len(stages) > 1:
                folder = Path(stage.output_dir)
                label = f"stage {folder.name} ({number} of {len(stages)}), {folder}"
                if decided_by_rank_0(partial(is_finished, stage)):
                    _log.info("%s: finished before", label)
                    continue
                _log.info("%s: begins", label)
                # The exports of earlier stages can only be checked once they are written.
                device_type: DeviceType = "cuda" if scope.device.type == "cuda" else "cpu"
                decided_by_rank_0(partial(check_stages, [stage], launch, device_type))
            fitted = fit_to_ranks(stage, launch.world_size)
            with lock_run_folder(Path(stage.output_dir)), _naming_batch(fitted):
                is_done = _train(stage, launch, scope, len(stages) > 1)
            gc.collect()  # what was closed is held in cycles
            if not is_done:
                return ExitStatus.STOPPED
        return ExitStatus.DONE

    parallel = stages[0].parallel
    return run_resumable(
        launch, use_cpu=parallel.use_cpu, timeout_seconds=parallel.timeout_seconds, work=distill
    )


def _naming_batch(stage: RunConfig) -> AbstractContextManager[None]:
    training = stage.training
    return naming_batch(
        f"micro-batches of {training.per_device_train_batch_size} × {stage.data.max_length} tokens",
        "lower training.per_device_train_batch_size and raise training.num_grad_accum_steps as "
        "much, or lower data.max_length; minimoe-dist plan tells what fits",
    )


def _train(stage: RunConfig, launch: Launch, scope: Scope, is_one_of_several: bool) -> bool:
    """Trains one stage, and leaves no memory of it; False after a requested stop."""
    label = Path(stage.output_dir).name if is_one_of_several else ""
    distillation = Distillation(stage, launch, scope.device, scope.stop, label)
    checkpoints = distillation.open_checkpoints(scope.saving)
    is_done = distillation.fill_cache() and run_steps(
        distillation, distillation.options, checkpoints, scope.stop
    )
    if is_done:
        distillation.finish()
    distillation.close()
    return is_done
