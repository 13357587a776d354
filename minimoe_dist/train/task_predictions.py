"""Predicts texts without labels by a fine-tuned model, in their order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.tasks import label_names
from ..data.tasks import BadRows, Kind, Task, TaskData
from ..data.tasks.batches import evaluation_batches
from ..data.tasks.encoding import EncodedTask, encode
from ..data.tasks.unlabelled import Unlabelled
from .task_scores import predicted_tags

_CHUNK_BATCHES = 16  # samples of like length go together within so many batches


@dataclass(frozen=True)
class Prediction:
    """What is predicted of a text.

    Attributes:
        sample: the text.
        label: of classes the most probable one; None of an empty text.
        probabilities: of each class; empty of other kinds.
        value: of a model of numbers.
        tags: of a model of tags, one for each word.
    """

    sample: Unlabelled
    label: str | None = None
    probabilities: dict[str, float] | None = None
    value: float | None = None
    tags: tuple[str, ...] = ()


class Predictor:
    """A fine-tuned model that predicts.

    Args:
        model: with a head for a task, in evaluation mode.
        tokenizer: the model's.
        max_length: tokens of a sample, at most.
        batch_size: samples a pass.
        device: of the model.

    Attributes:
        kind: of the model's task.
        labels: in the order of their numbers; empty where numbers are predicted.
        num_cut: samples that lost their end so far.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        max_length: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._model, self._tokenizer, self._device = model, tokenizer, device
        self._max_length, self._batch_size = max_length, batch_size
        labels = label_names(model.config)
        # transformers' own classes say it by their names.
        named = type(model).__name__.endswith("ForTokenClassification")
        is_tagging = getattr(model, "tags_tokens", named)
        self.kind: Kind = (
            "tagging" if is_tagging else "regression" if len(labels) == 1 else "classification"
        )
        self.labels = () if self.kind == "regression" else labels
        self.num_cut = 0

    def predict(self, samples: Iterable[Unlabelled]) -> Iterator[Prediction]:
        """Yields a prediction for each sample, in their order, chunk by chunk."""
        waiting = iter(samples)
        while chunk := list(islice(waiting, self._batch_size * _CHUNK_BATCHES)):
            yield from self._of_chunk(chunk)

    @torch.no_grad()
    def _of_chunk(self, samples: Sequence[Unlabelled]) -> list[Prediction]:
        full = [sample for sample in samples if not sample.is_empty]
        found: list[Prediction] = [Prediction(sample) for sample in full]
        if full:
            encoded = self._encoded(full)
            self.num_cut += encoded.cut
            for places, micro in evaluation_batches(encoded, self._batch_size, 0, 1):
                logits = self._model(**micro.to(self._device).inputs()).logits.float().cpu()
                for row, place in enumerate(places.tolist()):
                    found[place] = self._decoded(full[place], logits[row], encoded, place)
        predicted = iter(found)
        return [Prediction(one) if one.is_empty else next(predicted) for one in samples]

    def _encoded(self, samples: Sequence[Unlabelled]) -> EncodedTask:
        is_tagging = self.kind == "tagging"
        labels = [[0] * len(one.texts) if is_tagging else 0 for one in samples]
        task = Task("input", self.kind, (), self.labels)
        texts = [one.texts for one in samples]
        data = TaskData(task, Path(), texts, labels, BadRows())
        return encode(data, self._tokenizer, self._max_length)

    def _decoded(
        self, sample: Unlabelled, logits: Tensor, encoded: EncodedTask, place: int
    ) -> Prediction:
        if self.kind == "regression":
            return Prediction(sample, value=float(logits.squeeze(-1)))
        if self.kind == "tagging":
            numbers = predicted_tags(logits, encoded, place, len(sample.texts))
            return Prediction(sample, tags=tuple(self.labels[number] for number in numbers))
        shares = logits.softmax(-1).tolist()
        best = self.labels[max(range(len(shares)), key=shares.__getitem__)]
        return Prediction(
            sample, label=best, probabilities=dict(zip(self.labels, shares, strict=True))
        )
