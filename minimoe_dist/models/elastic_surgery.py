"""Moves the elements of a sliceable BERT: reorders them, cuts sub-models out, as plain BERTs too.

All of these choose, for each kind of element, which ones stay and in which order, and take those
rows and columns of every weight of the encoder. What stands on it keeps its width, untouched.
"""

import copy
import re
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from .build import COMMON_FIELDS
from .elastic import ElasticModel, ElasticPreTrainedModel, ElementValues
from .elastic_configuration import ElasticConfig
from .errors import UserError
from .submodels import WHOLE, SubModelShape

Model = TypeVar("Model", bound=ElasticPreTrainedModel)

# The kind of element along each axis of the encoder's weights.
_EMBEDDING_AXES: dict[str, tuple[str, ...]] = {
    "embeddings.word_embeddings.weight": ("", "hidden"),
    "embeddings.position_embeddings.weight": ("", "hidden"),
    "embeddings.token_type_embeddings.weight": ("", "hidden"),
    "embeddings.LayerNorm.weight": ("hidden",),
    "embeddings.LayerNorm.bias": ("hidden",),
}
_LAYER_AXES: dict[str, tuple[str, ...]] = {
    **{f"attention.self.{x}.weight": ("head", "hidden") for x in ("query", "key", "value")},
    **{f"attention.self.{x}.bias": ("head",) for x in ("query", "key", "value")},
    "attention.output.dense.weight": ("hidden", "head"),
    "attention.output.dense.bias": ("hidden",),
    "attention.output.LayerNorm.weight": ("hidden",),
    "attention.output.LayerNorm.bias": ("hidden",),
    "intermediate.dense.weight": ("neuron", "hidden"),
    "intermediate.dense.bias": ("neuron",),
    "output.dense.weight": ("hidden", "neuron"),
    "output.dense.bias": ("hidden",),
    "output.LayerNorm.weight": ("hidden",),
    "output.LayerNorm.bias": ("hidden",),
}


class _Selection(NamedTuple):
    """Which elements stay, in their new order: int64 ``hidden`` [n]; the others per layer."""

    hidden: Tensor
    heads: list[Tensor]
    neurons: list[Tensor]
    head_size: int

    @classmethod
    def first(cls, shape: SubModelShape, head_size: int) -> "_Selection":
        """Selects the first elements, as many as ``shape`` counts."""
        heads = [torch.arange(layer.heads) for layer in shape.layers]
        neurons = [torch.arange(layer.neurons) for layer in shape.layers]
        return cls(torch.arange(shape.hidden), heads, neurons, head_size)

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """Takes the part of a weight that stays; what is not the encoder's stays whole."""
        name = name.removeprefix("bert.")
        if axes := _EMBEDDING_AXES.get(name):
            return self._take(tensor, axes, {"hidden": self.hidden})
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
        if match is None:
            return tensor
        layer = int(match[1])
        offsets = torch.arange(self.head_size)
        features = (self.heads[layer].cpu()[:, None] * self.head_size + offsets).flatten()
        indices = {"hidden": self.hidden, "head": features, "neuron": self.neurons[layer]}
        return self._take(tensor, _LAYER_AXES[match[2]], indices)

    @staticmethod
    def _take(tensor: Tensor, axes: tuple[str, ...], indices: Mapping[str, Tensor]) -> Tensor:
        for axis, kind in enumerate(axes):
            if kind:
                tensor = tensor.index_select(axis, indices[kind].to(tensor.device))
        return tensor


def element_orders(importances: ElementValues) -> ElementValues:
    """Orders elements by falling importance: int64 permutations of the same shapes."""
    return ElementValues(
        *(values.argsort(dim=-1, descending=True, stable=True) for values in importances)
    )


@torch.no_grad()
def reorder(model: ElasticPreTrainedModel, orders: ElementValues) -> None:
    """Puts a whole model's elements into ``orders``, in place; its function stays the same.

    Args:
        model: of any class of :mod:`.elastic`.
        orders: int64 permutations; ``orders.hidden[0]`` is the dimension that comes first.
    """
    config, encoder = model.config, _encoder_of(model)
    assert config.sparsity == WHOLE, "a sub-model's elements stand in the whole model's order"
    selection = _Selection(
        orders.hidden, list(orders.heads), list(orders.neurons), config.sizes.head_size
    )
    for name, tensor in model.state_dict().items():
        tensor.copy_(selection.take(name, tensor))
    indices = encoder.recover_indices
    indices.copy_(indices[orders.hidden.to(indices.device)])
    for module in (model, encoder):
        module.config.recover_indices = indices.tolist()


@torch.no_grad()
def cut(model: Model, sparsity: str) -> Model:
    """Cuts a sub-model out, with weights of its own, of the same class, in evaluation mode.

    Raises:
        UserError: no such sub-model, or one of more than the weights that there are.
    """
    shape = _encoder_of(model).shape_of(sparsity)
    config = copy.deepcopy(model.config)
    config.sparsity = sparsity
    sub_model = type(model)(config).to(device=model.device, dtype=model.dtype)
    selection = _Selection.first(shape, config.sizes.head_size)
    state = model.state_dict()
    sub_model.load_state_dict(
        {name: selection.take(name, state[name]) for name in sub_model.state_dict()}
    )
    return sub_model.eval()


def is_plain_bert(config: ElasticConfig, sparsity: str | None = None) -> bool:
    """Tells whether a sub-model can be transformers' own class (see :func:`plain_bert`)."""
    return config.shape(sparsity).plain(config.sizes.head_size) is not None


@torch.no_grad()
def plain_bert(model: ElasticPreTrainedModel, sparsity: str | None = None) -> BertModel:
    """Makes transformers' own class of a sub-model, hidden dimensions in their original order.

    Its hidden states are those of the sub-model at the dimensions that this has, the first of
    ``recover_indices`` in ascending order; so is its pooler's output, where there is a pooler.

    Raises:
        UserError: the sub-model is no plain BERT: its layers differ, or a block is empty, or its
            heads do not fill its hidden size.
    """
    encoder, config = _encoder_of(model), model.config
    shape = encoder.shape_of(sparsity)
    sizes = shape.plain(config.sizes.head_size)
    if sizes is None:
        raise UserError(
            f"sparsity: {sparsity or config.sparsity} is no plain BERT, since its layers differ, "
            "have an empty block, or have heads that do not fill its hidden size; "
            f"export it as a {config.model_type} folder"
        )
    bert_config = BertConfig(
        **{name: getattr(config, name) for name in COMMON_FIELDS},
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.neurons,
        num_relation_heads=config.num_relation_heads,
    )
    bert = BertModel(bert_config, add_pooling_layer=encoder.pooler is not None)
    places, order = encoder.recover_indices[: shape.hidden].sort()
    selection = _Selection.first(shape, config.sizes.head_size)._replace(hidden=order)
    state = {name: selection.take(name, tensor) for name, tensor in encoder.state_dict().items()}
    if encoder.pooler is not None:
        dense = encoder.pooler.dense
        state["pooler.dense.weight"] = dense.weight[places][:, places]
        state["pooler.dense.bias"] = dense.bias[places]
    bert.load_state_dict({name: state[name] for name in bert.state_dict()})
    return bert.to(dtype=model.dtype).eval()


def _encoder_of(model: ElasticPreTrainedModel) -> ElasticModel:
    encoder = model if isinstance(model, ElasticModel) else model.bert
    assert isinstance(encoder, ElasticModel)
    return encoder
