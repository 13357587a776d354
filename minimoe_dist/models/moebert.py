"""MiniMoE and MiniLM students: BERT encoders whose blocks may be top-1 mixtures of experts.

One encoder serves both: with one expert a block is BERT's plain one, and a student of plain blocks
has exactly the parameters of Hugging Face's ``BertModel``. Parameter names are BERT's; an expert
block's weights are stacked along a first axis. The encoder works on packed tokens (padding takes no
part in any product and is never routed) and pads for attention only.

Shapes: B samples, S positions, T packed tokens, H hidden size, E experts.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from .configuration import MiniMoeConfig
from .experts import (
    Dispatcher,
    ExpertLinear,
    LocalDispatcher,
    Plan,
    Route,
    Router,
    RouterStatistics,
)
from .noise import NoiseKeys, sample_keys
from .packing import Packing


@dataclass
class EncoderOutput(ModelOutput):
    """What the encoder returns.

    Attributes:
        last_hidden_state: [B, S, H]; zeros at padding. None with ``projections_only``.
        pooler_output: [B, H], or None without a pooler.
        queries_keys_values: three [B, S, H] of the last layer, with ``projections_only``.
        routers: statistics per layer and expert block: attention before feed-forward.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    queries_keys_values: tuple[Tensor, Tensor, Tensor] | None = None
    routers: tuple[RouterStatistics, ...] | None = None


class RelationOutput(NamedTuple):
    """``signals`` for the relation loss: query, key, value [B, S, H]; the routers' statistics."""

    signals: tuple[Tensor, Tensor, Tensor]
    routers: tuple[RouterStatistics, ...]


def _linear(config: MiniMoeConfig, experts: int, sizes: tuple[int, int], axis: int, element: int):  # type: ignore[no-untyped-def]
    """A plain map, or stacked ones where the block has several experts."""
    if experts == 1:
        return nn.Linear(*sizes)
    return ExpertLinear(experts, *sizes, split_axis=axis, element_size=element)


class _Dropout:
    """A place in the network where dropout happens, with its number."""

    def __init__(self, probability: float, site: int) -> None:
        self.probability = probability
        self.site = site

    def __call__(self, values: Tensor, noise: NoiseKeys | None) -> Tensor:
        if noise is None or self.probability == 0.0:
            return values
        return noise.dropout(values, self.probability, self.site)


class Embeddings(nn.Module):
    """BERT's sum of word, position and segment embeddings, on packed tokens."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = _Dropout(config.hidden_dropout_prob, site=0)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor, packing: Packing, noise: NoiseKeys | None
    ) -> Tensor:
        """int64 [B, S] twice to [T, H]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        embedded = self.word_embeddings(packing.pack(input_ids))
        embedded = embedded + self.token_type_embeddings(packing.pack(token_type_ids))
        embedded = embedded + self.position_embeddings(packing.pack(positions.expand_as(input_ids)))
        return self.dropout(self.LayerNorm(embedded), noise)


class _Projections(nn.Module):
    """``attention.self`` of BERT's naming: the query, key and value maps."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__()
        size, experts = config.hidden_size, config.attention_experts
        head_size = size // config.num_attention_heads
        self.query = _linear(config, experts, (size, size), 0, head_size)
        self.key = _linear(config, experts, (size, size), 0, head_size)
        self.value = _linear(config, experts, (size, size), 0, head_size)


class _Output(nn.Module):
    """The second map of a block with its dropout and the LayerNorm behind the residual."""

    def __init__(
        self, config: MiniMoeConfig, experts: int, in_features: int, element: int, site: int
    ) -> None:
        super().__init__()
        size = config.hidden_size
        self.dense = _linear(config, experts, (in_features, size), 1, element)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = _Dropout(config.hidden_dropout_prob, site)

    def finish(
        self, out: Tensor, residual: Tensor, route: Route | None, noise: NoiseKeys | None
    ) -> Tensor:
        """Dropout, the expert's probability, residual, LayerNorm."""
        out = self.dropout(out, noise)
        if route is not None:
            out = out * route.probability.to(out.dtype)
        normalized: Tensor = self.LayerNorm(out + residual)
        return normalized


class _Attention(nn.Module):
    """``attention`` of BERT's naming."""

    def __init__(self, config: MiniMoeConfig, site: int) -> None:
        super().__init__()
        head_size = config.hidden_size // config.num_attention_heads
        self.self = _Projections(config)
        self.output = _Output(config, config.attention_experts, config.hidden_size, head_size, site)


class _Intermediate(nn.Module):
    """``intermediate`` of BERT's naming: the first feed-forward map and its activation."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__()
        sizes = (config.hidden_size, config.intermediate_size)
        self.dense = _linear(config, config.feedforward_experts, sizes, 0, 1)
        self.activation = ACT2FN[config.hidden_act]


class Layer(nn.Module):
    """One encoder layer; attention and feed-forward are each plain or a mixture of experts."""

    sites = 5  # attention probabilities, two block outputs, two routers

    def __init__(self, config: MiniMoeConfig, index: int) -> None:
        super().__init__()
        first_site = 1 + self.sites * index
        self.num_heads = config.num_attention_heads
        self.attention_dropout = _Dropout(config.attention_probs_dropout_prob, first_site)
        self.attention = _Attention(config, first_site + 1)
        self.intermediate = _Intermediate(config)
        self.output = _Output(
            config, config.feedforward_experts, config.intermediate_size, 1, first_site + 2
        )
        self.dispatcher: Dispatcher = LocalDispatcher()
        size, noise = config.hidden_size, config.router_noise
        if config.attention_experts > 1:
            self.attn_gate = Router(size, config.attention_experts, noise, first_site + 3)
        if config.feedforward_experts > 1:
            self.ffn_gate = Router(size, config.feedforward_experts, noise, first_site + 4)

    def forward(
        self, hidden: Tensor, packing: Packing, noise: NoiseKeys | None
    ) -> tuple[Tensor, tuple[RouterStatistics, ...]]:
        """[T, H] to [T, H], and the routers' statistics."""
        attended, attention_route = self._attend(hidden, packing, noise)
        fed, feedforward_route = self._feed_forward(attended, noise)
        routes = (attention_route, feedforward_route)
        return fed, tuple(route.statistics for route in routes if route is not None)

    def project(self, hidden: Tensor, plan: Plan | None) -> Tensor:
        """Queries, keys and values side by side: [T, H] to [T, 3H]."""
        maps = self.attention.self
        if plan is None:
            return torch.cat([maps.query(hidden), maps.key(hidden), maps.value(hidden)], -1)
        counts, rows = plan.tokens_per_expert, plan.to_experts(hidden)
        parts = [m(rows, counts) for m in (maps.query, maps.key, maps.value)]
        return plan.to_tokens(torch.cat(parts, -1))  # one exchange instead of three

    def _attend(
        self, hidden: Tensor, packing: Packing, noise: NoiseKeys | None
    ) -> tuple[Tensor, Route | None]:
        output = self.attention.output
        route, plan = self._route("attn_gate", hidden, noise)
        context = self._context(self.project(hidden, plan), packing, noise)
        if plan is None:
            out = output.dense(context)
        else:
            rows = plan.to_experts(context)
            out = plan.to_tokens(output.dense(rows, plan.tokens_per_expert))
        return output.finish(out, hidden, route, noise), route

    def _context(self, projected: Tensor, packing: Packing, noise: NoiseKeys | None) -> Tensor:
        """Scaled dot-product attention over the padded batch: [T, 3H] to [T, H]."""
        heads = packing.pad(projected).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        bias = packing.key_bias.to(query.dtype)
        if noise is None or self.attention_dropout.probability == 0.0:
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        else:
            scores = query @ key.transpose(-1, -2) * (1.0 / math.sqrt(query.shape[-1])) + bias
            probability, site = self.attention_dropout.probability, self.attention_dropout.site
            context = noise.dropout_attention(scores.softmax(-1), probability, site) @ value
        return packing.pack(context.transpose(1, 2).flatten(2))

    def _feed_forward(self, hidden: Tensor, noise: NoiseKeys | None) -> tuple[Tensor, Route | None]:
        first, second = self.intermediate, self.output
        route, plan = self._route("ffn_gate", hidden, noise)
        if plan is None:
            out = second.dense(first.activation(first.dense(hidden)))
        else:
            counts = plan.tokens_per_expert
            inner = first.activation(first.dense(plan.to_experts(hidden), counts))
            out = plan.to_tokens(second.dense(inner, counts))
        return second.finish(out, hidden, route, noise), route

    def _route(
        self, name: str, hidden: Tensor, noise: NoiseKeys | None
    ) -> tuple[Route | None, Plan | None]:
        gate = getattr(self, name, None)
        if gate is None:
            return None, None
        route = gate(hidden, noise)
        return route, self.dispatcher.plan(route.expert, gate.out_features)


class _Encoder(nn.Module):
    """``encoder`` of BERT's naming."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))

    def layers(self) -> list[Layer]:
        """In order."""
        return [layer for layer in self.layer if isinstance(layer, Layer)]


class _Pooler(nn.Module):
    """BERT's pooler: a map and tanh on the first position."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden[:, 0]))


class MiniMoePreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config_class = MiniMoeConfig
    base_model_prefix = "bert"
    _supports_sdpa = True
    _no_split_modules = ["Layer"]  # noqa: RUF012 (transformers reads a plain list)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        spread = self.config.initializer_range
        if isinstance(module, ExpertLinear):
            module.initialize(spread)
        elif isinstance(module, Router):
            # Routers begin as PyTorch's default linear layers do, biases too.
            bound = 1.0 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)


class MiniMoeModel(MiniMoePreTrainedModel):
    """The encoder."""

    # An export also carries the maps of the relation loss.
    _keys_to_ignore_on_load_unexpected = [r"^relation\."]  # noqa: RUF012

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = _Encoder(config)
        self.pooler = _Pooler(config) if config.with_pooler else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        sample_ids: Tensor | None = None,
        noise_seed: int = 0,
        projections_only: bool = False,
        **unused: Any,
    ) -> EncoderOutput:
        """Encodes a batch.

        Args:
            input_ids: int64 [B, S]; B may be 0, and a sample nothing but padding.
            attention_mask: bool or int [B, S]; None means no padding.
            token_type_ids: int64 [B, S] segments; None means zeros.
            sample_ids: int64 [B]; in training, dropout and router noise are a function of
                (noise_seed, sample). None draws ids from PyTorch's generator.
            noise_seed: the run's seed.
            projections_only: stop at the last layer's queries, keys and values, which is all that
                the relation loss of a plain student reads; refused where attention has experts.
            unused: arguments of other encoders that pipelines pass along.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        packing = Packing(attention_mask.bool(), self.config.route_padding)
        noise = self._noise(input_ids, sample_ids, noise_seed, packing)
        hidden = self.embeddings(input_ids, token_type_ids, packing, noise)
        *earlier, last = self.encoder.layers()
        routers: list[RouterStatistics] = []
        for layer in earlier:
            hidden, statistics = layer(hidden, packing, noise)
            routers.extend(statistics)
        if projections_only:
            assert self.config.attention_experts == 1, "an expert's choice would go unscaled"
            query, key, value = packing.pad(last.project(hidden, None)).chunk(3, -1)
            return EncoderOutput(queries_keys_values=(query, key, value), routers=tuple(routers))
        hidden, statistics = last(hidden, packing, noise)
        padded = packing.pad(hidden)
        return EncoderOutput(
            last_hidden_state=padded,
            pooler_output=None if self.pooler is None else self.pooler(padded),
            routers=(*routers, *statistics),
        )

    def _noise(
        self, input_ids: Tensor, sample_ids: Tensor | None, seed: int, packing: Packing
    ) -> NoiseKeys | None:
        if not self.training:
            return None
        if sample_ids is None:
            sample_ids = torch.randint(2**62, input_ids.shape[:1]).to(input_ids.device)
        return NoiseKeys(sample_keys(seed, sample_ids, input_ids.shape[1]), packing.rows)


class _RelationProjections(nn.Module):
    """Three H → H maps of the final hidden states."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)


class MiniMoeForRelations(MiniMoePreTrainedModel):
    """The encoder with the queries, keys and values that the relation loss compares."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__(config)
        self.bert = MiniMoeModel(config)
        size = config.hidden_size
        self.relation = _RelationProjections(size) if config.relation_projections else None
        self.post_init()

    def forward(self, input_ids: Tensor, **inputs: Any) -> RelationOutput:
        """Takes what :meth:`MiniMoeModel.forward` takes."""
        if self.relation is None:
            encoded = self.bert(input_ids, projections_only=True, **inputs)
            signals = encoded.queries_keys_values
        else:
            encoded = self.bert(input_ids, **inputs)
            maps, hidden = self.relation, encoded.last_hidden_state
            signals = (maps.query(hidden), maps.key(hidden), maps.value(hidden))
        return RelationOutput(signals, encoded.routers)
