"""Encoders on batches that come packed give what they give on padded ones."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minimoe_dist.data.batches import IGNORED_LABEL, MicroBatch
from minimoe_dist.data.packed import PackedBatch, pack
from minimoe_dist.models.build import build_student
from minimoe_dist.models.mlm_head import MiniMoeForRelationsAndMaskedLM
from minimoe_dist.models.packed import PackedLayout
from tests.families import PADDING, SIZES, student_options
from tests.models.elastic_models import SPARSE_MAP, elastic

LENGTHS = [12, 1, 7, 16]
LONGEST = 16


def make_batch(family: str, masked: bool = False) -> MicroBatch:
    generator = torch.Generator().manual_seed(3)
    shape = (len(LENGTHS), LONGEST)
    mask = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(2, SIZES["vocab_size"], shape, generator=generator)
    segments = torch.randint(0, 2, shape, generator=generator) * (family != "roberta")
    labels = None
    if masked:
        chosen = (torch.rand(shape, generator=generator) < 0.1) & mask
        labels = torch.where(chosen, ids, IGNORED_LABEL)
    ids = torch.where(mask, ids, PADDING[family])
    sample_ids = torch.tensor([5, 2**40, 7, 9])
    return MicroBatch(ids, mask, segments * mask, sample_ids, labels)


def layout_of(batch: PackedBatch) -> PackedLayout:
    return PackedLayout(batch.sample, batch.position, batch.starts, batch.lengths, batch.longest)


def packed_inputs(micro: MicroBatch) -> dict[str, Any]:
    batch = pack(micro, LONGEST)
    assert batch.rows > batch.num_tokens  # some rows belong to no sample
    return {
        "input_ids": batch.input_ids,
        "token_type_ids": batch.token_type_ids,
        "sample_ids": batch.sample_ids,
        "layout": layout_of(batch),
    }


def padded_inputs(micro: MicroBatch) -> dict[str, Any]:
    return {**micro.inputs(), "sample_ids": micro.sample_ids}


def weighted(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of tokens, and a scalar of them with another weight for each number."""
    rows = values[: sum(LENGTHS)] if mask is None else values[mask]
    weights = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
    return rows, (rows * weights).sum()


def outcomes(model: nn.Module, inputs: dict[str, Any], mask: Tensor | None) -> list[Tensor]:
    """Signals, statistics of routers, and gradients of a scalar of all of them."""
    model.zero_grad()
    output = model(**inputs, noise_seed=11)
    rows, scalars = zip(*(weighted(signal, mask) for signal in output.signals), strict=True)
    loss = sum(scalars)
    found = list(rows)
    for index, router in enumerate(output.routers):
        numbers = router.probability_sum
        loss = loss + (numbers * torch.arange(1.0, len(numbers) + 1)).sum() * (index + 1)
        found += [numbers, router.token_count]
    loss.backward()
    found += [p.grad for p in model.parameters() if p.grad is not None]
    return [value.detach().clone() for value in found]


def assert_close(packed: Sequence[Tensor], padded: Sequence[Tensor]) -> None:
    assert len(packed) == len(padded) > 0
    for one, other in zip(packed, padded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def assert_same(model: nn.Module, family: str) -> None:
    micro = make_batch(family)
    padded = outcomes(model, padded_inputs(micro), micro.attention_mask)
    packed = outcomes(model, packed_inputs(micro), None)
    assert_close(packed, padded)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("experts", [(1, 1), (1, 4), (2, 1), (2, 4)])
@pytest.mark.parametrize("family", PADDING)
def test_student_gives_signals_routes_and_gradients_of_the_padded_batch(
    family: str, experts: tuple[int, int], training: bool
) -> None:
    student = build_student(student_options(family, experts), seed=0).double().train(training)
    assert_same(student, family)


def test_once_for_all_student_gives_each_sub_models_signals() -> None:
    student = elastic(sparsity_map=SPARSE_MAP).double().train()
    micro = make_batch("bert")
    for name in SPARSE_MAP:
        padded, packed = (
            outcomes(student, {**inputs, "sparsity": name}, mask)
            for inputs, mask in (
                (padded_inputs(micro), micro.attention_mask),
                (packed_inputs(micro), None),
            )
        )
        assert_close(packed, padded)


def test_tokens_that_are_roberta_s_padding_id_get_its_position() -> None:
    student = build_student(student_options("roberta"), seed=0).double().eval()
    micro = make_batch("roberta")
    micro.input_ids[0, 3] = micro.input_ids[3, 0] = PADDING["roberta"]
    padded = student(**padded_inputs(micro)).signals[0][micro.attention_mask]
    packed = student(**packed_inputs(micro)).signals[0][: sum(LENGTHS)]
    assert_close([packed], [padded])


@pytest.mark.parametrize("compares", [True, False])
def test_masked_tokens_cost_what_they_cost_padded(compares: bool) -> None:
    options = student_options("bert", (1, 2))
    student = (
        build_student(options, seed=0, model_class=MiniMoeForRelationsAndMaskedLM).double().train()
    )
    micro = make_batch("bert", masked=True)
    batch = pack(micro, LONGEST)
    padded = student(**padded_inputs(micro), labels=micro.labels, compares=compares, noise_seed=11)
    packed = student(
        **packed_inputs(micro),
        labels=batch.predicted_labels,
        predicted_rows=batch.predicted_rows,
        compares=compares,
        noise_seed=11,
    )
    gradients = [
        torch.autograd.grad(output.masked_lm_sum, list(student.cls.parameters()))
        for output in (padded, packed)
    ]
    assert_close([packed.masked_lm_sum, *gradients[1]], [padded.masked_lm_sum, *gradients[0]])
