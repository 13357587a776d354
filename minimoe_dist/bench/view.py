"""All that was found, as tables for people, JSON for programs, and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..planning.machine import Machine
from .device import DeviceRates
from .steps import StepTimes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Findings:
    """Of one call.

    Attributes:
        machine: as it is written.
        device: what it is, in words.
        rates: of the device.
        link: bytes a second of a rank by what was sent, and the seconds of a collective as
            ``latency``; None of one process.
        recipe: what was measured, as pairs of words.
        sequences: of a step, of all ranks.
        times: of the steps.
        planned: by the machine, part -> seconds of the same step.
        products: part -> seconds of its matrix products alone.
    """

    machine: Machine
    device: str
    rates: DeviceRates
    link: Mapping[str, float] | None
    recipe: Sequence[tuple[str, str]]
    sequences: int
    times: StepTimes
    planned: Mapping[str, float]
    products: Mapping[str, float]

    @property
    def off(self) -> float:
        """By which share the planned step differs from the fastest one."""
        return sum(self.planned.values()) / self.times.seconds - 1.0

    def as_json(self) -> dict[str, Any]:
        """Seconds, bytes a second, operations a second."""
        times = self.times
        return {
            "device": self.device,
            "ranks": self.machine.ranks,
            "products": [one._asdict() | {"rate": one.rate} for one in self.rates.products],
            "memory": self.rates.memory,
            "launch": self.rates.launch,
            "recorded_launch": self.rates.recorded_launch,
            "link": self.link,
            "recipe": dict(self.recipe),
            "step": {
                "seconds": times.seconds,
                "median_seconds": times.median_seconds,
                "sequences_per_second": self.sequences / times.seconds,
                "parts": times.fastest,
                "planned": self.planned,
                "products": self.products,
                "off": self.off,
            },
        }


def show(found: Findings, console: Console) -> None:
    """Prints the machine, then the step."""
    rates = found.rates
    table = Table(title="This machine", show_header=False)
    table.add_row("device", found.device)
    table.add_row("ranks", f"{found.machine.ranks}")
    table.add_row("memory", f"{rates.memory / 1e9:,.3g} GB/s read and written")
    table.add_row("a launch", _time(rates.launch))
    if rates.recorded_launch is not None:
        table.add_row("a recorded launch", _time(rates.recorded_launch))
    if found.link is None:
        table.add_row("link", "not measured: one process; start several to see it")
    for what, value in (found.link or {}).items():
        words = _time(value) if what == "latency" else f"{value / 1e9:,.3g} GB/s a rank"
        table.add_row(f"link: {what}", words)
    console.print(table)
    console.print(_products(found))
    table = Table(title="What was measured", show_header=False)
    for row in found.recipe:
        table.add_row(*row)
    console.print(table)
    console.print(_step(found))


def _products(found: Findings) -> Table:
    by_type: dict[str, dict[str, float]] = {}
    for one in found.rates.products:
        shape = f"{one.rows} · {one.inner} · {one.outer}"
        by_type.setdefault(one.dtype, {})[shape] = one.rate
    table = Table("rows · in · out", *by_type, title="Matrix products, TFLOP/s")
    for shape in next(iter(by_type.values())):
        table.add_row(shape, *(f"{rates[shape] / 1e12:,.3g}" for rates in by_type.values()))
    return table


def _step(found: Findings) -> Table:
    whole, parts = found.times.seconds, found.times.fastest
    columns = ("part of the step", "time", "share", "plan", "products alone")
    table = Table(*columns, title="A step")
    for part in dict.fromkeys([*parts, *found.planned]):
        measured, share = "", ""
        if part in parts:
            measured, share = _time(parts[part]), f"{parts[part] / whole:.0%}"
        rest = [
            _time(one[part]) if one.get(part) else "" for one in (found.planned, found.products)
        ]
        table.add_row(part, measured, share, *rest)
    table.add_section()
    sums = [_time(sum(one.values())) for one in (found.planned, found.products)]
    table.add_row("the fastest step", _time(whole), f"{found.off:+.1%}", *sums)
    table.add_row("the median step", _time(found.times.median_seconds))
    table.add_row("sequences/s", f"{found.sequences / whole:,.1f}")
    return table


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.2f} s"
    return f"{1e3 * seconds:,.2f} ms" if seconds >= 1e-4 else f"{1e6 * seconds:,.2f} µs"


def draw(found: Findings, target: Path) -> None:
    """Rates of products by size, and the step's parts beside plan and products, as a PNG."""
    # Takes a second to import: only where something is drawn.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    rates, parts = figure.subplots(1, 2)
    for index, (dtype, fitted) in enumerate(found.machine.products.items()):
        points = sorted((one.size, one.rate) for one in found.rates.products if one.dtype == dtype)
        sizes, measured = zip(*points, strict=True)
        rates.plot(sizes, [rate / 1e12 for rate in measured], "o", color=f"C{index}", label=dtype)
        rates.plot(sizes, [fitted.of(size) / 1e12 for size in sizes], color=f"C{index}", alpha=0.5)
    rates.set(xlabel="size (harmonic mean of the extents)", ylabel="TFLOP/s", ylim=(0, None))
    rates.set_title("Matrix products (lines: what plans take)")
    rates.grid(alpha=0.3)
    rates.legend()
    _draw_parts(parts, found)
    figure.suptitle(found.device)
    figure.savefig(target, dpi=110)


def _draw_parts(axes: "Axes", found: Findings) -> None:
    bars = {"measured": found.times.fastest, "plan": found.planned}
    bars["matrix products alone"] = found.products
    names = list(dict.fromkeys([*found.times.fastest, *found.planned]))
    for index, (label, seconds) in enumerate(bars.items()):
        heights = [place + 0.27 * (index - 1) for place in range(len(names))]
        axes.barh(heights, [1e3 * seconds.get(name, 0.0) for name in names], 0.26, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="ms", title=f"A step of {_time(found.times.seconds)}")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="lower right")
