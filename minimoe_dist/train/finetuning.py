"""Fine-tuning one model with one seed and one learning rate: steps, scores, early stopping."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch import Tensor

from ..data.loader import StepBatch
from ..data.tasks import score
from ..data.tasks.batches import evaluation_batches, steps_per_epoch, training_step
from ..data.tasks.encoding import EncodedTask
from ..runs.health import HealthRecord
from ..runtime import logger
from .distillation import Distiller
from .engine import StudentEngine
from .health import HealthWatch, refuse_useless, teacher_records, tell
from .known_predictions import KnownPredictions, RecalledPredictions
from .loop import LoopOptions
from .progress import Progress
from .step_metrics import PendingMetrics
from .task_scores import predict
from .teacher_signals import SignalFault, find_faults

_log = logger("finetune")


@dataclass(frozen=True)
class TuningOptions:
    """The length of a model's training, and the size of its steps.

    Attributes:
        batch_size: samples of a step on all ranks together.
        eval_batch_size: samples a rank in evaluation.
        epochs: at most.
        patience: epochs without a better score before the end; 0 never stops early.
        save_interval: epochs between checkpoints; 0: only where it is asked to stop.
    """

    batch_size: int
    eval_batch_size: int
    epochs: int
    patience: int
    save_interval: int = 0


@dataclass
class TuningState:
    """The state of a model's training besides its engine and best weights; JSON.

    Attributes:
        loss_sum: of the steps of an epoch that is under way.
        seconds: of that epoch so far.
        epochs: one record an epoch that is done: its number, loss, scores and seconds.
        best_epoch: the number of the best one, 0 before the first.
        best_score: its score.
        health: :class:`..runs.health.HealthRecord` of what began to be wrong or was over, so far.
    """

    loss_sum: float = 0.0
    seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -math.inf
    health: list[dict[str, Any]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """The number of epochs that are done."""
        return len(self.epochs)

    def ended(self, options: TuningOptions) -> bool:
        """Returns whether all epochs are done, or no better score is to be expected."""
        waited = self.done - self.best_epoch
        return self.done >= options.epochs or (0 < options.patience <= waited)


class Tuning:
    """One model, its data and its score so far; work of :func:`.loop.run_steps`.

    Attributes:
        state: how far it is.
        best_weights: of the best epoch so far, on rank 0; float32 by logical name.

    Args:
        distiller: trains its one student for a :class:`.task_objective.TaskObjective`.
        train: samples to learn from.
        dev: samples to score on.
        references: the labels of ``dev`` as :class:`..data.tasks.TaskData` has them.
        options: how long.
        watch: over gradients and experts, whose conditions are warned of.
        teacher: the path of the distiller's; None without one.
        known: that teacher's predictions, where they come with the batches.
        seed: of the order of samples.
        device: of this rank.
        label: the training's name in lines of progress.
        stream: where progress goes; None: nowhere.
    """

    def __init__(
        self,
        distiller: Distiller,
        train: EncodedTask,
        dev: EncodedTask,
        references: Sequence[Any],
        options: TuningOptions,
        watch: HealthWatch,
        *,
        teacher: str | None,
        known: KnownPredictions | None,
        seed: int,
        device: torch.device,
        label: str,
        stream: TextIO | None,
    ) -> None:
        self._distiller = distiller
        self._train, self._dev, self._references = train, dev, references
        self._options, self._seed, self._device = options, seed, device
        self._watch, self._teacher, self._known = watch, teacher, known
        self._knows_teacher = teacher is None
        self._label, self._stream = label, stream
        self._steps_per_epoch = steps_per_epoch(len(train), options.batch_size)
        self.state = TuningState()
        self.best_weights: dict[str, Tensor] = {}
        # One is of the step whose numbers were read last.
        self._last_recalled: deque[RecalledPredictions] = deque(maxlen=2)
        self._since = time.perf_counter()
        self._progress: Progress

    @property
    def options(self) -> LoopOptions:
        """The number of steps, and when they are scored and saved; the last one is not saved."""
        return LoopOptions(
            self._options.epochs * self._steps_per_epoch,
            self._steps_per_epoch,
            self._options.save_interval * self._steps_per_epoch or None,
            saves_last=False,
            reads_behind=self._device.type == "cuda",
        )

    @property
    def engines(self) -> Sequence[StudentEngine]:
        """The model's engine."""
        return self._distiller.students

    def progress(self) -> dict[str, Any]:
        """Returns the training's state."""
        self._count_seconds()
        return {"state": asdict(self.state), "health": self._watch.state()}

    def tensors(self) -> Mapping[str, Tensor]:
        """Returns the best weights so far."""
        return self.best_weights

    def resume(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`progress` and :meth:`tensors` returned."""
        self.state = TuningState(**progress["state"])
        self._watch.restore(progress.get("health", {}))  # older checkpoints have none
        if dist.get_rank() == 0:
            self.best_weights = dict(tensors)

    @contextmanager
    def under_way(self, first_step: int) -> Iterator[None]:
        """Shows progress while steps are made."""
        total = self.options.total_steps
        self._since = time.perf_counter()
        with Progress(self._stream, total, first_step, "fine-tuning") as self._progress:
            yield

    def step(self, step: int, stop_requested: bool) -> PendingMetrics:
        """Trains the model on this rank's share of a step."""
        if not self._knows_teacher:
            self._look_at_teacher(step + 1)
        batch = self._batch(step, self._options.batch_size)
        return self._distiller.train_step(batch, step, stop_requested)

    def record(self, steps_done: int, outcome: PendingMetrics) -> None:
        """Adds a step's loss to its epoch's, and warns of what is wrong with its numbers."""
        (student,) = outcome.students.values()
        if outcome.problem is None:
            self.state.loss_sum += student.loss
        self._progress.advance({"loss": student.loss})
        self._tell(self._watch.step(steps_done, outcome.metrics))

    def evaluate(self, steps_done: int) -> bool:
        """Ends an epoch: scores the model, and keeps its weights if it is the best one so far."""
        state = self.state
        scores = score(self._dev.task, self._predictions(), self._references)
        self._count_seconds()
        loss = state.loss_sum / self._steps_per_epoch
        epoch = state.done + 1
        state.epochs.append(
            {"epoch": epoch, "train_loss": loss, "seconds": state.seconds, "scores": scores}
        )
        state.loss_sum = state.seconds = 0.0
        value = next(iter(scores.values()))
        if value > state.best_score:
            state.best_epoch, state.best_score = epoch, value
            self.best_weights = self.engines[0].whole_weights()
        numbers = {"loss": loss, **scores}
        self._progress.print_labelled(f"{self._label}  epoch {epoch}", numbers, steps_done)
        return state.ended(self._options)

    def cause_of_divergence(self) -> str | None:
        """Names the teacher if its predictions are not finite."""
        faults: Sequence[SignalFault]
        if self._known is None:
            faults = self._distiller.teacher_faults()
        else:
            last = ({"predictions": recalled.rows} for recalled in self._last_recalled)
            faults = find_faults(last, self._device)
        if all(fault.finite_share == 1.0 for fault in faults):
            return None
        return "the teacher gives numbers that are not finite"

    def paused(self) -> AbstractContextManager[None]:
        """Pauses nothing: no rate is shown."""
        return nullcontext()

    def close(self) -> None:
        """Gives back the model's memory; the best weights stay."""
        self.engines[0].close()

    def _batch(self, step: int, batch_size: int) -> StepBatch:
        """Lays out this rank's share of a step of so many samples on all ranks."""
        ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
        samples, micro = training_step(
            self._train, step, batch_size=batch_size, seed=self._seed, **ranks
        )
        recalled = None
        if self._known is not None:
            recalled = self._known.recall(samples)
            self._last_recalled.append(recalled)
        return StepBatch([self._distiller.place(micro, recalled)], step * batch_size)

    def _look_at_teacher(self, step: int) -> None:
        """Tells what is wrong with the teacher's predictions; a collective.

        Raises:
            UserError: nothing can be learnt from them.
        """
        self._knows_teacher = True
        faults: Sequence[SignalFault]
        if self._known is None:
            # As many samples as fit: a few might be alike by chance.
            rows = min(self._options.eval_batch_size * dist.get_world_size(), len(self._train))
            faults = self._distiller.teacher_faults(self._batch(0, rows))
        else:
            faults = self._known.faults
        records = teacher_records(step, str(self._teacher), faults)
        refuse_useless(records)
        self._tell(records)

    def _tell(self, found: Sequence[HealthRecord]) -> None:
        """Keeps what began or is over, and warns of it."""
        self.state.health += [record.model_dump(exclude_none=True) for record in found]
        for line in tell(found, self._watch.options):
            _log.warning("%s: %s", self._label, line)

    def _predictions(self) -> list[Any]:
        """Predicts every sample of ``dev``, on every rank."""
        ranks = dist.get_rank(), dist.get_world_size()
        batches = evaluation_batches(self._dev, self._options.eval_batch_size, *ranks)
        model = self.engines[0].module.eval()
        rank_predictions = predict(model, self._dev, self._references, batches, self._device)
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, rank_predictions)
        merged = {sample: value for part in parts for sample, value in part.items()}
        return [merged[sample] for sample in range(len(self._dev))]

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.state.seconds += now - self._since
        self._since = now
