"""Third-party kernels for AdamW and LayerNorm, where a run asks for them by name.

By default it is torch's fused AdamW: its update takes 0.06 ms of an H100's step, so little is to be
won, and it alone leaves out a bad update on the device. The others do as they are told by the host,
which waits for the gradients' norm in every step. LayerNorms are PyTorch's: where passes are
compiled, they are part of what is around them.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, first_line

_APEX = (
    "there is no NVIDIA apex here (the package of that name on PyPI is another one); install it "
    "from its sources, or give auto"
)


def make_adamw(
    kind: str,
    groups: Sequence[dict[str, Any]],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Makes AdamW over parameter groups.

    Args:
        kind: ``auto`` and ``torch``, ``deepspeed`` or ``apex``.
        groups: with a decay of their own.
        learning_rate: of the first step.
        betas: decays of the moments.
        epsilon: added to the root of the second one.
        weight_decay: of groups that have none.

    Raises:
        UserError: there is no such kernel here.
    """
    settings: dict[str, Any] = {"lr": learning_rate, "betas": betas, "eps": epsilon}
    settings["weight_decay"] = weight_decay
    if kind in ("auto", "torch"):
        return torch.optim.AdamW(groups, **settings, fused=True)
    if kind == "deepspeed":
        from deepspeed.ops.adam import FusedAdam

        try:
            optimizer: torch.optim.Optimizer = FusedAdam(groups, **settings, adam_w_mode=True)
        except Exception as error:  # it compiles itself at its first use
            reason = first_line(error)
            raise UserError(
                f"parallel.adamw: deepspeed's cannot be built here ({reason}); give auto"
            ) from error
        return optimizer
    apex = _apex_module("optimizers", "parallel.adamw")
    return apex.FusedAdam(groups, **settings, adam_w_mode=True)


def use_layer_norms(kind: str, model: nn.Module) -> None:
    """Replaces the LayerNorms of a model, which keep their parameters, in place.

    Args:
        kind: ``auto`` and ``torch`` leave them; ``apex``.
        model: whose.

    Raises:
        UserError: there is no apex here.
    """
    if kind in ("auto", "torch"):
        return
    fused = _apex_module("normalization", "parallel.layer_norm").FusedLayerNorm
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.LayerNorm:
                replacement = fused(tuple(child.normalized_shape), eps=child.eps)
                replacement.weight, replacement.bias = child.weight, child.bias
                setattr(module, name, replacement)


def decides_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Returns whether an optimizer scales or leaves out an update by tensors: torch's fused one."""
    return isinstance(optimizer, torch.optim.AdamW)


def adam_steps(optimizer: torch.optim.Optimizer) -> int:
    """Returns the applied steps, which torch and DeepSpeed count by parameter, apex by group."""
    state = next(iter(optimizer.state.values()))
    return int(state["step"] if "step" in state else optimizer.param_groups[0].get("step", 0))


def set_adam_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Sets what :func:`adam_steps` returns."""
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"].fill_(float(steps))
        elif "step" in state:
            state["step"] = steps
    for group in optimizer.param_groups:
        if not decides_on_device(optimizer):
            group["step"] = steps


def init_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """Makes the state of a parameter that its first step would make."""
    state = optimizer.state[parameter]
    if state:
        return
    if decides_on_device(optimizer):
        state["step"] = torch.tensor(0.0, device=parameter.device)
    elif type(optimizer).__module__.startswith("deepspeed"):
        state["step"] = 0
    state["exp_avg"] = torch.zeros_like(parameter)
    state["exp_avg_sq"] = torch.zeros_like(parameter)


def _apex_module(name: str, option: str) -> Any:
    try:
        return import_module(f"apex.{name}")
    except ImportError:
        raise UserError(f"{option}: apex: {_APEX}") from None
