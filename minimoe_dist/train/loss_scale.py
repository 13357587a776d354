"""Keeps and changes float16's loss scale on the device, so that no step waits for the host.

The rule is DeepSpeed's: a gradient that is not finite costs one of ``hysteresis`` lives, and the
last one halves the scale; ``loss_scale_window`` good steps in a row double it. At its least, the
scale stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FACTOR = 2.0


@dataclass(frozen=True)
class LossScaleOptions:
    """DeepSpeed's ``fp16`` section, with its defaults.

    Attributes:
        static: the scale if it never changes; 0 for one that does.
        initial_power: the first scale is 2 to this power.
        window: good steps before the scale grows.
        hysteresis: bad steps before it falls.
        consecutive_hysteresis: whether every good step restores all lives.
        minimum: the scale never falls below it.
    """

    static: float = 0.0
    initial_power: int = 16
    window: int = 1000
    hysteresis: int = 2
    consecutive_hysteresis: bool = False
    minimum: float = 1.0

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> "LossScaleOptions":
        """Reads DeepSpeed's section."""
        return cls(
            float(settings.get("loss_scale", 0.0)),
            int(settings.get("initial_scale_power", 16)),
            int(settings.get("loss_scale_window", 1000)),
            int(settings.get("hysteresis", 2)),
            bool(settings.get("consecutive_hysteresis", False)),
            float(settings.get("min_loss_scale", 1.0)),
        )


class LossScale:
    """The scale of one student's losses, by four numbers on its device.

    Attributes:
        scale: float32, what the next loss is multiplied by.
    """

    def __init__(self, options: LossScaleOptions, device: torch.device) -> None:
        first = options.static or 2.0**options.initial_power
        self._options = options
        self.scale = torch.tensor(first, dtype=torch.float32, device=device)
        self._steps = torch.zeros((), dtype=torch.int64, device=device)
        self._last_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._lives = torch.full((), options.hysteresis, dtype=torch.int64, device=device)

    @property
    def can_fall(self) -> Tensor:
        """Whether a bad step is no more than a step of the search for a scale; bool scalar."""
        if self._options.static:
            return torch.zeros_like(self.scale, dtype=torch.bool)
        return self.scale > self._options.minimum

    def update(self, bad: Tensor) -> None:
        """Ends a step; ``bad`` is a bool scalar, whether its gradient was not finite."""
        if self._options.static:
            return
        options = self._options
        falls = bad & (self._lives == 1)
        fallen = (self.scale / _FACTOR).clamp(min=options.minimum)
        steps_since_bad = self._steps - self._last_bad - 1
        grows = ~bad & (steps_since_bad > 0) & (steps_since_bad % options.window == 0)
        self.scale.copy_(
            torch.where(falls, fallen, torch.where(grows, self.scale * _FACTOR, self.scale))
        )
        restored = ~bad if options.consecutive_hysteresis else grows
        lives = torch.where(bad & ~falls, self._lives - 1, self._lives)
        self._lives.copy_(torch.where(restored, options.hysteresis, lives))
        self._last_bad.copy_(torch.where(bad, self._steps, self._last_bad))
        self._steps += 1

    def state(self) -> dict[str, float]:
        """Returns what resuming needs, by DeepSpeed's names; waits for the device."""
        return {
            "cur_scale": float(self.scale),
            "cur_iter": int(self._steps),
            "last_overflow_iter": int(self._last_bad),
            "cur_hysteresis": int(self._lives),
        }

    def restore(self, state: Mapping[str, float]) -> None:
        """Restores what :meth:`state` returned."""
        self.scale.fill_(state["cur_scale"])
        self._steps.fill_(state["cur_iter"])
        self._last_bad.fill_(state["last_overflow_iter"])
        self._lives.fill_(state["cur_hysteresis"])
