"""Learning rates as pure functions of the step, so that a resumed run needs no scheduler state."""

import math
from collections.abc import Callable

from ..errors import UserError

Schedule = Callable[[int], float]


def make_schedule(kind: str, peak: float, total_steps: int, warmup_proportion: float) -> Schedule:
    """Makes the function that gives the learning rate of step 0, 1, … of ``total_steps``.

    Args:
        kind: ``linear`` (to zero), ``cosine`` (to zero), ``constant`` (without warm-up) or
            ``constant_with_warmup``.
        peak: the highest learning rate.
        total_steps: steps of the whole run.
        warmup_proportion: share of the steps over which the rate rises from zero.

    Raises:
        UserError: an unknown ``kind``.
    """
    warmup = 0 if kind == "constant" else math.ceil(warmup_proportion * total_steps)
    decays: dict[str, Callable[[float], float]] = {
        "linear": lambda progress: 1.0 - progress,
        "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
        "constant": lambda progress: 1.0,
        "constant_with_warmup": lambda progress: 1.0,
    }
    if kind not in decays:
        raise UserError(f"lr_scheduler_type: {kind!r} is unknown: use one of {sorted(decays)}")
    decay = decays[kind]

    def rate(step: int) -> float:
        if step < warmup:
            # The first update should move, hence step + 1.
            return peak * (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return peak * decay(progress)

    return rate
