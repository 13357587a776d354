"""The loss scale against DeepSpeed's own, over rows of good and bad steps."""

import random

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from minimoe_dist.train.loss_scale import LossScale, LossScaleOptions

FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def deepspeeds(options: LossScaleOptions) -> DynamicLossScaler:
    return DynamicLossScaler(
        init_scale=2**options.initial_power,
        scale_window=options.window,
        min_scale=options.minimum,
        delayed_shift=options.hysteresis,
        consecutive_hysteresis=options.consecutive_hysteresis,
        raise_error_at_min_scale=False,
    )


@pytest.mark.parametrize("hysteresis", [1, 2, 3])
@pytest.mark.parametrize("consecutive", [False, True])
@pytest.mark.parametrize("share_of_bad", [0.0, 0.05, 0.4])
def test_scale_goes_the_way_of_deepspeeds(
    hysteresis: int, consecutive: bool, share_of_bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It asks for the rank before it logs.
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 1)
    options = LossScaleOptions(0.0, 8, 5, hysteresis, consecutive, 1.0)
    own, other = LossScale(options, torch.device("cpu")), deepspeeds(options)
    rng = random.Random(hysteresis)
    for _ in range(120):
        bad = rng.random() < share_of_bad
        own.update(torch.tensor(bad))
        other.update_scale(bad)
        assert own.state() == {name: getattr(other, name) for name in FIELDS}


def test_restored_state_goes_on_as_it_would_have() -> None:
    options = LossScaleOptions(initial_power=8, window=3)
    whole, first = (LossScale(options, torch.device("cpu")) for _ in range(2))
    bad = [torch.tensor(step in (1, 2)) for step in range(12)]
    for one in bad[:5]:
        first.update(one)
    resumed = LossScale(options, torch.device("cpu"))
    resumed.restore(first.state())
    for step, one in enumerate(bad):
        whole.update(one)
        if step >= 5:
            resumed.update(one)
    assert resumed.state() == whole.state()


def test_static_scale_stays() -> None:
    scale = LossScale(LossScaleOptions(static=128.0), torch.device("cpu"))
    scale.update(torch.tensor(True))
    assert float(scale.scale) == 128.0
