"""A micro-batch without its padding, in one buffer that travels to a GPU in one copy.

Shapes: B samples, T rows (tokens, and some more up to one of a few sizes), N predicted tokens (some
more, too).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minimoe_dist.data.batches import IGNORED_LABEL, MicroBatch, most_predicted

_SIZES = 16  # numbers of rows that a batch is filled up to, evenly spaced
_ROW_MULTIPLE = 128


@dataclass(frozen=True)
class PackedBatch:
    """The samples of one forward pass on one rank, packed.

    Attributes:
        numbers: int32, all of the batch side by side.
        samples: B.
        rows: T.
        predictions: N, 0 without masked tokens.
        longest: no sample is longer; what passes are launched for.
        num_tokens: rows that are tokens.
    """

    numbers: Tensor
    samples: int
    rows: int
    predictions: int
    longest: int
    num_tokens: int

    @property
    def sample_ids(self) -> Tensor:
        """int64 [B], the samples' global positions in the run."""
        return self.numbers[: 2 * self.samples].view(torch.int64)

    @property
    def starts(self) -> Tensor:
        """int32 [B], each sample's first row."""
        return self._after_ids(0)

    @property
    def lengths(self) -> Tensor:
        """int32 [B]."""
        return self._after_ids(1)

    @property
    def input_ids(self) -> Tensor:
        """int32 [T]; 0 at rows of no sample, as everything."""
        return self._rows(0)

    @property
    def token_type_ids(self) -> Tensor:
        """int32 [T]."""
        return self._rows(1)

    @property
    def sample(self) -> Tensor:
        """int32 [T], a row's sample by its place in the batch."""
        return self._rows(2)

    @property
    def position(self) -> Tensor:
        """int32 [T], in its sample."""
        return self._rows(3)

    @property
    def predicted_rows(self) -> Tensor:
        """int32 [N]."""
        return self._predictions(0)

    @property
    def predicted_labels(self) -> Tensor:
        """int32 [N]; -100 beyond what is to be predicted."""
        return self._predictions(1)

    def _after_ids(self, index: int) -> Tensor:
        first = (2 + index) * self.samples
        return self.numbers[first : first + self.samples]

    def _rows(self, index: int) -> Tensor:
        first = 4 * self.samples + index * self.rows
        return self.numbers[first : first + self.rows]

    def _predictions(self, index: int) -> Tensor:
        first = 4 * (self.samples + self.rows) + index * self.predictions
        return self.numbers[first : first + self.predictions]

    def with_numbers(self, numbers: Tensor) -> PackedBatch:
        """The same batch with its numbers somewhere else."""
        return replace(self, numbers=numbers)


def rows_for(num_tokens: int, most: int) -> int:
    """The number of rows that a batch of tokens is filled up to: one of 16 up to ``most``.

    A pass is compiled and captured for each, and computes at most a sixteenth more than it must.
    """
    step = -(-most // (_SIZES * _ROW_MULTIPLE)) * _ROW_MULTIPLE
    return max(step, -(-num_tokens // step) * step)


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
