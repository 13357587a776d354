"""Batches without their padding hold what the padded ones held."""

import numpy as np
import pytest
import torch

from minimoe_dist.data.batches import IGNORED_LABEL, MicroBatch
from minimoe_dist.data.packed import pack
from minimoe_dist.data.row_counts import rows_for

LENGTHS = [12, 1, 7, 16]
LONGEST = 16


def make_batch() -> MicroBatch:
    generator = torch.Generator().manual_seed(3)
    shape = (len(LENGTHS), LONGEST)
    mask = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(2, 100, shape, generator=generator)
    labels = torch.where((torch.rand(shape, generator=generator) < 0.1) & mask, ids, IGNORED_LABEL)
    segments = torch.randint(0, 2, shape, generator=generator) * mask
    return MicroBatch(ids, mask, segments, torch.tensor([5, 2**40, 7, 9]), labels)


def test_packing_keeps_every_number_of_the_tokens() -> None:
    micro = make_batch()
    batch = pack(micro, LONGEST)
    mask, tokens = micro.attention_mask, sum(LENGTHS)
    assert (batch.num_tokens, batch.rows, batch.samples) == (tokens, 128, 4)
    assert torch.equal(batch.sample_ids, micro.sample_ids)
    assert torch.equal(batch.lengths, torch.tensor(LENGTHS).int())
    assert torch.equal(batch.starts, torch.tensor([0, 12, 13, 20]).int())
    assert torch.equal(batch.input_ids[:tokens].long(), micro.input_ids[mask])
    assert torch.equal(batch.token_type_ids[:tokens].long(), micro.token_type_ids[mask])
    assert torch.equal(
        micro.input_ids[batch.sample, batch.position][:tokens], micro.input_ids[mask]
    )
    wanted = micro.labels[mask]
    kept = batch.predicted_labels != IGNORED_LABEL
    assert torch.equal(
        wanted[batch.predicted_rows[kept].long()], batch.predicted_labels[kept].long()
    )
    assert int(kept.sum()) == int((wanted != IGNORED_LABEL).sum()) > 0


@pytest.mark.parametrize("tokens", [0, 1, 1024, 1025, 16384])
def test_rows_are_few_sizes_and_at_most_a_sixteenth_too_many(tokens: int) -> None:
    rows = rows_for(tokens, 16384)
    assert rows % 1024 == 0 and tokens <= rows <= max(1024, tokens + 1023)
    assert len({rows_for(n, 16384) for n in range(0, 16385, 64)}) == 16
    assert np.isclose(rows_for(tokens, 100), 128 * max(1, -(-tokens // 128)))


def test_without_labels_nothing_is_predicted() -> None:
    micro = make_batch()
    micro.labels = None
    batch = pack(micro, LONGEST)
    assert batch.predictions == 0 and len(batch.predicted_rows) == 0


def test_padding_inside_a_sample_is_an_error_of_ours() -> None:
    micro = make_batch()
    micro.attention_mask[0, 3] = False
    with pytest.raises(AssertionError, match="padding inside"):
        pack(micro, LONGEST)


def test_more_predictions_than_a_sample_may_have_are_an_error_of_ours() -> None:
    micro = make_batch()
    micro.labels = micro.input_ids
    with pytest.raises(AssertionError, match="more to predict"):
        pack(micro, LONGEST)
