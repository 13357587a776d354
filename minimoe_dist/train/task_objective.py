"""The objective of fine-tuning: labels, and beside them a fine-tuned teacher's predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batches import MicroBatch
from ..data.tasks.encoding import IGNORED, UNLABELLED
from ..objectives.logits import label_loss_sum, logits_loss_sum
from ..objectives.relations import Signals, relation_loss_sum
from .objectives import RELATIONS, of_tokens


@dataclass(frozen=True)
class TaskTargets:
    """What a teacher gives for a batch.

    Attributes:
        predictions: [N, C], of the samples or tokens that have one, in their order.
        signals: query, key, value [B, S, H], where relations are compared.
    """

    predictions: Tensor
    signals: Signals | None = None


@dataclass(frozen=True)
class TaskTeacher:
    """A fine-tuned model of the same task, and how much it counts.

    Attributes:
        model: gives what a student of the task gives; frozen. None where its predictions are known
            and come with the batches.
        weight: share of its predictions in the loss; labels have the rest.
        temperature: of the predictions.
        relation_weight: of the relation loss, added to both; 0 for none.
        num_relation_heads: R of that.
    """

    model: nn.Module | None
    weight: float
    temperature: float
    relation_weight: float
    num_relation_heads: int


@dataclass
class TaskObjective:
    """A task's loss; an :class:`.objectives.Objective`.

    Attributes:
        teacher: None learns from labels alone.
    """

    teacher: TaskTeacher | None = None
    parts: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        teacher = self.teacher
        self.parts = {"label_loss": 1.0 - (teacher.weight if teacher else 0.0)}
        if teacher is not None:
            self.parts = {**self.parts, "logits_loss": teacher.weight}
            if teacher.relation_weight:
                self.parts = {**self.parts, "relation_loss": teacher.relation_weight}

    takes_packed = False
    teaches_packed = False

    @property
    def _with_signals(self) -> bool:
        return "relation_loss" in self.parts

    def teach(self, micro: MicroBatch) -> TaskTargets | None:
        """Computes the teacher's predictions, and its signals if they count."""
        if self.teacher is None:
            return None
        assert self.teacher.model is not None, "known predictions come with the batch"
        with torch.no_grad():
            output = self.teacher.model(**micro.inputs(), with_signals=self._with_signals)
        return TaskTargets(output.logits[is_counted(micro)], output.signals)

    def counts(self, micro: MicroBatch) -> Sequence[float]:
        """Counts labels, predictions to learn, and rows of the relations."""
        counts = {
            "label_loss": float(_labelled(micro).sum()),
            "logits_loss": float(is_counted(micro).sum()),
        }
        if self._with_signals:
            assert self.teacher is not None
            rows = 3.0 * self.teacher.num_relation_heads * micro.num_tokens
            counts["relation_loss"] = rows
        return [counts[name] for name in self.parts]

    def extra_inputs(self, micro: MicroBatch) -> Mapping[str, Any]:
        """Returns whether signals are wanted too."""
        return {"with_signals": self._with_signals}

    def sums(self, output: Any, targets: TaskTargets | None, micro: MicroBatch) -> Sequence[Tensor]:
        """Computes the losses of a student's :class:`..models.task_heads.TaskOutput`, summed."""
        labelled = _labelled(micro)
        assert micro.labels is not None
        sums = [label_loss_sum(output.logits[labelled], micro.labels[labelled])]
        if self.teacher is not None:
            assert targets is not None
            logits, temperature = output.logits[is_counted(micro)], self.teacher.temperature
            sums.append(logits_loss_sum(logits, targets.predictions, temperature))
            if self._with_signals:
                assert targets.signals is not None
                heads, mask = self.teacher.num_relation_heads, micro.attention_mask
                sums.append(relation_loss_sum(output.signals, targets.signals, mask, heads)[0])
        return sums

    def signals(self, targets: TaskTargets | None, micro: MicroBatch) -> Mapping[str, Tensor]:
        """Names the teacher's predictions where they are learnt, its signals if they count."""
        if targets is None:
            return {}
        predictions = {"predictions": targets.predictions}
        if targets.signals is None:
            return predictions
        return predictions | of_tokens(dict(zip(RELATIONS, targets.signals, strict=True)), micro)


def is_counted(micro: MicroBatch) -> Tensor:
    """Returns where there is something to predict: bool, of the labels' shape."""
    assert micro.labels is not None
    if micro.labels.is_floating_point():
        return ~micro.labels.isnan()
    return micro.labels != IGNORED


def _labelled(micro: MicroBatch) -> Tensor:
    """Returns where that has a label: bool, of the labels' shape."""
    assert micro.labels is not None
    if micro.labels.is_floating_point():
        return micro.labels.isfinite()
    return (micro.labels != IGNORED) & (micro.labels != UNLABELLED)
