"""A fine-tuned model's scores on a split of its task, read from the task's own files."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.tasks import label_names
from ..config.commands import EvaluateOptions
from ..corpus.tokenizing import load_tokenizer
from ..data.tasks import open_task, score
from ..data.tasks.batches import evaluation_batches
from ..data.tasks.encoding import encode
from ..train.finetuning import predict

_LENGTH, _BATCH = 128, 64


def score_on_task(
    model: nn.Module, folder: Path, options: EvaluateOptions, device: torch.device
) -> dict[str, Any]:
    """The task's metrics, by name, with what they were measured on.

    Labels are in the order of the model's own, whatever that of the file is.

    Args:
        model: with a head for the task, in evaluation mode.
        folder: of the model, for its tokenizer.
        options: task, folder of its files, split and longest sample.
        device: of the model.

    Raises:
        ValueError: a file is missing or has another layout, or labels that the model does not know.
    """
    assert options.task is not None and options.data_dir is not None
    labels = label_names(model.config)
    data = open_task(options.task, options.data_dir, options.split, labels=labels)
    encoded = encode(data, load_tokenizer(str(folder)), options.max_length or _LENGTH)
    batches = evaluation_batches(encoded, _BATCH, 0, 1)
    predictions = predict(model, encoded, data.labels, batches, device)
    ordered = [predictions[sample] for sample in range(len(data))]
    return {
        "task": data.task.name,
        "metric": data.task.metrics[0],
        "split": options.split,
        "samples": len(data),
        "rows_left_out": data.bad.count,
        "scores": score(data.task, ordered, data.labels),
    }
