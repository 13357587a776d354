"""Packs a micro-batch without its padding into one buffer that travels to a GPU in one copy.

Shapes: B samples, T rows (tokens, and some more up to one of a few sizes), N predicted tokens (some
more, too).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from .batches import IGNORED_LABEL, MicroBatch
from .row_counts import most_predicted, rows_for


@dataclass(frozen=True)
class PackedBatch:
    """Holds the samples of one forward pass on one rank, packed.

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
        lengths: int32 [B], tokens of each sample.
        input_ids: int32 [T].
        token_type_ids: int32 [T].
        sample: int32 [T], a row's sample by its place in the batch.
        position: int32 [T], a row's position in its sample.
        predicted_rows: int32 [N], the rows whose token is to be predicted.
        predicted_labels: int32 [N], the ids that stood there; -100 beyond what is to be predicted.
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
        sample_ids, *views = self.numbers.split(sizes)
        names = [declared.name for declared in fields(self) if not declared.init]
        for name, value in zip(names, [sample_ids.view(torch.int64), *views], strict=True):
            object.__setattr__(self, name, value)  # frozen, but for this

    def tensors(self) -> list[Tensor]:
        """Returns the one tensor that all others are views of."""
        return [self.numbers]

    def on_each(self, move: Callable[[Tensor], Tensor]) -> PackedBatch:
        """Returns the same batch with its numbers moved by ``move``."""
        return self.with_numbers(move(self.numbers))

    def with_numbers(self, numbers: Tensor) -> PackedBatch:
        """Returns the same batch with its numbers somewhere else."""
        return replace(self, numbers=numbers)


def pack(micro: MicroBatch, longest: int) -> PackedBatch:
    """Leaves the padding of a batch on the host out.

    Args:
        micro: padded behind its samples.
        longest: length of the longest sample of any batch.
    """
    from .compiled.packing import fill_predictions, fill_rows

    lengths = micro.attention_mask.numpy().sum(1)
    assert lengths.max(initial=0) <= longest
    samples, tokens = len(lengths), int(lengths.sum())
    rows = rows_for(tokens, samples * longest)
    predictions = 0 if micro.labels is None else samples * most_predicted(longest)
    numbers = np.zeros(4 * (samples + rows) + 2 * predictions, dtype=np.int32)
    batch = PackedBatch(torch.from_numpy(numbers), samples, rows, predictions, longest, tokens)
    batch.sample_ids.numpy()[:] = micro.sample_ids.numpy()
    batch.lengths.numpy()[:] = lengths
    inputs = (micro.input_ids, micro.attention_mask, micro.token_type_ids)
    outputs = (batch.starts, batch.input_ids, batch.token_type_ids, batch.sample, batch.position)
    packed_samples = fill_rows(
        *(tensor.contiguous().numpy() for tensor in inputs),
        lengths,
        *(tensor.numpy() for tensor in outputs),
    )
    assert packed_samples == samples, "padding inside a sample"
    if micro.labels is not None:
        predicted = fill_predictions(
            micro.labels.contiguous().numpy(),
            lengths,
            IGNORED_LABEL,
            batch.predicted_rows.numpy(),
            batch.predicted_labels.numpy(),
        )
        assert predicted >= 0, "more to predict than most_predicted"
    return batch
