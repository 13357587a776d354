"""Reads and writes a parameter's master weight and Adam moments under each ZeRO stage.

DeepSpeed's public accessors do the work where they can; what they leave out is done here: stage 0
(they return None), a fresh engine (they find no state), parameter groups after the first one at
stages 1 and 2 (they are never linked), and parameters that ranks cannot share evenly at stage 3.

Every method is a collective: all ranks call it for the same parameter in the same order.
"""

from typing import Any, Protocol

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from .kernels import adam_steps, init_state, set_adam_steps

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("master", *MOMENTS)


class OptimizerState(Protocol):
    """One optimizer's state by parameter, whatever the partitioning."""

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """Reads a tensor of the parameter's full shape, float32; ``kind`` is one of KINDS."""

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Writes what :meth:`read` returned."""

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

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        self._tensor(parameter, kind).data.copy_(value)

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

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        if kind == "master":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        if kind == "master":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

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

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        rank = self._zero._get_param_partition_rank(parameter)
        partition = torch.zeros(size, dtype=torch.float32, device=value.device)
        values = value.flatten()[rank * size : (rank + 1) * size]
        partition[: values.numel()] = values
        if kind == "master":
            safe_set_local_fp32_param(parameter, partition)
        else:
            safe_set_local_optimizer_state(parameter, partition, kind)

    def commit(self) -> None:
        zero = self._zero
        for index, master in enumerate(zero.fp32_partitioned_groups_flat):
            zero.fp16_partitioned_groups_flat[index].data.copy_(master.data)
            zero._unflatten_partitioned_parameters(index)


def optimizer_state_of(engine: Any) -> OptimizerState:
    """Returns the view for a DeepSpeed engine's ZeRO stage."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return Stage0State(engine.optimizer)
    return Stage3State(engine.optimizer) if stage == 3 else Stage12State(engine.optimizer)
