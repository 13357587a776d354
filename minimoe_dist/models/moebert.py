"""MiniMoE and MiniLM students: BERT encoders whose blocks may be top-1 mixtures of experts.

One encoder serves both: with one expert a block is BERT's plain one, and a student of plain blocks
has exactly the parameters of Hugging Face's ``BertModel``. Parameter names are BERT's; an expert
block's weights are stacked along a first axis. The encoder works on packed tokens: padding takes no
part in any product and is never routed.

Shapes: B samples, S positions, T packed tokens, H hidden size, E experts.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from .blocks import (
    Embeddings,
    EncoderOutput,
    HiddenStates,
    Pooler,
    RelationPass,
    RelationProjections,
    TokenInputs,
    asked_outputs,
)
from .carried_code import CarriesCode, automatic_classes
from .configuration import MiniMoeConfig
from .encoder import Encoder
from .experts import ExpertLinear, Router, RouterStatistics
from .packing import Layout


class MiniMoePreTrainedModel(CarriesCode, PreTrainedModel):
    """The base class of MiniMoE students: loading, saving and initialisation."""

    config_class = MiniMoeConfig
    carried_classes = automatic_classes("MiniMoe", "configuration.MiniMoeConfig")
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # transformers reads plain lists.
    _no_split_modules = ["Layer"]  # noqa: RUF012
    # Exports also carry the maps of the relation loss and a masked-LM head.
    _keys_to_ignore_on_load_unexpected = [r"^relation\.", r"^cls\."]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ExpertLinear):
            module.initialize(self.config.initializer_range)
        elif isinstance(module, Router):
            # Routers begin as PyTorch's default linear layers do, biases too.
            bound = 1.0 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)


class MiniMoeModel(MiniMoePreTrainedModel):
    """The encoder of a student: embeddings, layers with or without experts, perhaps a pooler."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config.hidden_size) if config.with_pooler else None
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
        output_routers: bool | None = None,
        sample_ids: Tensor | None = None,
        noise_seed: int = 0,
        projections_only: bool = False,
        output_states: bool = False,
        layout: Layout | None = None,
        **unused: Any,
    ) -> EncoderOutput:
        """Encodes a batch.

        Args:
            input_ids: int64 [B, S]; B may be 0, and a sample nothing but padding. With ``layout``,
                integers [T].
            attention_mask: bool or int [B, S]; None means no padding.
            token_type_ids: int64 [B, S] segments; None means zeros. Not read by RoBERTa's family.
            position_ids: int64 [B, S] or [1, S]; None means that the family counts them.
            inputs_embeds: [B, S, H] instead of the ids' rows of the table of words.
            output_hidden_states: also return the states between layers, by default as the
                configuration says.
            output_attentions: also return the probabilities of attention, of a batch that came
                padded, by default as the configuration says.
            output_routers: also return the routers' statistics, by default in training.
            sample_ids: int64 [B]; in training, dropout and router noise are a function of
                (noise_seed, sample). None draws ids from PyTorch's generator.
            noise_seed: the run's seed.
            projections_only: stop at the last layer's queries, keys and values, which is all that
                the relation loss of a plain student reads; refused where attention has experts.
            output_states: also return the embeddings' output and the last layer's queries, keys and
                values, for objectives that compare more than relations.
            layout: how the tokens lie, of a batch that comes packed; then all that is [B, S] here
                is [T], and there is no mask.
            unused: arguments of other encoders that pipelines pass along.
        """
        tokens = TokenInputs.of(input_ids, token_type_ids, position_ids, inputs_embeds)
        asked = asked_outputs(self.config, output_hidden_states, output_attentions)
        if output_routers is None:
            output_routers = self.training
        came_packed, attentions = layout is not None, None
        if layout is None:
            layout = tokens.lay_out(
                attention_mask,
                keep_padding=self.config.route_padding,
                keep_attentions=asked.attentions,
            )
            attentions = layout.attentions
        noise = layout.noise(sample_ids, noise_seed) if self.training else None
        states = HiddenStates(layout, asked.hidden_states)
        embedded = self.embeddings(tokens, layout, noise)
        hidden = states.keep(embedded)
        *earlier, last = self.encoder.layers()
        routers: list[RouterStatistics] = []
        for layer in earlier:
            hidden, statistics, _ = layer(hidden, layout, noise)
            hidden = states.keep(hidden)
            routers.extend(statistics)
        if projections_only:
            assert self.config.attention_experts == 1, "an expert's choice would go unscaled"
            signals = _split_projections(layout.pad(last.projections(hidden)))
            return EncoderOutput(
                queries_keys_values=signals, routers=tuple(routers) if output_routers else None
            )
        hidden, statistics, projected = last(hidden, layout, noise, output_states)
        padded = layout.pad(self.encoder.finish(hidden))
        return EncoderOutput(
            last_hidden_state=padded,
            pooler_output=self.pooler(padded) if self.pooler and not came_packed else None,
            hidden_states=states.ending_with(padded),
            attentions=None if attentions is None else tuple(attentions),
            embedding_output=layout.pad(embedded) if output_states else None,
            queries_keys_values=_split_projections(layout.pad(projected))
            if output_states
            else None,
            routers=(*routers, *statistics) if output_routers else None,
        )


def _split_projections(projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Splits [B, S, 3H] into query, key and value, each [B, S, H]."""
    query, key, value = projected.chunk(3, -1)
    return query, key, value


class MiniMoeForRelations(RelationPass, MiniMoePreTrainedModel):
    """The encoder with the queries, keys and values that the relation loss compares."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__(config)
        self.bert = MiniMoeModel(config)
        size = config.hidden_size
        self.relation = RelationProjections(size) if config.relation_projections else None
        width = config.state_width
        self.state_map = None if width is None else nn.Linear(size, width)
        self.post_init()
