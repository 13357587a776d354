"""One student under DeepSpeed: groups of parameters, an engine, and its state by name."""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime import compiler
from deepspeed.runtime.zero import parameter_offload
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..checkpoints.run import StateSlice
from .expert_parallel import (
    ExpertParallelGroup,
    apply_expert_parallelism,
    create_expert_parallel_group,
    expert_parameter_names,
    is_expert_parallel,
    router_parameter_names,
)
from .kernels import make_adamw
from .loss_scale import LossScaleOptions
from .optimizer_state import KINDS, optimizer_state_of
from .updates import EngineUpdate, FlatUpdate, StepResult, Update, takes_flat_update

# Layer norms and biases are not decayed; stacked biases are matrices, so the name decides.
_WITHOUT_DECAY = ("bias", "LayerNorm.weight")
_SMALLEST_SHARE = 1 << 16  # elements of a replicated parameter; fewer make more pieces, not speed


@dataclass(frozen=True)
class AdamW:
    """The optimizer's settings.

    Attributes:
        learning_rate: peak of the schedule.
        weight_decay: not on biases and LayerNorms.
        betas, epsilon: Adam's.
        max_gradient_norm: 0 for no clipping.
        kernel: whose fused one.
        expert_rate_factor: what experts' maps have of the learning rate.
        router_rate_factor: what routers have of it; 0 keeps them as they are.
    """

    learning_rate: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-6
    max_gradient_norm: float = 1.0
    kernel: str = "auto"
    expert_rate_factor: float = 1.0
    router_rate_factor: float = 1.0


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    expert_rate_factor: float = 1.0,
    router_rate_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Splits parameters into groups, in an order that is the same on every rank.

    DeepSpeed's own splitter iterates over a set, and drops the decay of groups of one name. Groups
    of experts and routers with a rate of their own have its factor as ``rate_factor``.
    """
    factors = {"experts": expert_rate_factor, "routers": router_rate_factor}
    names = {"experts": expert_parameter_names(model), "routers": router_parameter_names(model)}
    kinds = {name: kind for kind, own in names.items() if factors[kind] != 1.0 for name in own}
    groups: dict[tuple[str, str, bool], list[nn.Parameter]] = {}
    for name, parameter in sorted(model.named_parameters()):
        expert_group = parameter.group_name if is_expert_parallel(parameter) else ""  # type: ignore[attr-defined]
        key = (expert_group, kinds.get(name, "dense"), not name.endswith(_WITHOUT_DECAY))
        groups.setdefault(key, []).append(parameter)
    result = []
    for (expert_group, kind, decayed), parameters in sorted(groups.items(), key=lambda g: g[0]):
        group: dict[str, Any] = {
            "params": parameters,
            "weight_decay": weight_decay if decayed else 0.0,
            "name": expert_group or f"{kind}_decay_{decayed}",
        }
        if kind in factors:
            group["rate_factor"] = factors[kind]
        if expert_group:
            group["moe"] = True
        result.append(group)
    return result


@dataclass(frozen=True)
class _Place:
    """Where a parameter lies in a student that is spread over ranks.

    Attributes:
        name: its logical name.
        parameter: on this rank.
        shape: with the experts of all ranks.
        start: of this rank's elements in it, flat.
        is_spread: whether other ranks hold other experts of it.
        replica, replicas: of the ranks that hold the same elements, which one this is.
    """

    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]
    start: int
    is_spread: bool
    replica: int
    replicas: int

    def share(self, count: int) -> slice:
        """Returns which of `count` elements that all replicas hold this one writes."""
        size = max(-(-count // self.replicas), _SMALLEST_SHARE)
        return slice(min(self.replica * size, count), min((self.replica + 1) * size, count))


def _places_of(model: nn.Module, experts: ExpertParallelGroup | None) -> Iterator[_Place]:
    """Yields every parameter's place by name, in the same order on every rank."""
    stacked = expert_parameter_names(model) if experts is not None else set()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for name, parameter in sorted(model.named_parameters()):
        # At stage 3 a parameter's own shape is empty between its uses.
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if experts is None or name not in stacked:
            yield _Place(name, parameter, shape, 0, False, rank, ranks)
            continue
        start = experts.rank * math.prod(shape)
        whole = (shape[0] * experts.size, *shape[1:])
        replica, replicas = rank // experts.size, ranks // experts.size
        yield _Place(name, parameter, whole, start, True, replica, replicas)


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

    kinds = KINDS

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
        self._engine = _make_engine(model, settings, optimizer)
        self.zero_stage: int = self._engine.zero_optimization_stage()
        self.expert_parallel_size = expert_parallel_size
        self._state = optimizer_state_of(self._engine)
        self._places = list(_places_of(self.module, self._group))
        self.update = _make_update(self._engine, settings, optimizer, self._group)

    @property
    def module(self) -> PreTrainedModel:
        """The student itself; under expert parallelism with this rank's experts only."""
        return self._engine.module

    def __call__(self, **inputs: Any) -> Any:
        """Runs the student's forward pass; returns what its class returns."""
        if isinstance(self.update, FlatUpdate):
            return self.module(**inputs)
        return self._engine(**inputs)

    def close(self) -> None:
        """Ends the engine, and frees its memory, which DeepSpeed would hold on to."""
        self.update.close()
        self._places.clear()
        del self._state
        self._engine.destroy()
        release(self.module)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of ``loss`` / accumulation steps, averaged over ranks."""
        self.update.backward(loss)

    def step(self, learning_rate: float) -> StepResult:
        """Ends a step: clips and updates."""
        return self.update.step(learning_rate)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns every parameter's shape by logical name, with the experts of all ranks."""
        return {place.name: place.shape for place in self._places}

    def state_slices(self) -> Iterator[StateSlice]:
        """Yields what of the parameters' state lies on this rank, as it lies in memory."""
        for place in self._places:
            local = self._state.local(place.parameter)
            if local is None:
                continue
            for kind, values in local.values.items():
                owned = place.share(values.numel()) if local.is_replicated else slice(None)
                yield StateSlice(place.name, kind, place.start + local.start, values, owned)

    def read_state(self, name: str, kind: str) -> Tensor:
        """Reads a part of a parameter's state; a collective.

        Args:
            name: the parameter's logical name.
            kind: one of :attr:`kinds`.

        Returns:
            Float32 on CPU, of the parameter's full shape; of stacked ones, this rank's experts.
        """
        parameter = self.module.get_parameter(name)
        return self._state.read(parameter, kind).detach().float().cpu()

    def counters(self) -> dict[str, Any]:
        """Returns what resuming needs besides tensors: Adam's step and fp16's loss scale."""
        counters: dict[str, Any] = {"adam_steps": self._state.steps}
        scaler = self.update.scaler_state()
        return counters if scaler is None else {**counters, "loss_scaler": scaler}

    def finish_writing(self, counters: Mapping[str, Any]) -> None:
        """Ends the filling of :meth:`state_slices`: restores counters, updates pass's weights."""
        self._state.steps = counters["adam_steps"]
        if "loss_scaler" in counters:
            self.update.restore_scaler(counters["loss_scaler"])
        self._state.commit()

    def whole_weights(self) -> dict[str, Tensor]:
        """Gathers float32 weights with all experts on rank 0, {} on the others; a collective."""
        weights: dict[str, Tensor] = {}
        for place in self._places:
            value = self.read_state(place.name, "master")
            if place.is_spread and self._group is not None:
                value = self._gather_experts(value, self._group)
            if dist.get_rank() == 0:
                weights[place.name] = value
        return weights

    def _gather_experts(self, value: Tensor, group: ExpertParallelGroup) -> Tensor:
        device = self._engine.device
        parts = [torch.empty_like(value, device=device) for _ in range(group.size)]
        dist.all_gather(parts, value.to(device), group=group.process_group)
        return torch.cat(parts).cpu()


# DeepSpeed calls these by torch's old names; a run can do nothing about it.
_OLD_NAMES = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"


def _make_engine(model: PreTrainedModel, settings: Mapping[str, Any], optimizer: AdamW) -> Any:
    """Makes DeepSpeed's engine of a student that is on its device."""
    zero = dict(settings.get("zero_optimization", {}))
    stage = zero.get("stage", 0)
    if stage in (1, 2):
        # Kernels read 16 bytes at a time; a router's bias may have fewer.
        zero.setdefault("parameter_alignment", True)
    flat = takes_flat_update(settings)
    # At stage 0 DeepSpeed averages the ranks' norms; where the update is our own, it clips.
    clipping = 0.0 if flat or stage == 0 else optimizer.max_gradient_norm
    config = {
        "zero_allow_untested_optimizer": True,  # apex's
        **settings,
        "zero_optimization": zero,
        "gradient_clipping": clipping,
    }
    if flat and settings.get("fp16", {}).get("enabled"):
        config["fp16"] = {"enabled": True, "loss_scale": 1.0}
    _import_muon()
    with quiet_deepspeed():
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=make_adamw(
                optimizer.kernel,
                parameter_groups(
                    model,
                    optimizer.weight_decay,
                    optimizer.expert_rate_factor,
                    optimizer.router_rate_factor,
                ),
                learning_rate=optimizer.learning_rate,
                betas=optimizer.betas,
                epsilon=optimizer.epsilon,
                weight_decay=optimizer.weight_decay,
            ),
            config=config,
            dist_init_required=False,
        )
    return engine


def _import_muon() -> None:
    """Imports Muon, of which DeepSpeed asks whether the optimizer is one, without its compiler.

    Its functions are wrapped by ``torch.compile`` as the module is read, which imports torch's
    compiler: two seconds of each start, for an optimizer that no student has.
    """
    compile_functions = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compile_functions


def _make_update(
    engine: Any,
    settings: Mapping[str, Any],
    optimizer: AdamW,
    experts: ExpertParallelGroup | None,
) -> Update:
    if not takes_flat_update(settings):
        return EngineUpdate(engine, optimizer.max_gradient_norm, experts)
    for hook in (engine.module_forward_pre_hook, engine.module_forward_post_hook):
        hook.remove()
    fp16 = settings.get("fp16", {})
    scale = LossScaleOptions.of_settings(fp16) if fp16.get("enabled") else None
    return FlatUpdate(engine, optimizer.max_gradient_norm, scale)


def initialize_communication() -> None:
    """Puts DeepSpeed's layer over the process group that runs already."""
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
    """Silences DeepSpeed, which prints configuration and progress while it builds an engine."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
