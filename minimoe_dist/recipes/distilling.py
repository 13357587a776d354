"""A run of ``minimoe-dist distill``: corpora, teacher and students, trained to their exports."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..checkpoints.writing import Ranks
from ..config import RunConfig, fit_to_ranks
from ..data.loader import PairLoader, StepBatch
from ..models.compute import RelationPath, distillation_flops_per_token, encoder_gmac
from ..runs.folder import RunFolder
from ..runs.health import HealthRecord
from ..runs.metrics import SavedMetrics
from ..runs.options import SavedRecipe
from ..runs.summaries import SavingSummary, StudentSummary, Summary
from ..runtime import Launch, StopRequest, logger
from ..train.curves import draw_curves
from ..train.engine import StudentEngine, release
from ..train.health import HealthWatch, routers_of, teacher_records, tell
from ..train.loop import LoopOptions
from ..train.metrics import Metrics
from ..train.resuming import Checkpoints
from ..train.step_metrics import PendingMetrics
from .building import loop_options, make_distiller, run_checkpoints, with_precision
from .corpora import open_data
from .first_weights import with_first_weights
from .model_types import open_lesson
from .relation_cache import RelationCache
from .results import Heldout, export_all, keep_best, relation_paths

_log = logger("distill")


class Distillation:
    """The students of a run and all that they need; :func:`..train.loop.run_steps` trains them.

    Args:
        config: the run.
        launch: the processes.
        device: of this rank.
        stop: asked for by a signal.
        label: of its lines of progress, where it is one stage of several.

    Raises:
        UserError: corpora, teacher and students do not fit each other.
        StopRequestedError: a rank was asked to stop while students' first weights were made.
    """

    def __init__(
        self,
        config: RunConfig,
        launch: Launch,
        device: torch.device,
        stop: StopRequest,
        label: str = "",
    ) -> None:
        self._label = label
        # What others read keeps the bounds of micro-batches, not what these ranks make of them.
        self._stated = with_precision(config, device)
        self._config = config = fit_to_ranks(self._stated, launch.world_size)
        self._launch = launch
        self._device = device
        self._stop = stop
        self._folder = RunFolder(Path(config.output_dir))
        self._data = open_data(config)
        # Before the run's own teacher is there: two need not fit.
        started = with_first_weights(config, self._data, device, stop)
        self._lesson = open_lesson(config, device)
        self._total_steps = self._count_steps()
        self._distiller = make_distiller(started, self._lesson, launch, device, self._total_steps)
        self._cache: RelationCache | None = None
        if config.teacher.cache != "none":
            self._cache = RelationCache(config, self._data, self._lesson, launch, device)
        self._consumed_samples = 0
        self._heldout_before: dict[str, float] | None = None
        self._heldout_after: dict[str, float] = {}
        self._checkpoints: Checkpoints
        self._health = HealthWatch(
            config.training.health,
            {student.name: routers_of(student.config) for student in self.engines},
        )
        self._knows_teacher = config.training.health.broken_teacher == "off"
        self._looks_at_teacher = True
        self._was_bad = False
        self._metrics: Metrics
        self._loader: PairLoader

    @property
    def options(self) -> LoopOptions:
        """The number of steps, and when they are evaluated and saved."""
        return loop_options(self._config, self._total_steps, self._device)

    def open_checkpoints(self, ranks: Ranks) -> Checkpoints:
        """Opens the checkpoints in the run's folder, once.

        Args:
            ranks: the processes, as they save.
        """
        self._checkpoints = run_checkpoints(
            self._stated, ranks, self._total_steps, self._data.contents()
        )
        return self._checkpoints

    def fill_cache(self) -> bool:
        """Computes what the teacher's cache lacks, where there is to be one; a collective.

        Returns:
            False where it was asked to stop meanwhile.
        """
        if self._cache is None:
            return True
        batch = self._config.global_batch_size(self._launch.world_size)
        return self._cache.fill(self._distiller.place, self._stop, self._total_steps * batch)

    @property
    def engines(self) -> Sequence[StudentEngine]:
        """The engines of all students."""
        return self._distiller.students

    def progress(self) -> dict[str, Any]:
        """Returns consumed samples, held-out losses before the first step, what is watched."""
        return {
            "consumed_samples": self._loader.consumed_samples,
            "heldout_before": self._heldout_before,
            "health": self._health.state(),
        }

    def tensors(self) -> Mapping[str, Tensor]:
        """Returns no tensors: random numbers are functions of step and sample."""
        return {}

    def resume(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`progress` returned."""
        self._consumed_samples = progress["consumed_samples"]
        self._heldout_before = progress["heldout_before"]
        self._health.restore(progress.get("health", {}))  # older checkpoints have none

    @contextmanager
    def under_way(self, first_step: int) -> Iterator[None]:
        """Holds metrics and loader; evaluates students that nobody has trained yet."""
        config = self._config
        metrics = Metrics(
            self._folder.path,
            total_steps=self._total_steps,
            first_step=first_step,
            log_interval=config.training.log_interval,
            flops_per_token=self._flops_per_token(),
            is_writer=self._launch.rank == 0,
            label=self._label,
            report_to=config.training.report_to,
            run_options=config.model_dump(mode="json"),
        )
        loader = self._data.loader(
            config,
            self._launch,
            self._consumed_samples,
            self._distiller.place,
            self._cache.recall if self._cache is not None else None,
        )
        self._metrics, self._loader = metrics, loader
        with metrics, loader:
            if self._distiller.warms_up:
                metrics.phase("compiling passes, which takes a minute or two")
            if self._heldout_before is None:
                self._heldout_before = self._heldout_losses(0)
            yield

    def step(self, step: int, stop_requested: bool) -> PendingMetrics:
        """Trains every student on the loader's next batch."""
        batch = next(self._loader)
        if self._looks_at_teacher:
            self._look_at_teacher(step + 1, batch)
        return self._distiller.train_step(batch, step, stop_requested)

    def record(self, steps_done: int, outcome: PendingMetrics) -> None:
        """Shows and writes a step's numbers, and what is wrong with them."""
        metrics = outcome.metrics
        self._metrics.step(steps_done, metrics)
        self._tell(self._health.step(steps_done, metrics))
        if metrics.problem is not None and not self._was_bad:
            self._look_at_teacher(steps_done)
        self._was_bad = metrics.problem is not None

    def evaluate(self, steps_done: int) -> bool:
        """Writes each student's held-out loss; the number of steps does not depend on it."""
        self._heldout_after = self._heldout_losses(steps_done)
        return False

    def cause_of_divergence(self) -> str | None:
        """Names the teacher if its signals are not finite."""
        if self._distiller.teacher_is_finite():
            return None
        path = self._config.teacher.model_name_or_path
        return f"the teacher {path} gives numbers that are not finite"

    def paused(self) -> AbstractContextManager[None]:
        """Leaves the time inside out of sequences a second."""
        return self._metrics.paused()

    def finish(self) -> None:
        """Exports every student and writes the summary, on rank 0; gathering is a collective."""
        students: dict[str, StudentSummary] = {}
        heldout = Heldout(self._heldout_before or {}, self._heldout_after)
        for student in self.engines:
            name, weights = student.name, student.whole_weights()
            if self._launch.rank == 0:
                target = Path(self._config.export_folder(name))
                tokenizer = self._data.tokenizer
                students[name] = export_all(
                    name, student.config, weights, target, tokenizer, heldout
                )
        if self._launch.rank == 0:
            self._sum_up(students)
        dist.barrier()

    def close(self) -> None:
        """Gives back the memory of students and teacher."""
        for student in self.engines:
            student.close()
        if self._lesson.model is not None:
            release(self._lesson.model)

    def _look_at_teacher(self, step: int, batch: StepBatch | None = None) -> None:
        """Tells what is wrong with the teacher at a step, once; a collective.

        Raises:
            UserError: nothing can be learnt from it, and options ask for an end.
        """
        self._looks_at_teacher = False
        if self._knows_teacher:
            return
        with self._metrics.paused():
            faults = self._distiller.teacher_faults(batch)
        self._knows_teacher = bool(faults)
        self._tell(teacher_records(step, self._config.teacher.model_name_or_path, faults))

    def _tell(self, found: Sequence[HealthRecord]) -> None:
        """Writes what began or is over.

        Raises:
            UserError: options ask for an end.
        """
        self._metrics.health(found)
        for line in tell(found, self._config.training.health):
            _log.warning(line)

    def _count_steps(self) -> int:
        training = self._config.training
        if training.max_steps is not None:
            return training.max_steps
        samples = training.num_train_epochs * self._data.pairs.num_samples
        return max(1, math.ceil(samples / self._config.global_batch_size(self._launch.world_size)))

    def _flops_per_token(self) -> float:
        students = [path for student in self.engines for path in relation_paths(student.config)]
        teacher = self._lesson.path if self._cache is None else None
        length = self._config.data.max_length
        return distillation_flops_per_token(students, teacher or RelationPath(0, 0, 0), length)

    def _heldout_losses(self, step: int) -> dict[str, float]:
        """Evaluates every student; returns nothing where the run names no held-out corpus."""
        if self._data.heldout is None:
            return {}
        with self._metrics.paused():
            batches = self._data.heldout_batches(self._config, self._launch)
            losses = self._distiller.evaluate(batches)
        # A line of progress has no room for sub-models.
        self._metrics.evaluation(step, losses, [student.name for student in self.engines])
        return losses

    def _sum_up(self, students: Mapping[str, StudentSummary]) -> None:
        """Writes ``summary.json`` and the picture of all steps, on rank 0."""
        folder = self._folder
        config, lesson, world_size = self._config, self._lesson, self._launch.world_size
        teacher = lesson.teacher
        summary = Summary(
            teacher=config.teacher.model_name_or_path,
            teacher_layout=config.teacher.layout,
            teacher_ranks=config.teacher.ranks(world_size),
            teacher_bytes_per_rank=lesson.teacher_bytes,
            world_size=world_size,
            zero_stage=config.parallel.zero_stage,
            expert_parallel_size=config.parallel.expert_parallel_size,
            steps=self._total_steps,
            sequences_per_second=self._metrics.sequences_per_second,
            saving=SavingSummary(**vars(self._checkpoints.times)),
            teacher_gmac=encoder_gmac(teacher.num_hidden_layers, teacher.hidden_size),
            students=dict(students),
            relation_cache=self._cache.summary() if self._cache is not None else None,
            options=SavedRecipe.model_validate(self._stated.model_dump(mode="json")),
        )
        if config.tradeoff_lambda is not None:
            tradeoff = keep_best(config, self._heldout_after)
            summary = summary.model_copy(update={"tradeoff": tradeoff})
        summary.write(folder.summary)
        try:
            draw_curves(SavedMetrics.find(folder.metrics), folder.curves)
        except OSError as error:
            _log.warning("%s: not drawn (%s)", folder.curves, error.strerror or error)
        _log.info("exported to %s; summary in %s", folder.exports, folder.summary)
