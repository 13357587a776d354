"""Micro-batches of a run's shapes on random ids: for clocks, and for passes without numbers."""

import torch
from torch import Tensor

from ..data.batches import IGNORED_LABEL, MicroBatch
from ..data.row_counts import MASKED_SHARE, most_predicted

_SPECIAL = 5  # ids below may be padding or masks


def make_micro_batches(
    *,
    samples: int,
    length: int,
    filled: float,
    accumulation: int,
    vocabulary: int,
    masked: bool,
    seed: int = 0,
) -> list[MicroBatch]:
    """Makes a rank's micro-batches of a step, of random ids.

    Args:
        samples: of a micro-batch.
        length: of the longest of them, to which the others are padded.
        filled: share of positions that are no padding, as nearly as so many samples allow.
        accumulation: micro-batches.
        vocabulary: ids are below.
        masked: whether tokens are to be predicted.
        seed: of the ids.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = _lengths(samples, length, filled)
    batches = []
    for number in range(accumulation):
        ids = torch.randint(
            min(_SPECIAL, vocabulary - 1), vocabulary, (samples, length), generator=generator
        )
        mask = torch.arange(length) < lengths[:, None]
        batches.append(
            MicroBatch(
                input_ids=ids * mask,
                attention_mask=mask,
                token_type_ids=torch.zeros_like(ids),
                sample_ids=torch.arange(samples) + number * samples,
                labels=_labels(ids, lengths) if masked else None,
            )
        )
    return batches


def _lengths(samples: int, length: int, filled: float) -> Tensor:
    """Returns many long and few short lengths, as a corpus has; their mean is that share of all."""
    quantiles = (torch.arange(samples) + 0.5) / samples
    lengths = (length * quantiles ** (1.0 / filled - 1.0)).round().long().clamp(min=1)
    lengths[-1] = length
    return lengths


def _labels(ids: Tensor, lengths: Tensor) -> Tensor:
    labels = torch.full_like(ids, IGNORED_LABEL)
    for row, length in enumerate(lengths.tolist()):
        count = max(1, min(most_predicted(ids.shape[1]), round(MASKED_SHARE * length)))
        labels[row, :count] = ids[row, :count]
    return labels
