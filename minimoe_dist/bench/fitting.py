"""Fits the description of a machine, for plans, to measurements."""

from collections.abc import Mapping
from typing import Any

from ..planning.layout import Layout
from ..planning.machine import Machine
from ..planning.plan import Planner
from ..planning.rates import BACKWARD, FORWARD, TEACHER, UPDATE, fit_rate, rounded
from ..planning.timing import part_seconds
from .device import DeviceRates

_LEAST_SHARE = 0.1  # of a part's time, that remains when exchanges inside of it are taken away
_EXCHANGED_IN = {
    "teacher": (TEACHER,),
    "experts": (FORWARD, BACKWARD),
    "ZeRO-3 weights": (FORWARD, BACKWARD),
}


def machine_of_rates(values: Mapping[str, Any], rates: DeviceRates) -> Machine:
    """Makes a machine of its device's measured rates; the factors of a step's parts are unknown.

    Args:
        values: the machine's other fields.
        rates: measured rates of the device.
    """
    by_type: dict[str, list[tuple[float, float]]] = {}
    for product in rates.products:
        by_type.setdefault(product.dtype, []).append((product.size, product.rate))
    best = {dtype: max(rate for _, rate in points) for dtype, points in by_type.items()}
    # A type that a CPU only converts is not to be chosen for its speed.
    fast = {dtype: rate for dtype, rate in best.items() if rate >= best["float32"]}
    measured = {
        "tflops": {dtype: rounded(rate / 1e12) for dtype, rate in fast.items()},
        "products": {dtype: fit_rate(points) for dtype, points in by_type.items()},
        "memory_gb_per_second": rounded(rates.memory / 1e9),
        "launch_microseconds": rounded(1e6 * rates.launch),
        "recorded_launch_microseconds": rounded(1e6 * (rates.recorded_launch or 0.0)),
    }
    return Machine.model_validate({**values, **measured})


def fit_machine(
    machine: Machine, planner: Planner, layout: Layout, step: Mapping[str, float]
) -> Machine:
    """Fits a machine so that a plan takes as long as a measured step, part by part.

    Args:
        machine: machine of measured rates.
        planner: planner of the recipe, with batches as they were measured.
        layout: layout of the measured step.
        step: measured seconds by part; parts that a plan does not have go with the update.
    """
    counted: dict[str, float] = {}
    for part, work in planner.work(layout, machine):
        counted[part] = counted.get(part, 0.0) + part_seconds(machine, part, work)
    seconds = dict.fromkeys(counted, 0.0)
    for part, spent in step.items():
        seconds[part if part in counted else UPDATE] += spent
    # Plans count exchanges between ranks apart from the parts that they are in.
    for kind, exchanged in planner.predict(layout, machine).traffic.items():
        early = kind == "gradients" and layout.zero_stage >= 2
        inside = (BACKWARD,) if early else _EXCHANGED_IN.get(kind, (UPDATE,))
        for part in inside:
            remaining = seconds[part] - exchanged.seconds / len(inside)
            seconds[part] = max(remaining, _LEAST_SHARE * seconds[part])
    parts = {part: rounded(seconds[part] / predicted) for part, predicted in counted.items()}
    return machine.model_copy(update={"parts": parts})
