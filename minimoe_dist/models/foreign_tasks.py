"""Encoders that students are not built like, with a task's head: Hugging Face's own classes.

What of a student is a function of (seed, sample), dropout, is here one of (seed, first sample of a
batch): batches that are cut otherwise, as over other ranks, draw otherwise.

Shapes: B samples, S positions, C classes.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..data.keyed import keyed_bits
from ..encoder_families import ENCODER_FAMILIES
from .task_heads import TaskOutput

# What students' configurations say of their experts and sub-models.
_NO_EXPERTS = {
    "attention_experts": 1,
    "feedforward_experts": 1,
    "is_dense": True,
    "relation_projections": False,
    "sub_models": (),
}


class ForeignTaskModel(nn.Module):
    """One of Hugging Face's classes for texts or tokens, called and trained as a student is.

    Attributes:
        model: what is wrapped, and exported.
        config: its configuration, which also says that there are no experts.
        tags_tokens: whether there is a prediction for each token, or one for the sample.
        relation: None: there are no projections for relations.
    """

    relation = None

    def __init__(self, model: PreTrainedModel, *, tags_tokens: bool) -> None:
        super().__init__()
        self.model = model
        self.tags_tokens = tags_tokens
        self.config = copy.deepcopy(model.config)
        for name, value in _NO_EXPERTS.items():
            setattr(self.config, name, value)
        self._reads_segments = ENCODER_FAMILIES[model.config.model_type].reads_segments

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        sample_ids: Tensor | None = None,
        noise_seed: int = 0,
        with_signals: bool = False,
    ) -> TaskOutput:
        """Classifies texts, or tags tokens.

        Args:
            input_ids: int64 [B, S].
            attention_mask: bool or int [B, S], non-zero where a position is not padding.
            token_type_ids: int64 [B, S]; not for families without segments.
            sample_ids: int64 [B]; dropout is a function of (noise_seed, the first of them).
            noise_seed: the run's seed.
            with_signals: must be False: it has none.
        """
        assert not with_signals
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask.long()}
        if self._reads_segments and token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        with _drawing(noise_seed, sample_ids if self.training else None):
            logits = self.model(**inputs).logits
        return TaskOutput(logits=logits.float(), routers=())


def foreign_task_class(config: PreTrainedConfig, *, tags_tokens: bool) -> type[Any]:
    """Returns Hugging Face's class of an encoder with a head for texts, or for tokens."""
    mapping = (
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
        if tags_tokens
        else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    )
    found: type[Any] = mapping[type(config)]
    return found


def last_map(model: nn.Module, outputs: int) -> str:
    """Returns the name of the map that gives a head's logits: the last one of so many outputs."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs
    ]
    return names[-1]


@contextmanager
def _drawing(seed: int, sample_ids: Tensor | None) -> Iterator[None]:
    """Draws what is random inside by a seed and a batch's first sample, if there is one."""
    if sample_ids is None or not len(sample_ids):
        yield
        return
    devices = [sample_ids.device.index] if sample_ids.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(keyed_bits(seed, int(sample_ids[0]))[0]) >> 1)
        yield
