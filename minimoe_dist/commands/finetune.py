"""``minimoe-dist finetune``: trains a model on tasks, over a grid of hyperparameters.

Each cell of the grid leaves ``cells/NAME/result.json`` when it is done; the best one's model is
``export``. Started again, the run goes on at the first cell that is not done, and in it where it
was saved.
"""

from ..config.commands import FinetuneOptions
from ..data.tasks.sources import folder_of, sources
from ..exit_status import ExitStatus
from ..recipes.finetuning import TaskRun
from ..runtime import Launch
from ..train.scope import Scope, lock_run_folder, run_resumable


def run(options: FinetuneOptions, launch: Launch) -> int:
    """Fine-tunes on every task that the options name.

    Returns:
        0 when done, 75 after a requested stop (saved; start again to go on), 1 when no cell of a
        task had a finite loss.
    """

    def finetune(scope: Scope) -> ExitStatus:
        statuses = []
        for source in sources(options):
            with lock_run_folder(folder_of(options, source)):
                status = TaskRun(options, source, launch, scope).run()
            if status == ExitStatus.STOPPED:
                return status
            statuses.append(status)
        return max(statuses)

    return run_resumable(
        launch, use_cpu=options.use_cpu, timeout_seconds=options.timeout_seconds, work=finetune
    )
