"""Fine-tuning one model with one seed and one learning rate: epochs, scores, early stopping."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.batches import MicroBatch
from ..data.loader import StepBatch
from ..data.tasks import Task, score
from ..data.tasks.batches import evaluation_batches, steps_per_epoch, training_step
from ..data.tasks.encoding import EncodedTask, tags_of_words
from ..runtime import StopRequest
from .distillation import Distiller
from .engine import StudentEngine
from .loop import TrainingDivergedError
from .progress import Progress


@dataclass(frozen=True)
class TuningOptions:
    """How long a model is trained, and in what steps.

    Attributes:
        batch_size: samples of a step on all ranks together.
        eval_batch_size: samples a rank in evaluation.
        epochs: at most.
        patience: epochs without a better score before the end; 0 never stops early.
        max_bad_steps: steps in a row without a finite loss before giving up.
    """

    batch_size: int
    eval_batch_size: int
    epochs: int
    patience: int
    max_bad_steps: int = 10


@dataclass
class TuningState:
    """How far a model is; JSON of it, with the engine's state, is all that resuming needs.

    Attributes:
        step: steps done, over all epochs.
        loss_sum: of the steps of an epoch that is under way.
        seconds: of that epoch so far.
        epochs: one record an epoch that is done: its number, loss, scores and seconds.
        best_epoch: the number of the best one, 0 before the first.
        best_score: its score.
    """

    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -math.inf

    @property
    def done(self) -> int:
        """Epochs that are done."""
        return len(self.epochs)

    def ended(self, options: TuningOptions) -> bool:
        """Whether all epochs are done, or no better score is to be expected."""
        waited = self.done - self.best_epoch
        return self.done >= options.epochs or (0 < options.patience <= waited)

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)


class Tuner:
    """One model, its data and its score so far; methods are collectives.

    Args:
        distiller: trains its one student for a :class:`.task_objective.TaskObjective`.
        train: samples to learn from.
        dev: samples to score on.
        references: the labels of ``dev`` as :class:`..data.tasks.TaskData` has them.
        options: how long.
        seed: of the order of samples.
        device: of this rank.
        progress: shows steps; None on ranks that say nothing.
    """

    def __init__(
        self,
        distiller: Distiller,
        train: EncodedTask,
        dev: EncodedTask,
        references: Sequence[Any],
        options: TuningOptions,
        *,
        seed: int,
        device: torch.device,
        progress: Progress | None = None,
    ) -> None:
        self._distiller = distiller
        self._train, self._dev, self._references = train, dev, references
        self.options, self._seed, self._device = options, seed, device
        self._progress = progress
        self.state = TuningState()
        self.best_weights: dict[str, Tensor] = {}

    @property
    def engine(self) -> StudentEngine:
        """Of the model."""
        return self._distiller.students[0]

    def resume(self, state: TuningState, best_weights: dict[str, Tensor]) -> None:
        """Goes on from a saved state, whose engine has been loaded; weights are rank 0's."""
        self.state, self.best_weights = state, best_weights
        if self._progress is not None:
            self._progress.resume(state.step)

    def say(self, words: str) -> None:
        """Shows the last epoch's numbers behind ``words``, with the time left at most."""
        if self._progress is not None:
            last = self.state.epochs[-1]
            numbers = {"loss": last["train_loss"], **last["scores"]}
            self._progress.note(f"{words}  epoch {self.state.done}", numbers, self.state.step)

    def close(self) -> None:
        """Takes the bar away, and gives back the model's memory; the best weights stay."""
        self.engine.close()
        if self._progress is not None:
            self._progress.close()

    def epoch(self, stop: StopRequest) -> bool:
        """Trains an epoch, scores the model and keeps its weights if it is the best one so far.

        Returns:
            False where a rank was asked to stop; the epoch goes on with the next call.

        Raises:
            TrainingDivergedError: too many steps in a row were not finite.
        """
        started = time.perf_counter()
        steps = steps_per_epoch(len(self._train), self.options.batch_size)
        bad = 0
        for step in range(self.state.step, (self.state.done + 1) * steps):
            micro = training_step(
                self._train,
                step,
                batch_size=self.options.batch_size,
                seed=self._seed,
                rank=dist.get_rank(),
                world_size=dist.get_world_size(),
            )
            batch = StepBatch([micro], step * self.options.batch_size)
            metrics = self._distiller.train_step(batch, step, stop.requested)
            student = next(iter(metrics.students.values()))
            fits = student.applied and math.isfinite(student.loss)
            bad = 0 if fits else bad + 1
            if bad >= self.options.max_bad_steps:
                raise TrainingDivergedError(f"step {step}: {bad} steps in a row were not finite")
            self.state.step += 1
            self.state.loss_sum += student.loss if fits else 0.0
            if self._progress is not None:
                self._progress.advance({"loss": student.loss})
            if metrics.stop_requested:
                self.state.seconds += time.perf_counter() - started
                return False
        scores = self.evaluate()
        self._note(self.state.loss_sum / steps, scores, time.perf_counter() - started)
        return True

    def _note(self, loss: float, scores: dict[str, float], seconds: float) -> None:
        state = self.state
        seconds += state.seconds
        record = {"epoch": state.done + 1, "train_loss": loss, "seconds": seconds, "scores": scores}
        state.epochs.append(record)
        state.loss_sum = state.seconds = 0.0
        value = next(iter(scores.values()))
        if value > state.best_score:
            state.best_epoch, state.best_score = state.done, value
            self.best_weights = self.engine.whole_weights()

    def evaluate(self) -> dict[str, float]:
        """The scores on ``dev``, the same on every rank."""
        return score(self._dev.task, self.predictions(), self._references)

    def predictions(self) -> list[Any]:
        """Of every sample of ``dev``, on every rank."""
        ranks = dist.get_rank(), dist.get_world_size()
        batches = evaluation_batches(self._dev, self.options.eval_batch_size, *ranks)
        model = self.engine.module.eval()
        own = predict(model, self._dev, self._references, batches, self._device)
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, own)
        merged = {sample: value for part in parts for sample, value in part.items()}
        return [merged[sample] for sample in range(len(self._dev))]


@torch.no_grad()
def predict(
    model: nn.Module,
    data: EncodedTask,
    references: Sequence[Any],
    batches: Iterable[tuple[np.ndarray, MicroBatch]],
    device: torch.device,
) -> dict[int, Any]:
    """Sample -> prediction, of batches of a task.

    Args:
        model: with a head for the task, in evaluation mode.
        data: the task's samples.
        references: their labels as :class:`..data.tasks.TaskData` has them.
        batches: of :func:`..data.tasks.batches.evaluation_batches`.
        device: of the model.
    """
    found: dict[int, Any] = {}
    for samples, micro in batches:
        logits = model(**micro.to(device).inputs()).logits
        found.update(_decoded(data, references, samples, logits))
    return found


def _decoded(
    data: EncodedTask, references: Sequence[Any], samples: np.ndarray, logits: Tensor
) -> Iterator[tuple[int, Any]]:
    """(sample, prediction) of a batch's logits, [B, C] or of tags [B, S, C]."""
    if data.task.kind == "regression":
        values = logits.squeeze(-1).float().tolist()
        yield from zip(samples.tolist(), values, strict=True)
        return
    classes = logits.argmax(-1).cpu().numpy()
    for row, sample in enumerate(samples.tolist()):
        if data.task.kind == "tagging":
            count, outside = len(references[sample]), _outside_tag(data.task)
            yield sample, tags_of_words(classes[row], data.words[sample], count, outside)
        else:
            yield sample, int(classes[row])


def _outside_tag(task: Task) -> int:
    """The number of the tag O; 0 where a task has no such tag."""
    return task.labels.index("O") if "O" in task.labels else 0
