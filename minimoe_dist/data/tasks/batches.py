"""Lays out batches of encoded tasks: each rank's share of a step, whatever the number of ranks."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..batches import MicroBatch
from ..keyed import permute
from .encoding import IGNORED, EncodedTask

_MULTIPLE = 8


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Steps of an epoch, the last of which may have fewer samples."""
    return -(-samples // batch_size)


def training_step(
    data: EncodedTask, step: int, *, batch_size: int, seed: int, rank: int, world_size: int
) -> tuple[np.ndarray, MicroBatch]:
    """Lays out a rank's share of a step; one sample of nothing but padding where it has none.

    Args:
        data: the training samples.
        step: counts from 0 over all epochs.
        batch_size: samples of a step on all ranks together.
        seed: of the order, which is another one in every epoch.
        rank: of this process.
        world_size: number of ranks.

    Returns:
        The numbers of its samples, int64 [b], and the batch.
    """
    size = len(data)
    epoch, step_of_epoch = divmod(step, steps_per_epoch(size, batch_size))
    positions = np.arange(step_of_epoch * batch_size, min(size, (step_of_epoch + 1) * batch_size))
    samples = permute(positions, size, seed, epoch)
    share = -(-batch_size // world_size)
    rank_samples = samples[rank * share : (rank + 1) * share]
    # Dropout shall differ from epoch to epoch.
    return rank_samples, collate(data, rank_samples, first_id=epoch * size)


def batches_by_length(data: EncodedTask, batch_size: int) -> Iterator[np.ndarray]:
    """Yields sample numbers, int64 [b], the longest first and those of like length together."""
    order = np.argsort([-len(ids) for ids in data.input_ids], kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def evaluation_batches(
    data: EncodedTask, batch_size: int, rank: int, world_size: int
) -> Iterator[tuple[np.ndarray, MicroBatch]]:
    """Yields (sample numbers, batch) of a rank's share, samples of like length together.

    Numbers are int64 [b], b at most ``batch_size``.
    """
    order = np.argsort([len(ids) for ids in data.input_ids], kind="stable")[rank::world_size]
    for start in range(0, len(order), batch_size):
        samples = order[start : start + batch_size]
        yield samples, collate(data, samples)


def collate(
    data: EncodedTask, samples: Sequence[int] | np.ndarray, first_id: int = 0
) -> MicroBatch:
    """Lays samples out, padded to the longest one rounded up.

    ``labels`` are int64 [b], float32 [b] for regression, or int64 [b, S] for tags.
    """
    chosen = [int(sample) for sample in samples]
    longest = max([1, *(len(data.input_ids[sample]) for sample in chosen)])
    shape = (max(1, len(chosen)), -(-longest // _MULTIPLE) * _MULTIPLE)
    ids, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    mask = np.zeros(shape, bool)
    tags = np.full(shape, IGNORED, np.int64)
    for row, sample in enumerate(chosen):
        length = len(data.input_ids[sample])
        ids[row, :length] = data.input_ids[sample]
        segments[row, :length] = data.segments[sample]
        mask[row, :length] = True
        if data.task.kind == "tagging":
            tags[row, :length] = data.labels[sample]
    numbers = [data.labels[sample] for sample in chosen]
    if data.task.kind == "tagging":
        labels = torch.from_numpy(tags)
    elif data.task.kind == "regression":
        labels = torch.tensor(numbers or [float("nan")], dtype=torch.float32)
    else:
        labels = torch.tensor(numbers or [IGNORED], dtype=torch.long)
    return MicroBatch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(segments),
        torch.tensor([first_id + sample for sample in chosen] or [0], dtype=torch.long),
        labels,
    )
