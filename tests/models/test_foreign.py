"""Hugging Face's encoders teach as our own do, of the same weights."""

from typing import Any

import pytest
import torch
from transformers import MODEL_MAPPING, AutoConfig

from minimoe_dist.data.batches import MicroBatch
from minimoe_dist.data.packed import pack
from minimoe_dist.encoder_families import ENCODER_FAMILIES
from minimoe_dist.models.foreign import as_student
from minimoe_dist.models.packed import PackedLayout
from minimoe_dist.models.pretrained import described_config
from minimoe_dist.models.teacher import RelationTeacher, signals_of
from tests.families import CONFIGURATIONS, ENCODERS, PADDING, SIZES, padded_batch

# Encoders of types that students are not of, and compute as some of them do.
ALIKE = [name for name, family in ENCODER_FAMILIES.items() if family.is_alike]


def encoder_of(family: str) -> Any:
    torch.manual_seed(1)
    if family in PADDING:
        config = CONFIGURATIONS[family](**SIZES, pad_token_id=PADDING[family])
        return ENCODERS[family](config).double().eval()
    sizes = {**SIZES, **({"embedding_size": SIZES["hidden_size"]} if family == "electra" else {})}
    config = AutoConfig.for_model(family, **sizes, pad_token_id=1)
    assert described_config(config).runs_as_students
    return MODEL_MAPPING[type(config)](config).double().eval()


@pytest.mark.parametrize("family", [*PADDING, *ALIKE])
def test_an_encoders_signals_are_those_of_the_student_of_its_weights(family: str) -> None:
    encoder = encoder_of(family)
    config = encoder.config
    ids, mask, segments = padded_batch(config.pad_token_id, 12)
    student = as_student(encoder)
    foreign, own = (
        RelationTeacher(signals_of(model), config, config.num_hidden_layers)
        for model in (encoder, student)
    )
    assert (foreign.layers_run, foreign.hidden_size) == (own.layers_run, own.hidden_size)
    wanted = foreign(ids, mask, segments)
    micro = MicroBatch(ids, mask.bool(), segments, torch.arange(len(ids)))
    batch = pack(micro, 12)
    layout = PackedLayout(batch.sample, batch.position, batch.starts, batch.lengths, 12)
    padded = own(ids, mask, segments)
    packed = own.packed(batch.input_ids, batch.token_type_ids, layout)
    for theirs, ours, rows in zip(wanted, padded, packed, strict=True):
        torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()])
        torch.testing.assert_close(rows[: batch.num_tokens], theirs[mask.bool()])


def test_nothing_is_held_behind_the_signals() -> None:
    config = CONFIGURATIONS["bert"](**SIZES)
    encoder = ENCODERS["bert"](config)
    student = as_student(encoder)
    names = {name for name, _ in student.named_parameters() if ".layer.1." in name}
    assert names == {
        f"bert.encoder.layer.1.attention.self.joined.{kind}" for kind in ("weight", "bias")
    }
    word = encoder.embeddings.word_embeddings.weight
    assert student.bert.embeddings.word_embeddings.weight.data_ptr() == word.data_ptr()
