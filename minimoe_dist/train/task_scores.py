"""Predicts a task's samples by a model, and scores a split that is read from the task's files."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.tasks import label_names
from ..config.commands import EvaluateOptions
from ..corpus.tokenizing import load_tokenizer
from ..data.batches import MicroBatch
from ..data.tasks import (
    Task,
    TaskData,
    open_table,
    open_task,
    places_of_labels,
    score,
    task_of,
    unknown_in_words,
    unlearnt_rows,
)
from ..data.tasks.batches import evaluation_batches
from ..data.tasks.encoding import EncodedTask, encode, tags_of_words
from ..data.tasks.sources import scored_table, table_split, word_columns
from ..data.tasks.tags import OUTSIDE
from ..model_description import require_model
from ..runs.evaluations import TaskScores
from ..runs.options import SavedTuning
from ..runs.tuning import TuningResults
from ..runtime import logger

_LENGTH, _BATCH = 128, 64
_log = logger("evaluate")


def score_on_task(
    model: nn.Module,
    folder: Path,
    options: EvaluateOptions,
    tuned: TuningResults | None,
    device: torch.device,
) -> TaskScores:
    """Computes the task's metrics, by name, with what they were measured on.

    Labels are in the order of the model's own, whatever that of the file is. Rows whose label the
    model does not know count as wrong.

    Args:
        model: with a head for the task, in evaluation mode.
        folder: of the model, for its tokenizer.
        options: task and folder of its files, or a table; split and longest sample.
        tuned: the model's fine-tuning; None where that is not known.
        device: of the model.

    Raises:
        UserError: a file is missing or has another layout, or hardly a label that the model knows.
    """
    tuning = tuned.options if tuned else SavedTuning()
    data = _open_data(model, options, tuning)
    if data.unknown:
        _log.warning("%s: they count as wrong", unknown_in_words(data))
    longest = require_model(str(folder), "source", foreign=True).longest_sequence
    length = options.max_length or tuning.max_length or min(_LENGTH, longest)
    encoded = encode(data, load_tokenizer(str(folder)), length)
    batches = evaluation_batches(encoded, _BATCH, 0, 1)
    predictions = predict(model, encoded, data.labels, batches, device)
    ordered = [predictions[sample] for sample in range(len(data))]
    return TaskScores(
        # A fine-tuning's own table may be another file here.
        task=tuned.task if tuned and options.dataset else data.task.name,
        metric=data.task.metrics[0],
        split=data.path.name if options.dataset else options.split,
        samples=len(data),
        rows_left_out=data.bad.count,
        rows_of_unknown_labels=unlearnt_rows(data),
        scores=score(data.task, ordered, data.labels),
    )


def _open_data(model: nn.Module, options: EvaluateOptions, tuning: SavedTuning) -> TaskData:
    labels = label_names(model.config)
    if options.dataset is not None:
        # One label is a number to predict; two or more are classes.
        table = scored_table(options, tuning, values=len(labels) == 1)
        return open_table(table, table_split(table, options.split), labels=labels)
    assert options.task is not None and options.data_dir is not None
    task_labels = task_of(options.task).labels
    places = places_of_labels(labels, task_labels)
    if places is not None:
        # The model may spell them in another case.
        labels = tuple(task_labels[places.index(number)] for number in range(len(task_labels)))
    columns = word_columns(options, tuning)
    return open_task(options.task, options.data_dir, options.split, labels=labels, columns=columns)


@torch.no_grad()
def predict(
    model: nn.Module,
    data: EncodedTask,
    references: Sequence[Any],
    batches: Iterable[tuple[np.ndarray, MicroBatch]],
    device: torch.device,
) -> dict[int, Any]:
    """Predicts the samples of batches of a task.

    Args:
        model: with a head for the task, in evaluation mode.
        data: the task's samples.
        references: their labels as :class:`..data.tasks.TaskData` has them.
        batches: of :func:`..data.tasks.batches.evaluation_batches`.
        device: of the model.

    Returns:
        Each sample's prediction, by its number.
    """
    predictions: dict[int, Any] = {}
    for samples, micro in batches:
        logits = model(**micro.to(device).inputs()).logits
        predictions.update(_decoded(data, references, samples, logits))
    return predictions


def _decoded(
    data: EncodedTask, references: Sequence[Any], samples: np.ndarray, logits: Tensor
) -> Iterator[tuple[int, Any]]:
    """Yields (sample, prediction) of a batch's logits, [B, C] or of tags [B, S, C]."""
    if data.task.kind == "regression":
        values = logits.squeeze(-1).float().tolist()
        yield from zip(samples.tolist(), values, strict=True)
        return
    classes = logits.argmax(-1).cpu().numpy()
    for row, sample in enumerate(samples.tolist()):
        if data.task.kind == "tagging":
            yield sample, predicted_tags(logits[row], data, sample, len(references[sample]))
        else:
            yield sample, int(classes[row])


def predicted_tags(logits: Tensor, data: EncodedTask, sample: int, count: int) -> list[int]:
    """Returns the numbers of the tags of a sentence's words.

    Args:
        logits: of its tokens, [S, C].
        data: it is one of its samples.
        sample: which one.
        count: of its words; those behind the last token are of no chunk.
    """
    classes = logits.argmax(-1).cpu().numpy()
    return tags_of_words(classes, data.words[sample], count, _outside_tag(data.task))


def _outside_tag(task: Task) -> int:
    """Returns the number of the tag of other words; -1, which no word has, where there is none."""
    return next((task.labels.index(tag) for tag in OUTSIDE if tag in task.labels), -1)
