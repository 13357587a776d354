"""A micro-batch without its padding, in one buffer that travels to a GPU in one copy.

Shapes: B samples, T rows (tokens, and some more up to one of a few sizes), N predicted tokens (some
more, too).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from minimoe_dist.data.batches import IGNORED_LABEL, MicroBatch
from minimoe_dist.data.row_counts import most_predicted, rows_for


@dataclass(frozen=True)
class PackedBatch:
    """The samples of one forward pass on one rank, packed.

    All tensors are views of ``numbers``. Rows of no sample are 0 in all of them.

    Attributes:
        numbers: int32, all of the batch side by side.
        samples: B.
        rows: T.
        predictions: N, 0 without masked tokens.
        longest: no sample is longer; what passes are launched for.
        num_tokens: rows that are tokens.
        sample_ids: int64 [B], the samples' global positions in the run.
        starts: int32 [B], each sample's first row.
        lengths: int32 [B].
        input_ids: int32 [T].
        token_type_ids: int32 [T].
        sample: int32 [T], a row's sample by its place in the batch.
        position: int32 [T], in its sample.
        predicted_rows: int32 [N].
        predicted_labels: int32 [N]; -100 beyond what is to be predicted.
    """

    numbers: Tensor
    samples: int
    rows: int
    predictions: int
    longest: int
    num_tokens: int
    sample_ids: Tensor = field(init=False)
    starts: Tensor = field(init=False)
    lengths: Tensor = field(init=False)
    input_ids: Tensor = field(init=False)
    token_type_ids: Tensor = field(init=False)
    sample: Tensor = field(init=False)
    position: Tensor = field(init=False)
    predicted_rows: Tensor = field(init=False)
    predicted_labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        sizes = [2 * self.samples, *[self.samples] * 2, *[self.rows] * 4, *[self.predictions] * 2]
        ids, *others = self.numbers.split(sizes)
        names = [one.name for one in fields(self) if not one.init]
        for name, value in zip(names, [ids.view(torch.int64), *others], strict=True):
            object.__setattr__(self, name, value)  # frozen, but for this

    def with_numbers(self, numbers: Tensor) -> PackedBatch:
        """The same batch with its numbers somewhere else."""
        return replace(self, numbers=numbers)


def pack(micro: MicroBatch, longest: int) -> PackedBatch:
    """Leaves the padding of a batch on the host out.

    Args:
        micro: padded behind its samples.
        longest: length of the longest sample of any batch.
    """
    mask = micro.attention_mask.numpy()
    lengths = mask.sum(1)
    assert (mask == (np.arange(mask.shape[1]) < lengths[:, None])).all(), "padding inside a sample"
    assert lengths.max(initial=0) <= longest
    samples, tokens = len(lengths), int(lengths.sum())
    rows = rows_for(tokens, samples * longest)
    wanted = None if micro.labels is None else micro.labels.numpy()[mask]
    predictions = 0 if wanted is None else samples * most_predicted(longest)
    numbers = np.zeros(4 * (samples + rows) + 2 * predictions, dtype=np.int32)
    batch = PackedBatch(torch.from_numpy(numbers), samples, rows, predictions, longest, tokens)
    batch.sample_ids.copy_(micro.sample_ids)
    starts = np.cumsum(lengths) - lengths
    batch.starts.numpy()[:] = starts
    batch.lengths.numpy()[:] = lengths
    batch.input_ids.numpy()[:tokens] = micro.input_ids.numpy()[mask]
    batch.token_type_ids.numpy()[:tokens] = micro.token_type_ids.numpy()[mask]
    batch.sample.numpy()[:tokens] = np.repeat(np.arange(samples), lengths)
    batch.position.numpy()[:tokens] = np.arange(tokens) - np.repeat(starts, lengths)
    if wanted is not None:
        places = np.flatnonzero(wanted != IGNORED_LABEL)
        assert len(places) <= predictions
        batch.predicted_labels.fill_(IGNORED_LABEL)
        batch.predicted_rows.numpy()[: len(places)] = places
        batch.predicted_labels.numpy()[: len(places)] = wanted[places]
    return batch
