"""Small sliceable BERTs for tests."""

import torch
from torch import Tensor

from minimoe_dist.models.elastic import ElasticForRelations, ElasticPreTrainedModel, ElementValues
from minimoe_dist.models.elastic_configuration import ElasticConfig

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "initializer_range": 0.3,
    "num_relation_heads": 4,
}
# Uneven layers; layer 1 has no heads, layer 2 no neurons.
SPARSE_MAP = {
    "0": {"hidden": {}, "head": {}, "neuron": {}},
    "50": {
        "hidden": {"-1": 8, "0": 8, "1": 8, "2": 8},
        "head": {"0": 1, "1": 4, "2": 2},
        "neuron": {"0": 16, "1": 24, "2": 64},
    },
}


def elastic(
    model_class: type[ElasticPreTrainedModel] = ElasticForRelations, **options
) -> ElasticPreTrainedModel:
    """A model of random weights, biases and LayerNorms, in evaluation mode."""
    torch.manual_seed(0)
    model = model_class(ElasticConfig(**(SIZES | {"with_pooler": True} | options)))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "LayerNorm" in name:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def batch(length: int = 13) -> dict[str, Tensor]:
    """Four samples, one of them of a single token."""
    torch.manual_seed(1)
    ids = torch.randint(4, SIZES["vocab_size"], (4, length))
    mask = torch.arange(length) < torch.tensor([length, 5, 11, 1])[:, None]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 2, ids.shape),
    }


def kept_places(config: ElasticConfig, sparsity: str) -> Tensor:
    """int64 [n], ascending: the places among the H original dimensions that a sub-model has."""
    whole = config.recover_indices or list(range(config.hidden_size))
    return torch.tensor(sorted(whole[: config.shape(sparsity).hidden]))


def random_orders() -> ElementValues:
    """A permutation of each kind of element."""
    torch.manual_seed(2)
    return ElementValues(
        torch.rand(3, 4).argsort(-1), torch.rand(3, 64).argsort(-1), torch.rand(32).argsort()
    )
