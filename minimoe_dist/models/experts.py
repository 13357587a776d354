"""Top-1 experts: the router, stacked expert weights, and the grouped product over sorted tokens.

MiniMoE (ACL 2023, section 3): every token goes to the one expert its router likes best, nothing is
dropped, and the block's output is scaled by that expert's probability. A block never knows about
ranks: it asks its dispatcher to bring tokens to experts and back; the one here keeps them at home,
the one of expert parallelism exchanges them.

Shapes: T packed tokens, E experts of the block, L experts held here, H hidden size.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .errors import UserError
from .noise import NoiseKeys


class RouterStatistics(NamedTuple):
    """The sums over one block's tokens that the balance loss is made of.

    Attributes:
        probability_sum: float32 [E], sum of router probabilities over this rank's tokens; carries
            the gradient.
        token_count: float32 [E], tokens sent to each expert by this rank; no gradient.
    """

    probability_sum: Tensor
    token_count: Tensor


class Route(NamedTuple):
    """The expert that each token goes to: ``expert`` int64 [T], its ``probability`` float32 [T, 1].

    A named tuple, since ZeRO-3's hooks look for a module's tensors in tuples.
    """

    expert: Tensor
    probability: Tensor
    statistics: RouterStatistics


class Plan:
    """A dispatcher's answer for one block and micro-batch: the way to the experts and back.

    Attributes:
        products: what the block's maps are called with beside their rows; of :class:`ExpertLinear`
            a function of (rows, weight, bias).
    """

    products: Any

    def to_experts(self, tokens: Tensor) -> Tensor:
        """Brings rows [T, C] from home to rows [T', C] sorted by the experts held here."""
        raise NotImplementedError

    def to_tokens(self, rows: Tensor) -> Tensor:
        """Brings rows home, the inverse of :meth:`to_experts`."""
        raise NotImplementedError

    def into(self, linears: Sequence[nn.Module], tokens: Tensor) -> Tensor:
        """Maps tokens [T, C] to rows [T', …], several maps side by side, left with the experts."""
        rows = self.to_experts(tokens)
        outputs = [linear(rows, self.products) for linear in linears]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)

    def out_of(self, linear: nn.Module, rows: Tensor) -> Tensor:
        """Maps what :meth:`into` left, [T', …], and brings it home, [T, C]."""
        return self.to_tokens(linear(rows, self.products))

    def across(self, linears: Sequence[nn.Module], tokens: Tensor) -> Tensor:
        """Maps tokens at their experts and brings them home: one exchange instead of several."""
        return self.to_tokens(self.into(linears, tokens))


class Dispatcher(Protocol):
    """Brings tokens to experts; the only thing of a block that may know about ranks."""

    def plan(self, expert: Tensor, num_experts: int) -> Plan:
        """Plans an exchange for ``expert`` int64 [T]."""


class _LocalPlan(Plan):
    def __init__(self, expert: Tensor, num_experts: int) -> None:
        self._order = torch.argsort(expert, stable=True)
        self._inverse = torch.empty_like(self._order)
        self._inverse[self._order] = torch.arange(expert.numel(), device=expert.device)
        self.tokens_per_expert = torch.bincount(expert, minlength=num_experts)
        self.products = partial(grouped_linear, tokens_per_expert=self.tokens_per_expert)

    def to_experts(self, tokens: Tensor) -> Tensor:
        return permute_rows(tokens, self._order, self._inverse)

    def to_tokens(self, rows: Tensor) -> Tensor:
        return permute_rows(rows, self._inverse, self._order)


class LocalDispatcher:
    """The dispatcher where all experts are here: it sorts tokens by expert, and back."""

    def plan(self, expert: Tensor, num_experts: int) -> Plan:
        return _LocalPlan(expert, num_experts)


class EveryExpertPlan(Plan):
    """Every expert maps every token, which keeps its own expert's result: no size is the data's.

    Args:
        expert: int64 [T]; E means none, and any expert's result.
        num_experts: E.
    """

    def __init__(self, expert: Tensor, num_experts: int) -> None:
        self._expert = expert.clamp(max=num_experts - 1)
        self._num_experts = num_experts
        self.products = _every_linear

    def to_experts(self, tokens: Tensor) -> Tensor:
        """Repeats tokens [T, C] as [E, T, C]."""
        return tokens.expand(self._num_experts, *tokens.shape)

    def to_tokens(self, rows: Tensor) -> Tensor:
        """Chooses [T, C] of [E, T, C]."""
        index = self._expert[None, :, None].expand(1, -1, rows.shape[-1])
        return rows.gather(0, index).squeeze(0)


def _every_linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Applies each expert's map to its copy of the rows: [E, T, in] to [E, T, out]."""
    return torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2))


class _PermuteRows(torch.autograd.Function):
    """Row permutation whose backward is a gather too (index_select's own is a slow scatter-add)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0].index_select(0, inverse), None, None


def permute_rows(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Returns ``rows[order]``, for a permutation ``order`` int64 [T] with its ``inverse``."""
    result: Tensor = _PermuteRows.apply(rows, order, inverse)
    return result


class Router(nn.Linear):
    """Biased linear map H → E with a softmax, in float32 whatever the weights' precision.

    ``router_noise`` is the seed's ε: in training, uniform noise of [1 − ε, 1 + ε] is added to the
    logits.
    """

    def __init__(self, hidden_size: int, num_experts: int, router_noise: float, site: int) -> None:
        super().__init__(hidden_size, num_experts)
        self.router_noise = router_noise
        self.site = site

    def forward(  # type: ignore[override]
        self, tokens: Tensor, noise: NoiseKeys | None, real: Tensor | None = None
    ) -> Route:
        """Routes ``tokens`` [T, H].

        Args:
            tokens: what the experts read.
            noise: None outside training.
            real: bool [T]; rows that are no tokens go to no expert, whose number is E, and do not
                count. None: all are tokens.
        """
        logits = F.linear(tokens.float(), self.weight.float(), self.bias.float())
        if noise is not None and self.router_noise > 0.0:
            uniform = noise.uniform(logits.shape[-1], self.site)
            logits = logits + (1.0 - self.router_noise) + 2.0 * self.router_noise * uniform
        probabilities = logits.softmax(-1)
        expert = probabilities.argmax(-1)
        chosen = expert[:, None] == torch.arange(self.out_features, device=expert.device)
        probability = (probabilities * chosen).sum(-1, keepdim=True)
        if real is not None:
            chosen = chosen & real[:, None]
            probabilities = probabilities * real[:, None]
            expert = torch.where(real, expert, self.out_features)
        statistics = RouterStatistics(probabilities.sum(0), chosen.sum(0, dtype=torch.float32))
        return Route(expert, probability, statistics)


def expert_elements(num_elements: int, num_experts: int) -> Tensor:
    """Deals the elements (heads or neurons) of a dense block to experts.

    The first ⌊2n/3⌋ of the block's elements go to every expert, the rest are dealt out in turn
    (n = num_elements / num_experts).

    Returns:
        int64 [num_experts, n].
    """
    if num_elements % num_experts:
        raise UserError(
            f"cannot split {num_elements} elements into {num_experts} experts: "
            f"use a block whose size is a multiple of {num_experts}"
        )
    per_expert = num_elements // num_experts
    shared = 2 * per_expert // 3
    dealt = torch.arange(per_expert - shared) * num_experts + shared
    return torch.stack(
        [torch.cat([torch.arange(shared), dealt + expert]) for expert in range(num_experts)]
    )


def split_dense(weight: Tensor, num_experts: int, *, axis: int, element_size: int = 1) -> Tensor:
    """Splits a dense block's weight or bias into experts.

    Args:
        weight: [out, in] or [out].
        num_experts: E.
        axis: the axis that holds the elements: 0 for maps split by output, 1 by input.
        element_size: rows or columns of one element: the head size for attention, 1 for neurons.

    Returns:
        [E, …], the split axis E times shorter.
    """
    elements = expert_elements(weight.shape[axis] // element_size, num_experts)
    offsets = torch.arange(element_size)
    indices = (elements[:, :, None] * element_size + offsets).flatten(1).to(weight.device)
    return torch.stack([weight.index_select(axis, index) for index in indices])


class ExpertLinear(nn.Module):
    """E linear maps stacked: ``weight`` [E, out, in], ``bias`` [E, out].

    ``split_axis`` and ``element_size`` say how a dense map becomes these (:func:`split_dense`); a
    fresh student starts as such a split of a random block of E times the width.
    """

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        out_features: int,
        *,
        split_axis: int,
        element_size: int,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.split_axis = split_axis
        self.element_size = element_size
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_experts, out_features))

    def initialize(self, standard_deviation: float) -> None:
        """Draws a dense block N(0, standard_deviation) and splits it; biases become zero."""
        shape = list(self.weight.shape[1:])
        shape[self.split_axis] *= self.num_experts
        dense = torch.empty(shape).normal_(std=standard_deviation)
        init.copy_(self.weight, self.split(dense))
        init.zeros_(self.bias)

    def split(self, dense_weight: Tensor) -> Tensor:
        """Makes this layer's weights [E, out, in] of those of a block of E times the width."""
        return split_dense(
            dense_weight, self.num_experts, axis=self.split_axis, element_size=self.element_size
        )

    def forward(self, rows: Tensor, products: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Maps rows [T', in] to [T', out] by a plan's products."""
        return products(rows, self.weight, self.bias)


def grouped_linear(rows: Tensor, weight: Tensor, bias: Tensor, tokens_per_expert: Tensor) -> Tensor:
    """Applies to each group of rows the linear map of its expert.

    Experts without a token take part with empty products, so that their gradients are zeros and
    never None: a rank that skipped them would leave its peers waiting in a collective.

    Args:
        rows: [T, in], sorted by expert.
        weight: [L, out, in].
        bias: [L, out].
        tokens_per_expert: int64 [L], sums to T.

    Returns:
        [T, out].
    """
    result: Tensor = _GroupedLinear.apply(rows, weight, bias, tokens_per_expert)
    return result


class _GroupedLinear(torch.autograd.Function):
    """A product per expert, written in place: as fast as one dense product on CPU."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, counts: Tensor) -> Tensor:
        sizes = counts.tolist()
        out = rows.new_empty(rows.shape[0], weight.shape[1])
        groups = zip(rows.split(sizes), out.split(sizes), weight, bias, strict=True)
        for group_rows, group_out, expert_weight, expert_bias in groups:
            torch.addmm(expert_bias, group_rows, expert_weight.t(), out=group_out)
        ctx.save_for_backward(rows, weight)
        ctx.sizes = sizes
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        row_gradient, weight_gradient = torch.empty_like(rows), torch.empty_like(weight)
        bias_gradient = weight.new_empty(weight.shape[:2])
        groups = zip(
            rows.split(ctx.sizes),
            row_gradient.split(ctx.sizes),
            gradient.split(ctx.sizes),
            strict=True,
        )
        for expert, (group_rows, group_gradient, upstream) in enumerate(groups):
            torch.mm(upstream, weight[expert], out=group_gradient)
            torch.mm(upstream.t(), group_rows, out=weight_gradient[expert])
            torch.sum(upstream, 0, out=bias_gradient[expert])
        return row_gradient, weight_gradient, bias_gradient, None
