"""Top-1 experts: the router, stacked expert weights, and the grouped product over sorted tokens.

MiniMoE (ACL 2023, section 3): every token goes to the one expert its router likes best, nothing is
dropped, and the block's output is scaled by that expert's probability. A block never knows about
ranks: it asks its dispatcher to bring tokens to experts and back; the one here keeps them at home,
the one of expert parallelism exchanges them.

Shapes: T packed tokens, E experts of the block, L experts held here, H hidden size.
"""

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .noise import NoiseKeys


class RouterStatistics(NamedTuple):
    """What the balance loss needs of one block.

    Attributes:
        probability_sum: float32 [E], sum of router probabilities over this rank's tokens; carries
            the gradient.
        token_count: float32 [E], tokens sent to each expert by this rank; no gradient.
    """

    probability_sum: Tensor
    token_count: Tensor


class Route(NamedTuple):
    """Where each token goes: ``expert`` int64 [T], its ``probability`` float32 [T, 1].

    A named tuple, since ZeRO-3's hooks look for a module's tensors in tuples.
    """

    expert: Tensor
    probability: Tensor
    statistics: RouterStatistics


class Plan(Protocol):
    """A dispatcher's answer for one block and micro-batch."""

    def to_experts(self, tokens: Tensor) -> Tensor:
        """Rows [T, C] at home to rows [T', C] sorted by the experts held here."""

    def to_tokens(self, rows: Tensor) -> Tensor:
        """The inverse of :meth:`to_experts`."""

    @property
    def tokens_per_expert(self) -> Tensor:
        """int64 [L]: how many of the T' rows belong to each expert held here."""


class Dispatcher(Protocol):
    """Brings tokens to experts; the only thing of a block that may know about ranks."""

    def plan(self, expert: Tensor, num_experts: int) -> Plan:
        """Plans an exchange for ``expert`` int64 [T]."""


class _LocalPlan:
    def __init__(self, expert: Tensor, num_experts: int) -> None:
        self._order = torch.argsort(expert, stable=True)
        self._inverse = torch.empty_like(self._order)
        self._inverse[self._order] = torch.arange(expert.numel(), device=expert.device)
        self.tokens_per_expert = torch.bincount(expert, minlength=num_experts)

    def to_experts(self, tokens: Tensor) -> Tensor:
        return permute_rows(tokens, self._order, self._inverse)

    def to_tokens(self, rows: Tensor) -> Tensor:
        return permute_rows(rows, self._inverse, self._order)


class LocalDispatcher:
    """All experts are here: sort the tokens by expert, and back."""

    def plan(self, expert: Tensor, num_experts: int) -> Plan:
        return _LocalPlan(expert, num_experts)


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
    """``rows[order]`` for a permutation ``order`` int64 [T] with its ``inverse``."""
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

    def forward(self, tokens: Tensor, noise: NoiseKeys | None) -> Route:  # type: ignore[override]
        """Routes ``tokens`` [T, H]; ``noise`` is None outside training."""
        logits = F.linear(tokens.float(), self.weight.float(), self.bias.float())
        if noise is not None and self.router_noise > 0.0:
            uniform = noise.uniform(logits.shape[-1], self.site)
            logits = logits + (1.0 - self.router_noise) + 2.0 * self.router_noise * uniform
        probabilities = logits.softmax(-1)
        probability, expert = probabilities.max(-1, keepdim=True)
        expert = expert.squeeze(-1)
        count = torch.bincount(expert, minlength=self.out_features).float()
        return Route(expert, probability, RouterStatistics(probabilities.sum(0), count))


def expert_elements(num_elements: int, num_experts: int) -> Tensor:
    """Which elements (heads or neurons) of a dense block each expert gets.

    The first ⌊2n/3⌋ of the block's elements go to every expert, the rest are dealt out in turn
    (n = num_elements / num_experts).

    Returns:
        int64 [num_experts, n].
    """
    if num_elements % num_experts:
        raise ValueError(
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
    within = torch.arange(element_size)
    indices = (elements[:, :, None] * element_size + within).flatten(1).to(weight.device)
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
        """This layer's weights [E, out, in] from those of a block of E times the width."""
        return split_dense(
            dense_weight, self.num_experts, axis=self.split_axis, element_size=self.element_size
        )

    def split_bias(self, dense_bias: Tensor) -> Tensor:
        """Biases [E, out]: split with the outputs, or copied where only the inputs are split."""
        if self.split_axis == 0:
            return split_dense(dense_bias, self.num_experts, axis=0, element_size=self.element_size)
        return dense_bias.expand(self.num_experts, -1).clone()

    def forward(self, rows: Tensor, tokens_per_expert: Tensor) -> Tensor:
        """Maps ``rows`` [T', in], ``tokens_per_expert`` int64 [L] of them, to [T', out]."""
        return grouped_linear(rows, self.weight, self.bias, tokens_per_expert)


def grouped_linear(rows: Tensor, weight: Tensor, bias: Tensor, tokens_per_expert: Tensor) -> Tensor:
    """One linear map per group of rows.

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
    function = _GroupedLinearKernel if _kernel_takes(rows, weight) else _GroupedLinearLoop
    result: Tensor = function.apply(rows, weight, bias, tokens_per_expert)
    return result


def _kernel_takes(rows: Tensor, weight: Tensor) -> bool:
    # The grouped kernel wants 16-byte strides; on CPU a loop over addmm is faster than it.
    aligned = all(size * weight.element_size() % 16 == 0 for size in weight.shape[1:])
    return rows.is_cuda and aligned and rows.shape[0] > 0


class _GroupedLinearLoop(torch.autograd.Function):
    """A product per expert, written in place: as fast as one dense product on CPU."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, counts: Tensor) -> Tensor:
        sizes = counts.tolist()
        out = rows.new_empty(rows.shape[0], weight.shape[1])
        for part, target, w, b in zip(
            rows.split(sizes), out.split(sizes), weight, bias, strict=True
        ):
            torch.addmm(b, part, w.t(), out=target)
        ctx.save_for_backward(rows, weight)
        ctx.sizes = sizes
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        row_gradient, weight_gradient = torch.empty_like(rows), torch.empty_like(weight)
        bias_gradient = weight.new_empty(weight.shape[:2])
        parts = zip(
            rows.split(ctx.sizes),
            row_gradient.split(ctx.sizes),
            gradient.split(ctx.sizes),
            strict=True,
        )
        for expert, (part, target, upstream) in enumerate(parts):
            torch.mm(upstream, weight[expert], out=target)
            torch.mm(upstream.t(), part, out=weight_gradient[expert])
            torch.sum(upstream, 0, out=bias_gradient[expert])
        return row_gradient, weight_gradient, bias_gradient, None


class _GroupedLinearKernel(torch.autograd.Function):
    """``torch.nn.functional.grouped_mm`` forward and backward, without a host synchronisation."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, counts: Tensor) -> Tensor:
        offsets = counts.cumsum(0).to(torch.int32)
        expert = torch.repeat_interleave(
            torch.arange(counts.numel(), device=rows.device), counts, output_size=rows.shape[0]
        )
        out = F.grouped_mm(rows, weight.transpose(1, 2), offs=offsets)
        ctx.save_for_backward(rows, weight, offsets, expert)
        return out.add_(bias.index_select(0, expert))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, weight, offsets, expert = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        row_gradient = F.grouped_mm(gradient, weight, offs=offsets)
        weight_gradient = F.grouped_mm(gradient.t(), rows, offs=offsets)
        bias_sum = torch.zeros(weight.shape[:2], dtype=torch.float32, device=weight.device)
        bias_sum.index_add_(0, expert, gradient.float())
        return row_gradient, weight_gradient, bias_sum.to(weight.dtype), None
