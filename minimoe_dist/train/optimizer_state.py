"""Finds a parameter's master weight and Adam moments under each ZeRO stage.

What of them lies on a rank is given as it lies in memory, without a collective: for snapshots and
for restoring them. Whole ones are gathered by DeepSpeed's public accessors; what these leave out is
done here: stage 0 (they return None), a fresh engine (they find no state), and parameter groups
after the first one at stages 1 and 2 (they are never linked).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
)
from torch import Tensor, nn

from .kernels import adam_steps, init_state, set_adam_steps

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master"
KINDS = (MASTER, *MOMENTS)


@dataclass(frozen=True)
class LocalState:
    """The part of a parameter's state that lies on this rank.

    Attributes:
        start: of its first element in the flattened parameter.
        values: by kind of KINDS, float32, 1-D, in the optimizer's own memory.
        is_replicated: whether all ranks that train the parameter hold the same.
    """

    start: int
    values: Mapping[str, Tensor]
    is_replicated: bool = False


class OptimizerState(Protocol):
    """One optimizer's state by parameter, whatever the partitioning."""

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """Reads a tensor of the parameter's full shape, float32; ``kind`` is one of KINDS.

        A collective: all ranks call it for the same parameter in the same order.
        """

    def local(self, parameter: nn.Parameter) -> LocalState | None:
        """Returns what lies on this rank; None where nothing of the parameter does."""

    def commit(self) -> None:
        """Makes the weights that the forward pass uses follow the written masters."""

    @property
    def steps(self) -> int:
        """Adam's count of applied steps."""

    @steps.setter
    def steps(self, value: int) -> None: ...


class _TorchSteps:
    """Adam's step, which is kept by tensor or by group, as one number."""

    _torch_optimizer: torch.optim.Optimizer

    @property
    def steps(self) -> int:
        return adam_steps(self._torch_optimizer)

    @steps.setter
    def steps(self, value: int) -> None:
        set_adam_steps(self._torch_optimizer, value)


class Stage0State(_TorchSteps):
    """The state at stage 0, where the base optimizer has everything, whole and in float32."""

    def __init__(self, torch_optimizer: torch.optim.Optimizer) -> None:
        self._torch_optimizer = torch_optimizer
        for group in torch_optimizer.param_groups:
            for parameter in group["params"]:
                init_state(torch_optimizer, parameter)

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        return self._tensor(parameter, kind).detach().float().clone()

    def local(self, parameter: nn.Parameter) -> LocalState | None:
        values = {kind: self._tensor(parameter, kind).detach().view(-1) for kind in KINDS}
        return LocalState(0, values, is_replicated=True)

    def commit(self) -> None:
        """Does nothing: weights and masters are the same tensors."""

    def _tensor(self, parameter: nn.Parameter, kind: str) -> Tensor:
        if kind == "master":
            return parameter
        return self._torch_optimizer.state[parameter][kind]


class Stage12State(_TorchSteps):
    """The state at stages 1 and 2: a flat float32 partition per parameter group."""

    def __init__(self, zero_optimizer: Any) -> None:
        self._zero = zero_optimizer
        self._torch_optimizer = zero_optimizer.optimizer
        for flat in zero_optimizer.single_partition_of_fp32_groups:
            init_state(self._torch_optimizer, flat)
        # DeepSpeed links groups to parameters after the first group's first step only.
        zero_optimizer._hp_optimizer_states_linked = False
        zero_optimizer._lazy_init_hp_params_optimizer_state()
        groups = range(len(zero_optimizer.bit16_groups))
        self._local = dict(local for group in groups for local in self._partition(group))

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        if kind == "master":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def local(self, parameter: nn.Parameter) -> LocalState | None:
        return self._local.get(parameter)

    def _partition(self, group: int) -> Iterator[tuple[nn.Parameter, LocalState]]:
        """Yields what of each parameter lies in this rank's part of a group's flat tensor."""
        zero = self._zero
        weights = zero.bit16_groups_flat[group]
        master = zero.single_partition_of_fp32_groups[group]
        first = dist.get_rank(zero.real_dp_process_group[group]) * master.numel()
        flat = {kind: _flat_state(self._torch_optimizer, master, kind) for kind in KINDS}
        for parameter in zero.bit16_groups[group]:
            offset = (parameter.data_ptr() - weights.data_ptr()) // weights.element_size()
            start = max(offset, first)
            stop = min(offset + parameter.numel(), first + master.numel())
            if start < stop:
                part = slice(start - first, stop - first)
                values = {kind: tensor[part] for kind, tensor in flat.items()}
                yield parameter, LocalState(start - offset, values)

    def commit(self) -> None:
        self._zero.update_lp_params()


class Stage3State(_TorchSteps):
    """The state at stage 3: every parameter is partitioned over the ranks, padded at its end."""

    def __init__(self, zero_optimizer: Any) -> None:
        self._zero = zero_optimizer
        self._torch_optimizer = zero_optimizer.optimizer
        for flat in zero_optimizer.fp32_partitioned_groups_flat:
            init_state(self._torch_optimizer, flat)

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        if kind == "master":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def local(self, parameter: nn.Parameter) -> LocalState | None:
        zero = self._zero
        group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
        start = zero._get_param_partition_rank(parameter) * size
        count = min(size, parameter.ds_numel - start)  # type: ignore[attr-defined]
        if count <= 0:  # of the last ranks' parts of a small parameter, all may be padding
            return None
        master = zero.fp32_partitioned_groups_flat[group]
        part = slice(offset, offset + count)
        values = {kind: _flat_state(self._torch_optimizer, master, kind)[part] for kind in KINDS}
        return LocalState(start, values)

    def commit(self) -> None:
        zero = self._zero
        for index, master in enumerate(zero.fp32_partitioned_groups_flat):
            zero.fp16_partitioned_groups_flat[index].data.copy_(master.data)
            zero._unflatten_partitioned_parameters(index)


def _flat_state(optimizer: torch.optim.Optimizer, master: Tensor, kind: str) -> Tensor:
    return master.detach() if kind == "master" else optimizer.state[master][kind]


def optimizer_state_of(engine: Any) -> OptimizerState:
    """Returns the view for a DeepSpeed engine's ZeRO stage."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return Stage0State(engine.optimizer)
    return Stage3State(engine.optimizer) if stage == 3 else Stage12State(engine.optimizer)
