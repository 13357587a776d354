"""Expert parallelism: each rank of a group holds a part of every block's experts.

A student is built whole and plain; :func:`apply_expert_parallelism` then cuts its stacked weights
to this rank's experts, tells DeepSpeed about them and gives the layers a dispatcher that exchanges
tokens by uneven all-to-all. Rank *i* of a group of N holds the experts [i·E/N, (i+1)·E/N).

Shapes: T tokens at home, T' rows received, E experts of a block, L = E/N experts held here.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.moe.layer import MoE
from deepspeed.utils import groups
from torch import Tensor, nn

from ..models.encoder import Layer
from ..models.experts import ExpertLinear, Plan, Router, grouped_linear, permute_rows
from ..models.packed_experts import Groups
from ..models.packed_experts import grouped_linear as packed_grouped_linear


@dataclass(frozen=True)
class ExpertParallelGroup:
    """The ranks that share one set of experts.

    Attributes:
        size: N.
        rank: this process's place in the group.
        process_group: for collectives between the N ranks.
        name: DeepSpeed's name of the groups of this size.
    """

    size: int
    rank: int
    process_group: dist.ProcessGroup
    name: str


def create_expert_parallel_group(size: int) -> ExpertParallelGroup:
    """Creates DeepSpeed's groups for an expert-parallel size, or finds an earlier student's.

    Consecutive ranks share a set of experts; ranks that hold the same experts average their
    gradients.
    """
    assert dist.get_world_size() % size == 0, (dist.get_world_size(), size)
    name = f"ep_size_{size}"
    if name not in groups._get_expert_parallel_group_dict():
        groups._create_expert_and_data_parallel(size)
    process_group = groups._get_expert_parallel_group(name)
    return ExpertParallelGroup(size, dist.get_rank(process_group), process_group, name)


class _ExpertsMarker(MoE):
    """The module by which DeepSpeed learns that a model has experts; it computes nothing."""

    def __init__(self, group: ExpertParallelGroup, num_experts: int) -> None:
        nn.Module.__init__(self)
        self.num_experts = num_experts
        self.ep_size = group.size
        self.num_local_experts = num_experts // group.size
        self.expert_group_name = group.name

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Does nothing: the groups exist already."""


def apply_expert_parallelism(model: nn.Module, group: ExpertParallelGroup) -> None:
    """Cuts the stacked weights of ``model`` to this rank's experts, in place."""
    num_experts = 0
    for name, module in model.named_modules():
        if isinstance(module, ExpertLinear):
            assert module.num_experts % group.size == 0, f"{name}: {module.num_experts} experts"
            num_experts = max(num_experts, module.num_experts)
            _keep_local_experts(module, group)
        elif isinstance(module, Layer):
            module.dispatcher = AllToAllDispatcher(group)
    if num_experts:
        model.add_module("experts_marker", _ExpertsMarker(group, num_experts))


def _keep_local_experts(module: ExpertLinear, group: ExpertParallelGroup) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        local = parameter.detach().chunk(group.size)[group.rank].clone()
        replacement = nn.Parameter(local)
        # DeepSpeed's marks: averaged only between the ranks that hold the same experts.
        replacement.allreduce = False  # type: ignore[attr-defined]
        replacement.group_name = group.name  # type: ignore[attr-defined]
        setattr(module, name, replacement)


def is_expert_parallel(parameter: nn.Parameter) -> bool:
    """Returns whether other ranks hold other experts of this stacked parameter."""
    return not getattr(parameter, "allreduce", True)


def expert_parameter_names(model: nn.Module) -> set[str]:
    """Returns the names of all stacked parameters, spread over ranks or not."""
    return _parameter_names(model, ExpertLinear)


def router_parameter_names(model: nn.Module) -> set[str]:
    """Returns the names of all routers' parameters."""
    return _parameter_names(model, Router)


def _parameter_names(model: nn.Module, kind: type[nn.Module]) -> set[str]:
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, kind)
        for name, _ in module.named_parameters(recurse=False)
    }


class AllToAllDispatcher:
    """Sends every token to the rank that holds its expert, and back."""

    def __init__(self, group: ExpertParallelGroup) -> None:
        self._group = group

    def plan(self, expert: Tensor, num_experts: int) -> Plan:
        """Plans an exchange; a collective that every rank of the group joins, even without a token.

        Args:
            expert: of each token, int64 [T].
            num_experts: E, on all ranks of the group together.
        """
        return _ExchangePlan(expert, num_experts, self._group)


def _products_of(tokens_per_expert: Tensor) -> Any:
    """Returns the product of rows that lie sorted by expert."""
    if not tokens_per_expert.is_cuda:
        return partial(grouped_linear, tokens_per_expert=tokens_per_expert)
    offsets = F.pad(tokens_per_expert.cumsum(0), (1, 0)).to(torch.int32)
    groups = Groups(order=offsets, offsets=offsets)  # nothing is gathered: no order is read
    return partial(packed_grouped_linear, groups=groups, gathers=False, scatters=False)


class _ExchangePlan(Plan):
    """Sorts by expert, exchanges between ranks, sorts by local expert; and the inverse."""

    def __init__(self, expert: Tensor, num_experts: int, group: ExpertParallelGroup) -> None:
        self._group = group.process_group
        self._order = torch.argsort(expert, stable=True)
        self._inverse = _inverse_of(self._order)
        sent = torch.bincount(expert, minlength=num_experts).view(group.size, -1)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self._group)
        self._sent, self._received = sent.sum(1).tolist(), received.sum(1).tolist()
        # Rows arrive by source rank, then expert; the grouped product wants them by expert.
        local_expert = torch.arange(sent.shape[1], device=sent.device).repeat(group.size)
        arrived = torch.repeat_interleave(local_expert, received.flatten())
        self._by_expert = torch.argsort(arrived, stable=True)
        self._by_source = _inverse_of(self._by_expert)
        self.tokens_per_expert = received.sum(0)
        self.products = _products_of(self.tokens_per_expert)

    def to_experts(self, tokens: Tensor) -> Tensor:
        rows = permute_rows(tokens, self._order, self._inverse)
        rows = _exchange(rows, self._sent, self._received, self._group)
        return permute_rows(rows, self._by_expert, self._by_source)

    def to_tokens(self, rows: Tensor) -> Tensor:
        rows = permute_rows(rows, self._by_source, self._by_expert)
        rows = _exchange(rows, self._received, self._sent, self._group)
        return permute_rows(rows, self._inverse, self._order)


def _inverse_of(order: Tensor) -> Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    return inverse


class _Exchange(torch.autograd.Function):
    """Uneven all-to-all of rows whose backward sends the gradients the other way."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradients[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _exchange(
    rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Tensor:
    return _Exchange.apply(rows, sent, received, group)


def _all_to_all(
    rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Tensor:
    out = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out
