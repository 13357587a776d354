"""Makes a student's gradients an update.

:class:`FlatUpdate` is ZeRO-1 over the flat tensors that DeepSpeed has made: gradients are summed in
flat tensors of the same layout, and one reduction, one norm, one fused AdamW and one gathering a
parameter group end a step. Nothing of it waits for the host: clipping, the check for numbers that
are none, float16's loss scale and leaving out a bad update all happen on the device.
:class:`EngineUpdate` is DeepSpeed's own step, for the other stages and for offloading.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .expert_parallel import ExpertParallelGroup, is_expert_parallel
from .kernels import decides_on_device
from .loss_scale import LossScale, LossScaleOptions

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
_CLIPPING_EPSILON = 1e-6
_NORM_PART = 1 << 18  # elements, whose float64 copy stays in cache


@dataclass(frozen=True)
class StepResult:
    """The result of one step, the same on every rank; its scalars may still be on their way.

    Attributes:
        applied: bool; False where a gradient was not finite and the update was left out.
        gradient_norm: float32, before clipping, without the loss scale.
        searches: bool; whether float16's scale can still fall, which makes a bad step no fault.
    """

    applied: Tensor
    gradient_norm: Tensor
    searches: Tensor


class Update(Protocol):
    """Takes losses, and ends steps."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of ``loss`` / accumulation steps, averaged over ranks."""

    def step(self, learning_rate: float) -> StepResult:
        """Clips the gradients and updates the weights."""

    def scaler_state(self) -> dict[str, float] | None:
        """Returns the state of float16's loss scale; None without one."""

    def restore_scaler(self, state: Mapping[str, float]) -> None:
        """Restores what :meth:`scaler_state` returned."""

    def close(self) -> None:
        """Lets go of all tensors."""


def takes_flat_update(settings: Mapping[str, Any]) -> bool:
    """Returns whether DeepSpeed settings ask for plain ZeRO-1, as :class:`FlatUpdate` is."""
    zero = settings.get("zero_optimization", {})
    extras = ("offload_optimizer", "round_robin_gradients", "overlap_comm")
    return (
        zero.get("stage", 0) == 1
        and not any(zero.get(name) for name in extras)
        and not settings.get("communication_data_type")
        and not settings.get("data_types", {}).get("grad_accum_dtype")
    )


@dataclass
class _Group:
    """One parameter group; all tensors are flat.

    Attributes:
        weights: of the forward pass, of all ranks of the group.
        own_weights: this rank's part of them, a view.
        gradients: laid out as ``weights``; parameters' gradients are views of it.
        own_gradients: this rank's part of them, a view.
        master: float32, what AdamW updates: this rank's part.
        peers: the ranks that share the group out.
    """

    weights: Tensor
    own_weights: Tensor
    gradients: Tensor
    own_gradients: Tensor
    master: nn.Parameter
    peers: Any

    def reduce(self, ranks: int) -> None:
        """Leaves the average over all ranks in ``own_gradients``."""
        if ranks == 1:
            return
        self.gradients.div_(ranks)
        if dist.get_world_size(self.peers) == 1:
            return
        if self.gradients.is_cuda:
            dist.reduce_scatter_tensor(self.own_gradients, self.gradients, group=self.peers)
        else:
            dist.all_reduce(self.gradients, group=self.peers)

    def gather(self) -> None:
        """Gives every rank the others' parts of the weights."""
        if dist.get_world_size(self.peers) > 1:
            dist.all_gather_into_tensor(self.weights, self.own_weights, group=self.peers)


class FlatUpdate:
    """Ends steps of ZeRO-1 without the host.

    Args:
        engine: of DeepSpeed, at stage 1; its own hooks and step are not used from here on.
        max_gradient_norm: 0 does not clip.
        loss_scale: float16's; None for other precisions.
    """

    def __init__(
        self, engine: Any, max_gradient_norm: float, loss_scale: LossScaleOptions | None
    ) -> None:
        zero = engine.optimizer
        for hook in zero._grad_acc_hooks:
            hook.remove()
        zero._grad_acc_hooks.clear()
        self._accumulation = engine.gradient_accumulation_steps()
        self._optimizer: torch.optim.Optimizer = zero.optimizer
        self._max_norm = max_gradient_norm
        self._ranks = dist.get_world_size()
        self.groups = [_flat_group(zero, index) for index in range(len(zero.bit16_groups))]
        device = self.groups[0].weights.device
        self._scale = None if loss_scale is None else LossScale(loss_scale, device)

    def backward(self, loss: Tensor) -> None:
        self.scaled(loss).backward()

    def scaled(self, loss: Tensor) -> Tensor:
        """Returns what :meth:`backward` goes back from: a loss over accumulation steps, scaled."""
        loss = loss / self._accumulation
        return loss if self._scale is None else loss * self._scale.scale

    @torch.no_grad()
    def step(self, learning_rate: float) -> StepResult:
        for group in self.groups:
            group.reduce(self._ranks)
        scaled_norm = self._norm()
        scale = torch.ones_like(scaled_norm) if self._scale is None else self._scale.scale
        norm = scaled_norm / scale
        finite = torch.isfinite(scaled_norm)
        factor = scale
        if self._max_norm > 0:
            factor = scale * ((norm + _CLIPPING_EPSILON) / self._max_norm).clamp(min=1.0)
        for parameters, group in zip(self._optimizer.param_groups, self.groups, strict=True):
            parameters["lr"] = learning_rate * parameters.get("rate_factor", 1.0)
            group.master.grad = group.own_gradients.to(group.master.dtype)
        self._apply(factor, finite)
        for group in self.groups:
            group.master.grad = None
            group.own_weights.copy_(group.master)
            group.gather()
            group.gradients.zero_()
        searches = torch.zeros_like(finite)
        if self._scale is not None:
            searches = self._scale.can_fall
            self._scale.update(~finite)
        return StepResult(finite, norm.float(), searches)

    def _apply(self, factor: Tensor, finite: Tensor) -> None:
        """Steps the optimizer with gradients / ``factor``, if they are finite."""
        if decides_on_device(self._optimizer):
            # What float16's GradScaler hands to fused optimizers.
            self._optimizer.grad_scale = factor.float()  # type: ignore[attr-defined]
            self._optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self._optimizer.step()
        elif bool(finite):  # waits
            for group in self.groups:
                assert group.master.grad is not None
                group.master.grad.div_(factor)
            self._optimizer.step()

    def scaler_state(self) -> dict[str, float] | None:
        return None if self._scale is None else self._scale.state()

    def restore_scaler(self, state: Mapping[str, float]) -> None:
        if self._scale is not None:
            self._scale.restore(state)

    def close(self) -> None:
        self.groups.clear()

    def _norm(self) -> Tensor:
        """Computes the L2 norm over all parameters and ranks, each expert once; float64."""
        total = torch.stack([_square_sum(group.own_gradients) for group in self.groups]).sum()
        if self._ranks > 1:
            dist.all_reduce(total)
        return total.sqrt()


def _square_sum(values: Tensor) -> Tensor:
    """Sums the squares of flat values of any type in float64, without a copy of them."""
    if values.is_cuda:  # sums there are trees, exact enough in float32
        return torch.linalg.vector_norm(values, dtype=torch.float32).double().square()
    parts = [
        torch.linalg.vector_norm(part, dtype=torch.float64) for part in values.split(_NORM_PART)
    ]
    return torch.stack(parts).square().sum()


def _flat_group(zero: Any, index: int) -> _Group:
    weights = zero.bit16_groups_flat[index]
    peers = zero.real_dp_process_group[index]
    gradients = torch.zeros_like(weights)
    for parameter in zero.bit16_groups[index]:
        offset = (parameter.data_ptr() - weights.data_ptr()) // weights.element_size()
        parameter.grad = gradients.narrow(0, offset, parameter.numel()).view_as(parameter)
    size = weights.numel() // dist.get_world_size(peers)
    partition = slice(dist.get_rank(peers) * size, (dist.get_rank(peers) + 1) * size)
    return _Group(
        weights,
        weights[partition],
        gradients,
        gradients[partition],
        zero.single_partition_of_fp32_groups[index],
        peers,
    )


class EngineUpdate:
    """Ends steps by DeepSpeed's own.

    Args:
        engine: of DeepSpeed, at any stage.
        max_gradient_norm: 0 does not clip; at other stages than 0 the engine knows it already.
        experts: the ranks that share experts, if any do.
    """

    def __init__(
        self, engine: Any, max_gradient_norm: float, experts: ExpertParallelGroup | None
    ) -> None:
        self._engine = engine
        self._stage = engine.zero_optimization_stage()
        self._max_norm = max_gradient_norm
        self._experts = experts

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def step(self, learning_rate: float) -> StepResult:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("rate_factor", 1.0)
        if self._stage == 0:
            return self._step_unpartitioned()
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        numbers = (self._engine.was_step_applied(), norm, self._engine.fp16_enabled())
        return StepResult(*(torch.tensor(number) for number in numbers))

    def _step_unpartitioned(self) -> StepResult:
        """Clips here: DeepSpeed would average the ranks' norms, which is wrong with experts."""
        norm, optimizer = self._norm(), self._engine.optimizer
        finite = torch.isfinite(norm)
        factor = torch.ones_like(norm)
        if self._max_norm > 0:
            factor = ((norm + _CLIPPING_EPSILON) / self._max_norm).clamp(min=1.0)
        optimizer.grad_scale, optimizer.found_inf = factor.float(), (~finite).float()
        self._engine.step()
        return StepResult(finite, norm.float(), torch.zeros_like(finite))

    def _norm(self) -> Tensor:
        """Computes the L2 norm over all parameters, each expert once; float64."""
        total = torch.zeros(2, dtype=torch.float64, device=self._engine.device)
        for parameter in self._engine.module.parameters():
            if parameter.grad is not None:
                square = torch.linalg.vector_norm(parameter.grad, dtype=torch.float64) ** 2
                total[int(is_expert_parallel(parameter))] += square
        if self._experts is not None:
            dist.all_reduce(total[1:], group=self._experts.process_group)
        return total.sum().sqrt()

    def scaler_state(self) -> dict[str, float] | None:
        if not self._engine.fp16_enabled():
            return None
        scaler = self._engine.optimizer.loss_scaler
        return {name: getattr(scaler, name) for name in _SCALER_FIELDS if hasattr(scaler, name)}

    def restore_scaler(self, state: Mapping[str, float]) -> None:
        for name, value in state.items():
            setattr(self._engine.optimizer.loss_scaler, name, value)

    def close(self) -> None:
        """Does nothing: nothing is held beside the engine."""
