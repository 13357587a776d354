"""``minimoe-dist distill``: corpora, teacher and students of a recipe, trained to their exports."""

import gc
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .. import __version__
from ..checkpoints import run as checkpoints
from ..checkpoints.files import PARTIAL, beside, flush_file
from ..config import RunConfig
from ..config.changes import changed_options, in_words
from ..errors import UserError
from ..exit_status import ExitStatus
from ..models.compute import RelationPath, distillation_flops_per_token, encoder_gmac
from ..recipes.building import make_distiller, with_precision
from ..recipes.corpora import RunData, open_data
from ..recipes.finished import is_finished
from ..recipes.model_types import Lesson, open_lesson
from ..recipes.results import Heldout, export_all, keep_best, relation_paths
from ..runtime import Launch, StopRequest, logger
from ..train.agreement import decided_by_rank_0
from ..train.curves import draw_curves
from ..train.engine import release
from ..train.loop import LoopOptions, TrainingDivergedError, train
from ..train.metrics import Metrics
from ..train.scope import Scope, only_run_in, started

_log = logger("distill")


def run(stages: Sequence[RunConfig], launch: Launch) -> int:
    """Trains and exports the students of each stage; of several, finished ones are skipped.

    Returns:
        0 when done, 75 after a requested stop (saved; start again to go on), 1 when the loss
        stayed not finite. Ends the process with 1 where another rank is lost.
    """
    parallel = stages[0].parallel
    try:
        with started(
            launch, use_cpu=parallel.use_cpu, timeout_seconds=parallel.timeout_seconds
        ) as scope:
            for stage in stages:
                if len(stages) > 1 and _is_finished(stage):
                    _log.info("%s: finished before", stage.output_dir)
                    continue
                with only_run_in(Path(stage.output_dir)):
                    status = _train(stage, launch, scope)
                gc.collect()  # what was closed is held in cycles
                if status == ExitStatus.STOPPED:
                    scope.stop.ignore_from_now_on()
                    return status
            return ExitStatus.DONE
    except TrainingDivergedError as error:
        if launch.rank == 0:
            _log.error("%s", error)
        return ExitStatus.FAILED


def _train(stage: RunConfig, launch: Launch, scope: Scope) -> int:
    """Trains one stage, and leaves no memory of it."""
    run_of_stage = _Run(stage, launch, scope.device)
    status = run_of_stage.to_the_end(scope.stop)
    run_of_stage.close()
    return status


def _is_finished(config: RunConfig) -> bool:
    """Whether a run has left all of its exports; asks rank 0.

    Raises:
        UserError: it has, but its options are not the ones that are given now.
    """
    return decided_by_rank_0(lambda: is_finished(config))


@dataclass
class _Progress:
    """What a run carries from start to start besides tensors."""

    step: int = 0
    consumed_samples: int = 0
    restarts: int = 0
    heldout_before: dict[str, float] | None = None


class _Run:
    """Everything a run needs, wired together."""

    def __init__(self, config: RunConfig, launch: Launch, device: torch.device) -> None:
        self.config = config = with_precision(config, device)
        self.launch = launch
        self.device = device
        self.folder = Path(config.output_dir)
        self.data: RunData = open_data(config)
        self.lesson: Lesson = open_lesson(config, device)
        self.total_steps = self._total_steps()
        self.distiller = make_distiller(config, self.lesson, launch, device, self.total_steps)
        self.progress = self._resume()

    def to_the_end(self, stop: StopRequest) -> int:
        """Trains what is left, exports, sums up."""
        config, training = self.config, self.config.training
        metrics = Metrics(
            self.folder,
            total_steps=self.total_steps,
            first_step=self.progress.step,
            log_interval=training.log_interval,
            flops_per_token=self._flops_per_token(),
            is_writer=self.launch.rank == 0,
        )
        options = LoopOptions(
            self.total_steps,
            training.save_interval,
            training.eval_interval,
            training.max_bad_steps,
            reads_behind=self.device.type == "cuda",
        )
        consumed = self.progress.consumed_samples
        loader = self.data.loader(config, self.launch, consumed, self.distiller.place)
        with metrics, loader:
            if self.distiller.warms_up:
                metrics.phase("compiling passes, which takes a minute or two")
            if self.progress.heldout_before is None:
                self.progress.heldout_before = self._evaluate(metrics, 0)
            done = train(
                self.distiller,
                loader,
                metrics,
                options,
                stop,
                save=lambda step: self._save(metrics, step, loader.consumed_samples),
                evaluate=lambda step: self._evaluate(metrics, step),
                first_step=self.progress.step,
            )
            if done < self.total_steps:
                _log.info("stopped at step %d of %d and saved", done, self.total_steps)
                return ExitStatus.STOPPED
            after = self._evaluate(metrics, done)
        self._finish(metrics, after)
        return ExitStatus.DONE

    def close(self) -> None:
        """Gives back the memory of students and teacher."""
        for student in self.distiller.students:
            student.close()
        if self.lesson.model is not None:
            release(self.lesson.model)

    def _total_steps(self) -> int:
        training = self.config.training
        if training.max_steps is not None:
            return training.max_steps
        samples = training.num_train_epochs * self.data.pairs.num_samples
        return max(1, math.ceil(samples / self._global_batch))

    @property
    def _global_batch(self) -> int:
        return self.config.global_batch_size(self.launch.world_size)

    def _flops_per_token(self) -> float:
        students = [
            path for student in self.distiller.students for path in relation_paths(student.config)
        ]
        idle = RelationPath(0, 0, 0)
        length = self.config.data.max_length
        return distillation_flops_per_token(students, self.lesson.path or idle, length)

    def _evaluate(self, metrics: Metrics, step: int) -> dict[str, float]:
        """Each student's held-out loss; nothing where the run names no such corpus."""
        if self.data.heldout is None:
            return {}
        with metrics.paused():
            batches = self.data.heldout_batches(self.config, self.launch)
            losses = self.distiller.evaluate(batches)
        # A line of progress has no room for sub-models.
        metrics.evaluation(step, losses, [student.name for student in self.distiller.students])
        return losses

    def _facts(self) -> dict[str, Any]:
        """What must not change under a run: its options, corpora and global batch."""
        return {
            **self.config.model_dump(mode="json"),
            "global_batch_size": self._global_batch,
            "total_steps": self.total_steps,
            "corpora": self.data.identities,
        }

    def _save(self, metrics: Metrics, step: int, consumed_samples: int) -> None:
        progress = self.progress
        state = {
            "step": step,
            "consumed_samples": consumed_samples,
            "restarts": progress.restarts,
            "heldout_before": progress.heldout_before,
            "facts": self._facts(),
            "version": __version__,
        }
        ranks = checkpoints.Ranks(self.launch.rank, self.launch.world_size, dist.barrier)
        students = self.distiller.students
        try:
            with metrics.paused():
                checkpoints.save_checkpoint(
                    self.folder / "checkpoints",
                    students,
                    state,
                    ranks,
                    self.config.training.keep_checkpoints,
                )
        except OSError as error:
            if step == self.total_steps:
                raise
            _log.error("step %d was not saved (%s); training goes on", step, error)

    def _resume(self) -> _Progress:
        """Restores the newest whole checkpoint, the same one on every rank."""
        checkpoint = decided_by_rank_0(self._checkpoint)
        if checkpoint is None:
            return _Progress()
        saved = checkpoints.read_progress(checkpoint)
        self._refuse_changes(checkpoint, saved["facts"])
        checkpoints.load_checkpoint(checkpoint, self.distiller.students)
        _log.info("resumed from %s at step %d", checkpoint, saved["step"])
        return _Progress(
            saved["step"], saved["consumed_samples"], saved["restarts"] + 1, saved["heldout_before"]
        )

    def _checkpoint(self) -> Path | None:
        """What there is to go on from; on rank 0."""
        folder = self.folder / "checkpoints"
        if self.config.resume != "never":
            return checkpoints.newest_whole_checkpoint(folder)
        aside = checkpoints.set_aside_checkpoints(folder)
        if aside is not None:
            _log.warning("resume never: earlier checkpoints are now in %s", aside)
        return None

    def _refuse_changes(self, checkpoint: Path, saved: Mapping[str, Any]) -> None:
        changes = changed_options(saved, self._facts())
        if changes and not self.config.allow_changed_options:
            raise UserError(
                f"{checkpoint}: the run's options changed since ({in_words(changes)}): give "
                "--allow_changed_options to go on with the new ones, --resume never or another "
                "output_dir to start anew"
            )
        for change in changes:
            _log.warning("option changed since the checkpoint: %s", change)

    def _finish(self, metrics: Metrics, after: Mapping[str, float]) -> None:
        """Exports every student and writes the summary, on rank 0; gathering is a collective."""
        teacher = self.lesson.teacher
        summary: dict[str, Any] = {
            "teacher": self.config.teacher.model_name_or_path,
            "teacher_layout": self.config.teacher.layout,
            "teacher_ranks": self.config.teacher.ranks(self.launch.world_size),
            "teacher_bytes_per_rank": self.lesson.teacher_bytes,
            "world_size": self.launch.world_size,
            "zero_stage": self.config.parallel.zero_stage,
            "expert_parallel_size": self.config.parallel.expert_parallel_size,
            "steps": self.total_steps,
            "sequences_per_second": metrics.sequences_per_second,
            "teacher_gmac": encoder_gmac(teacher.num_hidden_layers, teacher.hidden_size),
            "students": {},
            "options": self.config.model_dump(mode="json"),
        }
        heldout = Heldout(self.progress.heldout_before or {}, after)
        for student in self.distiller.students:
            name, weights = student.name, student.whole_weights()
            if self.launch.rank == 0:
                target = Path(self.config.export_folder(name))
                summary["students"][name] = export_all(
                    name, student.config, weights, target, self.data.tokenizer, heldout
                )
        if self.launch.rank == 0:
            if self.config.tradeoff_lambda is not None:
                summary["tradeoff"] = keep_best(self.config, after)
            path = self.folder / "summary.json"
            beside(path, PARTIAL).write_text(json.dumps(summary, indent=2) + "\n")
            flush_file(beside(path, PARTIAL))
            beside(path, PARTIAL).rename(path)
            draw_curves(self.folder / "metrics.jsonl", self.folder / "curves.png")
            _log.info("exported to %s; summary in %s", self.folder / "export", path)
        dist.barrier()
