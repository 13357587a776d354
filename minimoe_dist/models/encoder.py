"""The layers of the students' encoder, each block plain or a top-1 mixture of experts.

Families differ here in one thing: BERT and RoBERTa normalise behind a block's residual (modules
``LayerNorm``), MegatronBert what a block reads and the last layer's output (modules ``ln``).

Shapes: B samples, S positions, T packed tokens, H hidden size, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .blocks import Dropout, apply_if_present, project_jointly
from .configuration import MiniMoeConfig
from .experts import (
    Dispatcher,
    ExpertLinear,
    Plan,
    Route,
    Router,
    RouterStatistics,
)
from .noise import NoiseKeys
from .packing import Layout


class LayerOutput(NamedTuple):
    """The outputs of one layer.

    Attributes:
        hidden: [T, H].
        routers: statistics, attention before feed-forward.
        projected: [T, 3H] queries, keys and values side by side, where they were asked for.
    """

    hidden: Tensor
    routers: tuple[RouterStatistics, ...]
    projected: Tensor | None


def _linear(
    experts: int, sizes: tuple[int, int], split_axis: int, element_size: int
) -> nn.Linear | ExpertLinear:
    """Makes a plain linear map, or stacked ones where the block has several experts."""
    if experts == 1:
        return nn.Linear(*sizes)
    return ExpertLinear(experts, *sizes, split_axis=split_axis, element_size=element_size)


class _Projections(nn.Module):
    """``attention.self`` of BERT's naming: the query, key and value maps."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__()
        size, experts = config.hidden_size, config.attention_experts
        head_size = size // config.num_attention_heads
        self.query = _linear(experts, (size, size), 0, head_size)
        self.key = _linear(experts, (size, size), 0, head_size)
        self.value = _linear(experts, (size, size), 0, head_size)
        self.joined: nn.Module | None = None

    def join(self) -> None:
        """Joins the three plain maps into one, of an encoder that is not trained any more."""
        projections = (self.query, self.key, self.value)
        linears = [linear for linear in projections if isinstance(linear, nn.Linear)]
        if len(linears) < len(projections):
            return
        joined = nn.Linear(
            linears[0].in_features, sum(linear.out_features for linear in linears), device="meta"
        )
        joined.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]))
        joined.bias = nn.Parameter(torch.cat([linear.bias.detach() for linear in linears]))
        self.joined = joined
        del self.query, self.key, self.value


class _Output(nn.Module):
    """The second map of a block, its dropout, the residual and BERT's LayerNorm behind it."""

    def __init__(
        self, config: MiniMoeConfig, experts: int, in_features: int, element_size: int, site: int
    ) -> None:
        super().__init__()
        size = config.hidden_size
        self.dense = _linear(experts, (in_features, size), 1, element_size)
        if not config.normalizes_input:
            self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob, site)

    def finish(
        self, out: Tensor, residual: Tensor, route: Route | None, noise: NoiseKeys | None
    ) -> Tensor:
        """Applies dropout, the expert's probability, the residual and LayerNorm to [T, H]."""
        out = self.dropout(out, noise)
        if route is not None:
            out = out * route.probability.to(out.dtype)
        return apply_if_present(self, "LayerNorm", out + residual)


class _Attention(nn.Module):
    """``attention`` of BERT's naming."""

    def __init__(self, config: MiniMoeConfig, site: int) -> None:
        super().__init__()
        head_size = config.hidden_size // config.num_attention_heads
        if config.normalizes_input:
            self.ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self = _Projections(config)
        self.output = _Output(config, config.attention_experts, config.hidden_size, head_size, site)


class _Intermediate(nn.Module):
    """``intermediate`` of BERT's naming: the first feed-forward map and its activation."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__()
        sizes = (config.hidden_size, config.intermediate_size)
        self.dense = _linear(config.feedforward_experts, sizes, 0, 1)
        self.activation = ACT2FN[config.hidden_act]


class Layer(GradientCheckpointingLayer):
    """One encoder layer; attention and feed-forward are each plain or a mixture of experts."""

    sites = 5  # attention probabilities, two block outputs, two routers

    def __init__(self, config: MiniMoeConfig, index: int) -> None:
        super().__init__()
        first_site = 1 + self.sites * index
        self.num_heads = config.num_attention_heads
        self.attention_dropout = Dropout(config.attention_probs_dropout_prob, first_site)
        self.attention = _Attention(config, first_site + 1)
        if config.normalizes_input:
            self.ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = _Intermediate(config)
        self.output = _Output(
            config, config.feedforward_experts, config.intermediate_size, 1, first_site + 2
        )
        self.dispatcher: Dispatcher | None = None  # given where not all experts are here
        size, noise = config.hidden_size, config.router_noise
        if config.attention_experts > 1:
            self.attn_gate = Router(size, config.attention_experts, noise, first_site + 3)
        if config.feedforward_experts > 1:
            self.ffn_gate = Router(size, config.feedforward_experts, noise, first_site + 4)

    def forward(
        self,
        hidden: Tensor,
        layout: Layout,
        noise: NoiseKeys | None,
        with_projections: bool = False,
    ) -> LayerOutput:
        """Encodes [T, H]; ``with_projections`` also hands out the queries, keys and values."""
        attended, projected, attention_route = self._attend(hidden, layout, noise)
        output, feedforward_route = self._feed_forward(attended, layout, noise)
        routes = (attention_route, feedforward_route)
        statistics = tuple(route.statistics for route in routes if route is not None)
        return LayerOutput(output, statistics, projected if with_projections else None)

    def projections(self, hidden: Tensor) -> Tensor:
        """Projects [T, H] to queries, keys and values side by side, [T, 3H], by plain attention."""
        return self._project(apply_if_present(self.attention, "ln", hidden), None)

    def _project(self, tokens: Tensor, plan: Plan | None) -> Tensor:
        projections = self.attention.self
        if projections.joined is not None:
            joined: Tensor = projections.joined(tokens)
            return joined
        linears = (projections.query, projections.key, projections.value)
        if plan is not None:
            return plan.across(linears, tokens)
        return project_jointly(tokens, linears)  # type: ignore[arg-type]

    def _attend(
        self, hidden: Tensor, layout: Layout, noise: NoiseKeys | None
    ) -> tuple[Tensor, Tensor, Route | None]:
        output, dropout = self.attention.output, self.attention_dropout
        tokens = apply_if_present(self.attention, "ln", hidden)
        route, plan = self._route("attn_gate", tokens, layout, noise)
        qkv = self._project(tokens, plan)
        context = layout.attend(qkv, self.num_heads, noise, dropout.probability, dropout.site)
        dense = output.dense
        out = dense(context) if plan is None else plan.across((dense,), context)
        return output.finish(out, hidden, route, noise), qkv, route

    def _feed_forward(
        self, hidden: Tensor, layout: Layout, noise: NoiseKeys | None
    ) -> tuple[Tensor, Route | None]:
        intermediate, output = self.intermediate, self.output
        tokens = apply_if_present(self, "ln", hidden)
        route, plan = self._route("ffn_gate", tokens, layout, noise)
        if plan is None:
            out = output.dense(intermediate.activation(intermediate.dense(tokens)))
        else:
            inner = intermediate.activation(plan.into((intermediate.dense,), tokens))
            out = plan.out_of(output.dense, inner)
        return output.finish(out, hidden, route, noise), route

    def _route(
        self, name: str, tokens: Tensor, layout: Layout, noise: NoiseKeys | None
    ) -> tuple[Route | None, Plan | None]:
        gate = getattr(self, name, None)
        if gate is None:
            return None, None
        route = gate(tokens, noise, layout.real)  # a router reads what its experts read
        return route, (self.dispatcher or layout).plan(route.expert, gate.out_features)


class Encoder(nn.Module):
    """``encoder`` of BERT's naming: the layers, and MegatronBert's LayerNorm behind them."""

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        if config.normalizes_input:
            self.ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def layers(self) -> list[Layer]:
        """Returns the layers, beginning with the one that reads the embeddings."""
        return [layer for layer in self.layer if isinstance(layer, Layer)]

    def finish(self, hidden: Tensor) -> Tensor:
        """Applies the LayerNorm behind the last layer, where the family has one."""
        return apply_if_present(self, "ln", hidden)
