"""Small encoders of each family, ours and transformers', and a batch with padding for them."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    MegatronBertConfig,
    MegatronBertForMaskedLM,
    MegatronBertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from minimoe_dist.models.configuration import MiniMoeConfig

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "initializer_range": 0.3,
}
# By family: transformers' classes, and the id of padding.
CONFIGURATIONS: dict[str, Any] = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "megatron-bert": MegatronBertConfig,
}
ENCODERS: dict[str, Any] = {
    "bert": BertModel,
    "roberta": RobertaModel,
    "megatron-bert": MegatronBertModel,
}
MASKED_LMS: dict[str, Any] = {
    "bert": BertForMaskedLM,
    "roberta": RobertaForMaskedLM,
    "megatron-bert": MegatronBertForMaskedLM,
}
PADDING = {"bert": 0, "roberta": 1, "megatron-bert": 0}


def student_options(
    family: str = "bert", experts: tuple[int, int] = (1, 1), **changes: Any
) -> MiniMoeConfig:
    """The configuration of a student of x attention and y feed-forward experts."""
    options = {
        **SIZES,
        "family": family,
        "pad_token_id": PADDING[family],
        "attention_experts": experts[0],
        "feedforward_experts": experts[1],
        "relation_projections": experts != (1, 1),
        "num_relation_heads": 4,
    }
    return MiniMoeConfig(**{**options, **changes})


def padded_batch(padding: int = 0, length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Ids int64, mask bool and segments int64 of three samples, the first without padding."""
    mask = torch.arange(length) < torch.tensor([length, 5, 7])[:, None]
    ids = torch.randint(4, 60, mask.shape, generator=torch.Generator().manual_seed(1))
    return ids.masked_fill(~mask, padding), mask, (ids % 2) * mask
