"""Other people's AdamW and LayerNorm, here with stand-ins of their interfaces: there is no GPU."""

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from minimoe_dist.models.build import build_student
from minimoe_dist.train import engine as engine_module
from minimoe_dist.train.engine import AdamW, StudentEngine
from minimoe_dist.train.kernels import make_adamw, use_layer_norms
from tests.distributed import run_distributed
from tests.train import runs
from tests.train.runs import Layout


class StandInAdam(torch.optim.Optimizer):
    """AdamW with the interface of apex's FusedAdam, which counts its steps by group."""

    def __init__(self, params: Any, lr: float, betas: Any, eps: float, adam_w_mode: bool,
                 weight_decay: float) -> None:  # fmt: skip
        assert adam_w_mode
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps,
                                  "weight_decay": weight_decay})  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            first, second = group["betas"]
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                state["exp_avg"].lerp_(gradient, 1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                root = (state["exp_avg_sq"] / (1 - second ** group["step"])).sqrt_()
                size = group["lr"] / (1 - first ** group["step"])
                parameter.addcdiv_(state["exp_avg"], root.add_(group["eps"]), value=-size)


class StandInLayerNorm(nn.LayerNorm):
    """Of apex's signature."""

    def __init__(self, normalized_shape: Any, eps: float = 1e-5) -> None:
        super().__init__(normalized_shape, eps)


def stand_in(name: str, **attributes: Any) -> dict[str, ModuleType]:
    apex, module = ModuleType("apex"), ModuleType(f"apex.{name}")
    vars(module).update(attributes)
    return {"apex": apex, f"apex.{name}": module}


def trained(kernel: str, resumed: bool = False) -> list[list[float]]:
    """Losses, norms and steps; the loss of the third step is no number."""
    sys.modules.update(stand_in("optimizers", FusedAdam=StandInAdam))
    layout = Layout(accumulation=1)

    def make() -> StudentEngine:
        return StudentEngine(
            "s0",
            build_student(runs.student_options((1, 2)), runs.SEED),
            runs.settings_of(layout, 1),
            AdamW(3e-3, 0.05, max_gradient_norm=0.05, kernel=kernel),
            1,
            torch.device("cpu"),
        )

    student, rows = make(), []
    for step in range(8):
        if resumed and step == 5:
            again = make()
            runs.copy_state(student, again)
            student = again
        micro = runs.make_batch(step, layout, 0, 1).micro_batches[0]
        output = student(input_ids=micro.input_ids, attention_mask=micro.attention_mask)
        loss = sum(signal.square().mean() for signal in output.signals)
        student.backward(loss * (math.nan if step == 2 else 1.0))
        result = student.step(3e-3)
        numbers = (loss, result.gradient_norm, result.applied)
        rows.append([*map(float, numbers), student.counters()["adam_steps"]])
    return rows


def test_apex_takes_the_steps_that_torchs_takes_and_leaves_out_the_bad_one() -> None:
    wanted = run_distributed(trained, 1, "torch")[0]
    found = run_distributed(trained, 1, "apex")[0]
    for step, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one == pytest.approx(other, rel=1e-5, nan_ok=True)
        assert one[2] == float(step != 2) and one[3] == step + (step < 2)


@pytest.mark.parametrize("kernel", ["torch", "apex"])
def test_it_goes_on_where_it_was_saved(kernel: str) -> None:
    whole, resumed = (run_distributed(trained, 1, kernel, again)[0] for again in (False, True))
    assert list(map(repr, resumed)) == list(map(repr, whole))


def test_without_apex_its_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parallel.adamw: apex: there is no NVIDIA apex here"):
        make_adamw(
            "apex", [], learning_rate=1.0, betas=(0.9, 0.999), epsilon=1e-6, weight_decay=0.0
        )
    with pytest.raises(ValueError, match=r"parallel.layer_norm: apex: there is no NVIDIA apex"):
        use_layer_norms("apex", nn.Sequential())


def test_layer_norms_keep_their_parameters_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in stand_in("normalization", FusedLayerNorm=StandInLayerNorm).items():
        monkeypatch.setitem(sys.modules, name, module)
    student = build_student(runs.student_options((1, 2)), 1)
    before = {name: parameter for name, parameter in student.named_parameters()}
    epsilon = student.bert.embeddings.LayerNorm.eps
    use_layer_norms("apex", student)
    after = dict(student.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    norms = [one for one in student.modules() if isinstance(one, nn.LayerNorm)]
    assert len(norms) == 5 and {type(one) for one in norms} == {StandInLayerNorm}
    assert student.bert.embeddings.LayerNorm.eps == epsilon


def test_by_default_it_is_torchs_fused_one() -> None:
    assert AdamW(1.0).kernel == "auto"
    made = make_adamw(
        "auto",
        [{"params": [nn.Parameter(torch.zeros(2))]}],
        learning_rate=1.0,
        betas=(0.9, 0.999),
        epsilon=1e-6,
        weight_decay=0.0,
    )
    assert isinstance(made, torch.optim.AdamW) and made.defaults["fused"]
    assert engine_module.make_adamw is make_adamw
