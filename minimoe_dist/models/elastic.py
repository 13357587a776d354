"""A sliceable BERT: sub-models that are the first of each kind of element, for sparse students.

Heads, neurons and hidden dimensions stand in falling importance (:mod:`.elastic_surgery` brings
them there), so every sub-model of :mod:`.submodels` is a prefix of every weight. A pass of a
sub-model slices one set of weights and leaves its gradients there (once-for-all training); a
sub-model cut out has weights of its own, of the same names, and the same pass. Its final hidden
states are put back to their original places of the whole width, with zeros at the dimensions that
it does not have: what stands on top (pooler, relation projections, prediction head) is as wide as
the whole model's.

Parameter names are BERT's. A block that lost all heads or neurons is residual and LayerNorm.

Shapes: B samples, S positions, T packed tokens, H whole hidden size, n kept hidden size.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import can_return_tuple

from .blocks import (
    Dropout,
    Embeddings,
    EncoderOutput,
    HiddenStates,
    Pooler,
    RelationPass,
    RelationProjections,
    StudentOutput,
    TokenInputs,
    asked_outputs,
)
from .carried_code import CarriesCode, automatic_classes
from .elastic_configuration import ElasticConfig
from .errors import UserError
from .noise import NoiseKeys
from .packing import Layout
from .submodels import LayerShape, SubModelShape


class ElementValues(NamedTuple):
    """One value for each element: masks, gradients of masks, importances, or orders.

    Attributes:
        heads: [layers, heads].
        neurons: [layers, neurons].
        hidden: [H], shared by all layers.
    """

    heads: Tensor
    neurons: Tensor
    hidden: Tensor


class SlicedLinear(nn.Linear):
    """A linear map that can be asked for its first outputs of its first inputs only."""

    def forward(self, values: Tensor, out_features: int | None = None) -> Tensor:
        """Maps […, i] to […, out_features]."""
        weight = self.weight[:out_features, : values.shape[-1]]
        return F.linear(values, weight, self.bias[:out_features])


class SlicedLayerNorm(nn.LayerNorm):
    """A LayerNorm over as many first dimensions as it is given."""

    def forward(self, values: Tensor) -> Tensor:
        """Normalises […, n]."""
        size = values.shape[-1]
        return F.layer_norm(values, (size,), self.weight[:size], self.bias[:size], self.eps)


class _ForwardContext(NamedTuple):
    """The inputs that all layers of one forward pass share."""

    layout: Layout
    noise: NoiseKeys | None
    masks: ElementValues | None

    def mask_hidden(self, values: Tensor) -> Tensor:
        """Multiplies […, n] by the hidden mask."""
        return values if self.masks is None else _masked(values, self.masks.hidden)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """Multiplies […, n] by the first n of a mask, in the values' precision."""
    return values * mask[: values.shape[-1]].to(values.dtype)


class _Projections(nn.Module):
    """``attention.self`` of BERT's naming: the query, key and value maps."""

    def __init__(self, hidden: int, features: int) -> None:
        super().__init__()
        self.query = SlicedLinear(hidden, features)
        self.key = SlicedLinear(hidden, features)
        self.value = SlicedLinear(hidden, features)

    def forward(self, hidden: Tensor, features: int) -> Tensor:
        linears = (self.query, self.key, self.value)
        return torch.cat([linear(hidden, features) for linear in linears], -1)


class _Output(nn.Module):
    """The second map of a block, where there is one, with residual and LayerNorm behind it."""

    def __init__(self, config: ElasticConfig, in_features: int, hidden: int, site: int) -> None:
        super().__init__()
        if in_features:
            self.dense = SlicedLinear(in_features, hidden)
        self.LayerNorm = SlicedLayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob, site)

    def forward(self, inner: Tensor | None, residual: Tensor, ctx: _ForwardContext) -> Tensor:
        """Maps [T, features] (None: an empty block) with its residual [T, n] to [T, n]."""
        if inner is not None:
            out = ctx.mask_hidden(self.dense(inner, residual.shape[-1]))
            residual = self.dropout(out, ctx.noise) + residual
        return ctx.mask_hidden(self.LayerNorm(residual))


class _Attention(nn.Module):
    """``attention`` of BERT's naming."""

    def __init__(self, config: ElasticConfig, shape: LayerShape, hidden: int, site: int) -> None:
        super().__init__()
        features = shape.heads * config.sizes.head_size
        self.head_size = config.sizes.head_size
        self.probability_dropout = Dropout(config.attention_probs_dropout_prob, site)
        if features:
            self.self = _Projections(hidden, features)
        self.output = _Output(config, features, hidden, site + 1)

    def forward(
        self, hidden: Tensor, heads: int, mask: Tensor | None, ctx: _ForwardContext
    ) -> Tensor:
        """Maps [T, n] to [T, n] by the first ``heads`` heads; ``mask`` has as many at least."""
        if not heads:
            return self.output(None, hidden, ctx)
        projected = self.self(hidden, heads * self.head_size)
        dropout = self.probability_dropout
        context = ctx.layout.attend(projected, heads, ctx.noise, dropout.probability, dropout.site)
        if mask is not None:
            by_feature = context.unflatten(-1, (heads, -1)).transpose(-1, -2)
            context = _masked(by_feature, mask).transpose(-1, -2).flatten(-2)
        return self.output(context, hidden, ctx)


class _Intermediate(nn.Module):
    """``intermediate`` of BERT's naming: the first feed-forward map and its activation."""

    def __init__(self, config: ElasticConfig, hidden: int, neurons: int) -> None:
        super().__init__()
        self.dense = SlicedLinear(hidden, neurons)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor, neurons: int) -> Tensor:
        return self.activation(self.dense(hidden, neurons))


class ElasticLayer(GradientCheckpointingLayer):
    """One encoder layer with the elements that ``shape`` counts."""

    sites = 5  # as in MiniMoE's layers: attention probabilities, two block outputs, two spare

    def __init__(self, config: ElasticConfig, index: int, shape: LayerShape, hidden: int) -> None:
        super().__init__()
        self.index = index
        site = 1 + self.sites * index
        self.attention = _Attention(config, shape, hidden, site)
        if shape.neurons:
            self.intermediate = _Intermediate(config, hidden, shape.neurons)
        self.output = _Output(config, shape.neurons, hidden, site + 2)

    def forward(self, hidden: Tensor, shape: LayerShape, ctx: _ForwardContext) -> Tensor:
        """Maps [T, n] to [T, n] by the first elements that ``shape`` counts."""
        head_mask = neuron_mask = None
        if ctx.masks is not None:
            head_mask, neuron_mask = ctx.masks.heads[self.index], ctx.masks.neurons[self.index]
        hidden = self.attention(hidden, shape.heads, head_mask, ctx)
        inner = None
        if shape.neurons:
            inner = self.intermediate(hidden, shape.neurons)
            if neuron_mask is not None:
                inner = _masked(inner, neuron_mask)
        return self.output(inner, hidden, ctx)


class _Encoder(nn.Module):
    """``encoder`` of BERT's naming; layers that are missing wholly are at the end, and not here."""

    def __init__(self, config: ElasticConfig, shape: SubModelShape) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            ElasticLayer(config, index, layer, shape.hidden)
            for index, layer in enumerate(shape.layers)
            if not layer.missing
        )

    def forward(
        self,
        hidden: Tensor,
        shape: SubModelShape,
        ctx: _ForwardContext,
        keep: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Maps [T, n] to [T, n] by the layers that ``shape`` has, each reading what is kept."""
        # Shorter where this is a sub-model: what it does not have, none of its own has.
        for layer, layer_shape in zip(self.layer, shape.layers, strict=False):
            if not layer_shape.missing:
                hidden = layer(keep(hidden), layer_shape, ctx)
        return hidden


class ElasticEmbeddings(Embeddings):
    """BERT's embeddings, of which a sub-model takes the first dimensions."""

    def __init__(self, config: ElasticConfig, hidden: int) -> None:
        super().__init__(config)
        for table in (self.word_embeddings, self.position_embeddings, self.token_type_embeddings):
            table.weight = nn.Parameter(table.weight.detach()[:, :hidden].clone())
            table.embedding_dim = hidden
        self.LayerNorm = SlicedLayerNorm(hidden, eps=config.layer_norm_eps)

    def forward(  # type: ignore[override]
        self, tokens: TokenInputs, hidden: int, ctx: _ForwardContext
    ) -> Tensor:
        """Embeds a batch as [T, hidden]."""
        summed = self.look_up(tokens, ctx.layout)[..., :hidden]
        return self.dropout(ctx.mask_hidden(self.LayerNorm(summed)), ctx.noise)


class ElasticPreTrainedModel(CarriesCode, PreTrainedModel):
    """The base class of sliceable models: loading, saving and initialisation."""

    config_class = ElasticConfig
    carried_classes = automatic_classes("Elastic", "elastic_configuration.ElasticConfig")
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ElasticLayer"]  # noqa: RUF012 (transformers reads a plain list)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ElasticModel):
            # Not in checkpoints, and hence nothing after a start on the meta device.
            init.copy_(module.recover_indices, _recover_indices(module.config))
        super()._init_weights(module)


def _recover_indices(config: ElasticConfig) -> Tensor:
    indices = config.recover_indices
    return torch.arange(config.hidden_size) if indices is None else torch.tensor(indices)


class ElasticModel(ElasticPreTrainedModel):
    """The encoder; ``config.sparsity`` says which sub-model's weights there are."""

    # Checkpoints of students also carry what stands on the encoder.
    _keys_to_ignore_on_load_unexpected = [r"^relation\.", r"^cls\."]  # noqa: RUF012
    recover_indices: Tensor

    def __init__(self, config: ElasticConfig) -> None:
        super().__init__(config)
        shape = config.shape()
        self.embeddings = ElasticEmbeddings(config, shape.hidden)
        self.encoder = _Encoder(config, shape)
        self.pooler = Pooler(config.hidden_size) if config.with_pooler else None
        # int64 [H]. The configuration has it: a parameter of half precision would corrupt it.
        self.register_buffer("recover_indices", _recover_indices(config), persistent=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        sample_ids: Tensor | None = None,
        noise_seed: int = 0,
        sparsity: str | None = None,
        masks: ElementValues | None = None,
        layout: Layout | None = None,
        **unused: Any,
    ) -> EncoderOutput:
        """Encodes a batch with one sub-model.

        Args:
            input_ids: int64 [B, S]. With ``layout``, integers [T].
            attention_mask: bool or int [B, S]; None means no padding.
            token_type_ids: int64 [B, S] segments; None means zeros.
            position_ids: int64 [B, S] or [1, S]; None means 0, 1, ….
            inputs_embeds: instead of the ids' rows of the table of words, as wide as that is.
            output_hidden_states: also return the states between layers, by default as the
                configuration says.
            output_attentions: also return the probabilities of attention, of a batch that came
                padded, by default as the configuration says.
            sample_ids: int64 [B]; in training, dropout is a function of (noise_seed, sample).
                None draws ids from PyTorch's generator.
            noise_seed: the run's seed.
            sparsity: a key of the configuration's map; by default all weights that there are.
            masks: factors of heads' contexts, neurons' activations and hidden dimensions.
            layout: how the tokens lie, of a batch that comes packed; then all that is [B, S] here
                is [T], and there is no mask.
            unused: arguments of other encoders that pipelines pass along.

        Returns:
            Hidden states [B, S, H] in the original order, zeros at padding and at dimensions that
            the sub-model does not have.

        Raises:
            UserError: no such sub-model, or one of more than the weights that there are.
        """
        shape = self.shape_of(sparsity)
        tokens = TokenInputs.of(input_ids, token_type_ids, position_ids, inputs_embeds)
        asked = asked_outputs(self.config, output_hidden_states, output_attentions)
        came_packed, attentions = layout is not None, None
        if layout is None:
            layout = tokens.lay_out(
                attention_mask, keep_padding=False, keep_attentions=asked.attentions
            )
            attentions = layout.attentions
        noise = layout.noise(sample_ids, noise_seed) if self.training else None
        ctx = _ForwardContext(layout, noise, masks)
        states = HiddenStates(layout, asked.hidden_states)

        def keep(hidden: Tensor) -> Tensor:
            if not asked.hidden_states:
                return hidden
            return self.narrow(states.keep(self.recover(hidden)), shape.hidden)

        hidden = self.embeddings(tokens, shape.hidden, ctx)
        recovered = layout.pad(self.recover(self.encoder(hidden, shape, ctx, keep)))
        return EncoderOutput(
            last_hidden_state=recovered,
            pooler_output=None if self.pooler is None or came_packed else self.pooler(recovered),
            hidden_states=states.ending_with(recovered),
            attentions=None if attentions is None else tuple(attentions),
        )

    def shape_of(self, sparsity: str | None = None) -> SubModelShape:
        """Returns the sizes of a sub-model of the weights that there are; by default, of all.

        Raises:
            UserError: no such sub-model, or one of more than the weights that there are.
        """
        available: SubModelShape = self.config.shape()
        if sparsity is None or sparsity == self.config.sparsity:
            return available
        shape: SubModelShape = self.config.shape(sparsity)
        if not shape.fits_in(available):
            raise UserError(
                f"sparsity: {sparsity} has elements that {self.config.sparsity}, whose weights "
                "these are, has not; give the whole model"
            )
        return shape

    def recover(self, hidden: Tensor) -> Tensor:
        """Puts [T, n] back into [T, H]: each dimension at its original place, zeros elsewhere."""
        size, whole_size = hidden.shape[-1], self.config.hidden_size
        if self.config.recover_indices is None:
            return F.pad(hidden, (0, whole_size - size)) if size < whole_size else hidden
        zeros = hidden.new_zeros(*hidden.shape[:-1], whole_size)
        return zeros.index_copy(-1, self.recover_indices[:size], hidden)

    def narrow(self, recovered: Tensor, size: int) -> Tensor:
        """Takes [T, size] out of [T, H] again, the inverse of :meth:`recover`."""
        if self.config.recover_indices is None:
            return recovered[..., :size]
        return recovered.index_select(-1, self.recover_indices[:size])


class ElasticForRelations(RelationPass, ElasticPreTrainedModel):
    """The encoder with the queries, keys and values that the relation loss compares.

    These are maps of its final hidden states; a student of masked LM alone has none.
    """

    def __init__(self, config: ElasticConfig) -> None:
        super().__init__(config)
        self.bert = ElasticModel(config)
        size = config.hidden_size
        self.relation = RelationProjections(size) if config.relation_projections else None
        self.state_map = None
        self.post_init()

    def forward(
        self, input_ids: Tensor, sparsities: Sequence[str] | None = None, **inputs: Any
    ) -> StudentOutput | tuple[StudentOutput, ...]:
        """Runs one pass, or one for each of several sub-models; takes what the encoder takes.

        ``sparsities`` names sub-models of which each gets a pass over the same weights: then one
        output for each, and one backward pass reaches all of them.
        """
        if sparsities is None:
            return self.one_pass(input_ids, **inputs)
        return tuple(self.one_pass(input_ids, **{**inputs, "sparsity": s}) for s in sparsities)
