"""One student under DeepSpeed: groups of parameters, an engine, a step, and its state by name."""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero import parameter_offload
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..checkpoints.run import StateEntry
from .expert_parallel import (
    ExpertParallelGroup,
    apply_expert_parallelism,
    create_expert_parallel_group,
    expert_parameter_names,
    is_expert_parallel,
)
from .optimizer_state import KINDS, optimizer_state_of

# Layer norms and biases are not decayed; stacked biases are matrices, so the name decides.
_WITHOUT_DECAY = ("bias", "LayerNorm.weight")


@dataclass(frozen=True)
class AdamW:
    """Optimizer settings; ``max_gradient_norm`` 0 means no clipping."""

    learning_rate: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-6
    max_gradient_norm: float = 1.0


@dataclass(frozen=True)
class StepResult:
    """``applied`` is False where a gradient was not finite and the update was left out."""

    applied: bool
    gradient_norm: float


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in an order that is the same on every rank.

    DeepSpeed's own splitter iterates over a set, and drops the decay of groups of one name.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in sorted(model.named_parameters()):
        expert_group = parameter.group_name if is_expert_parallel(parameter) else ""  # type: ignore[attr-defined]
        groups.setdefault((expert_group, not name.endswith(_WITHOUT_DECAY)), []).append(parameter)
    result = []
    for (expert_group, decayed), parameters in sorted(groups.items(), key=lambda item: item[0]):
        group: dict[str, Any] = {
            "params": parameters,
            "weight_decay": weight_decay if decayed else 0.0,
            "name": expert_group or f"dense_decay_{decayed}",
        }
        if expert_group:
            group["moe"] = True
        result.append(group)
    return result


class StudentEngine:
    """A student, its optimizer and its share of the cluster.

    Args:
        name: the student's name in the run.
        model: whole and on CPU; this rank's experts are cut out of it here.
        settings: DeepSpeed settings with every ``"auto"`` filled in.
        optimizer: AdamW's settings.
        expert_parallel_size: ranks that share one set of experts.
        device: where the student trains.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        settings: Mapping[str, Any],
        optimizer: AdamW,
        expert_parallel_size: int,
        device: torch.device,
    ) -> None:
        self.name = name
        self.config = model.config
        self._group: ExpertParallelGroup | None = None
        initialize_communication()
        if expert_parallel_size > 1:
            self._group = create_expert_parallel_group(expert_parallel_size)
            apply_expert_parallelism(model, self._group)
        model.to(device)
        self._stage = settings.get("zero_optimization", {}).get("stage", 0)
        self._max_gradient_norm = optimizer.max_gradient_norm
        # At stage 0 DeepSpeed averages the ranks' norms, which is wrong with experts: see step().
        clipping = optimizer.max_gradient_norm if self._stage > 0 else 0.0
        with quiet_deepspeed():
            self._engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=torch.optim.AdamW(
                    parameter_groups(model, optimizer.weight_decay),
                    lr=optimizer.learning_rate,
                    betas=optimizer.betas,
                    eps=optimizer.epsilon,
                    weight_decay=optimizer.weight_decay,
                    fused=True,  # one pass over memory instead of ten
                ),
                config={**settings, "gradient_clipping": clipping},
                dist_init_required=False,
            )
        self._state = optimizer_state_of(self._engine)

    @property
    def module(self) -> PreTrainedModel:
        """The student itself; under expert parallelism with this rank's experts only."""
        module: PreTrainedModel = self._engine.module
        return module

    def __call__(self, **inputs: Any) -> Any:
        """The student's forward pass: what its class returns."""
        return self._engine(**inputs)

    def close(self) -> None:
        """Ends the engine: its memory, which DeepSpeed would hold on to, goes with the last use."""
        self._engine.destroy()
        release(self.module)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of ``loss`` / accumulation steps, averaged over ranks."""
        self._engine.backward(loss)

    def step(self, learning_rate: float | None) -> StepResult:
        """Ends a micro-batch; at the last one of a step, clips and updates.

        Args:
            learning_rate: of the update; None for the micro-batches before the last one.
        """
        if learning_rate is None:
            self._engine.step()
            return StepResult(False, math.nan)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._stage == 0:
            return self._step_unpartitioned()
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return StepResult(self._engine.was_step_applied(), float(norm))

    def _step_unpartitioned(self) -> StepResult:
        norm = self._gradient_norm()
        finite = math.isfinite(norm)
        if finite and self._max_gradient_norm > 0:
            scale = min(1.0, self._max_gradient_norm / (norm + 1e-6))
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, scale)
        if not finite:
            # torch's AdamW passes over parameters without a gradient.
            self.module.zero_grad(set_to_none=True)
        self._engine.step()
        return StepResult(finite, norm)

    def _gradient_norm(self) -> float:
        """L2 norm over all parameters, each expert counted once."""
        total = torch.zeros(2, dtype=torch.float64, device=self._engine.device)
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                square = torch.linalg.vector_norm(parameter.grad, dtype=torch.float64) ** 2
                total[int(is_expert_parallel(parameter))] += square
        if self._group is not None:
            dist.all_reduce(total[1:], group=self._group.process_group)
        return math.sqrt(total.sum().item())

    def state_entries(self) -> Iterator[StateEntry]:
        """Every parameter's state by logical name, in the same order on every rank."""
        experts = expert_parameter_names(self.module)
        for name, parameter in sorted(self.module.named_parameters()):
            # At stage 3 a parameter's own shape is empty between its uses.
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            local_experts, owners = None, 1
            if name in experts:
                first, count = 0, shape[0]
                if self._group is not None:
                    first, owners = self._group.rank * count, self._group.size
                    shape = (count * self._group.size, *shape[1:])
                local_experts = range(first, first + count)
            # Of the ranks that hold the same experts, the first writes them.
            yield StateEntry(name, KINDS, dist.get_rank() < owners, shape, local_experts)

    def read_state(self, name: str, kind: str) -> Tensor:
        """Float32 on CPU; a collective."""
        value = self._state.read(self._parameters[name], kind)
        return value.detach().float().cpu()

    def write_state(self, name: str, kind: str, value: Tensor) -> None:
        """The inverse of :meth:`read_state`."""
        self._state.write(self._parameters[name], kind, value.to(self._engine.device))

    @property
    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    def counters(self) -> dict[str, Any]:
        """What resuming needs besides tensors: Adam's step and fp16's loss scale."""
        counters: dict[str, Any] = {"adam_steps": self._state.steps}
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        if self._engine.fp16_enabled() and scaler is not None:
            counters["loss_scaler"] = {key: getattr(scaler, key) for key in _SCALER_FIELDS}
        return counters

    def finish_writing(self, counters: Mapping[str, Any]) -> None:
        """Ends a series of :meth:`write_state`: counters, and the weights of the forward pass."""
        self._state.steps = counters["adam_steps"]
        if self._engine.fp16_enabled() and "loss_scaler" in counters:
            for key, value in counters["loss_scaler"].items():
                setattr(self._engine.optimizer.loss_scaler, key, value)
        self._state.commit()

    def whole_weights(self) -> dict[str, Tensor]:
        """Float32 weights with all experts on rank 0, {} on the others; a collective."""
        weights: dict[str, Tensor] = {}
        for entry in self.state_entries():
            value = self.read_state(entry.name, "master")
            if entry.local_experts is not None and self._group is not None:
                value = self._gather_experts(value, self._group)
            if dist.get_rank() == 0:
                weights[entry.name] = value
        return weights

    def _gather_experts(self, value: Tensor, group: ExpertParallelGroup) -> Tensor:
        device = self._engine.device
        parts = [torch.empty_like(value, device=device) for _ in range(group.size)]
        dist.all_gather(parts, value.to(device), group=group.process_group)
        return torch.cat(parts).cpu()


# DeepSpeed calls these by torch's old names; a run can do nothing about it.
_OLD_NAMES = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def initialize_communication() -> None:
    """DeepSpeed's layer over the process group that runs already."""
    warnings.filterwarnings("ignore", _OLD_NAMES, FutureWarning)
    # Its all-reduce in shared memory spins without a time-out, so a peer that died or was stopped
    # would hang the run; it also has to be compiled on each node.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def release(module: nn.Module) -> None:
    """Empties a module that is done with, so that what still names it holds nothing.

    DeepSpeed's ZeRO-3 keeps modules and parameters in lists and caches of its own for as long as
    the process lives, and by their hooks and attributes engine, optimizer and all weights.
    """
    roots = parameter_offload.FWD_MODULE_STACK
    roots[:] = [root for root in roots if root is not module]
    for parameter in list(module.parameters()):
        vars(parameter).clear()
        parameter.grad, parameter.data = None, torch.empty(0)
    for part in list(module.modules()):
        vars(part).clear()


@contextlib.contextmanager
def quiet_deepspeed() -> Iterator[None]:
    """DeepSpeed prints its whole configuration and its progress while it builds an engine."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
