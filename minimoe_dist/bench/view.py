"""Shows findings as tables for people, JSON for programs, and a picture."""

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
    """The findings of one call of ``bench``.

    Attributes:
        machine: machine that was fitted to the measurements.
        device: description of the device.
        rates: measured rates of the device.
        link: bytes a second of a rank by what was sent, and the seconds of a collective as
            ``latency``; None for one process.
        recipe: labels of what was measured, and their values.
        sequences: sequences of a step, on all ranks.
        times: measured times of the steps.
        planned: seconds of the same step by part, as planned for the machine.
        products: seconds of each part's matrix products alone.
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
        """The share by which the planned step differs from the fastest one."""
        return sum(self.planned.values()) / self.times.seconds - 1.0

    def as_json(self) -> dict[str, Any]:
        """Returns the findings in seconds, bytes a second and operations a second."""
        times = self.times
        return {
            "device": self.device,
            "ranks": self.machine.ranks,
            "products": [
                product._asdict() | {"rate": product.rate} for product in self.rates.products
            ],
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


def show(findings: Findings, console: Console) -> None:
    """Prints the machine, then the step."""
    rates = findings.rates
    table = Table(title="This machine", show_header=False)
    table.add_row("device", findings.device)
    table.add_row("ranks", f"{findings.machine.ranks}")
    table.add_row("memory", f"{rates.memory / 1e9:,.3g} GB/s read and written")
    table.add_row("a launch", _time(rates.launch))
    if rates.recorded_launch is not None:
        table.add_row("a recorded launch", _time(rates.recorded_launch))
    if findings.link is None:
        table.add_row("link", "not measured: one process; start several to see it")
    for name, value in (findings.link or {}).items():
        text = _time(value) if name == "latency" else f"{value / 1e9:,.3g} GB/s a rank"
        table.add_row(f"link: {name}", text)
    console.print(table)
    console.print(_products(findings))
    table = Table(title="What was measured", show_header=False)
    for row in findings.recipe:
        table.add_row(*row)
    console.print(table)
    console.print(_step(findings))


def _products(findings: Findings) -> Table:
    by_type: dict[str, dict[str, float]] = {}
    for product in findings.rates.products:
        shape = f"{product.rows} · {product.inner} · {product.outer}"
        by_type.setdefault(product.dtype, {})[shape] = product.rate
    table = Table("rows · in · out", *by_type, title="Matrix products, TFLOP/s")
    for shape in next(iter(by_type.values())):
        table.add_row(shape, *(f"{rates[shape] / 1e12:,.3g}" for rates in by_type.values()))
    return table


def _step(findings: Findings) -> Table:
    fastest_seconds, parts = findings.times.seconds, findings.times.fastest
    columns = ("part of the step", "time", "share", "plan", "products alone")
    table = Table(*columns, title="A step")
    for part in dict.fromkeys([*parts, *findings.planned]):
        measured, share = "", ""
        if part in parts:
            measured, share = _time(parts[part]), f"{parts[part] / fastest_seconds:.0%}"
        predictions = [
            _time(seconds[part]) if seconds.get(part) else ""
            for seconds in (findings.planned, findings.products)
        ]
        table.add_row(part, measured, share, *predictions)
    table.add_section()
    sums = [_time(sum(seconds.values())) for seconds in (findings.planned, findings.products)]
    table.add_row("the fastest step", _time(fastest_seconds), f"{findings.off:+.1%}", *sums)
    table.add_row("the median step", _time(findings.times.median_seconds))
    table.add_row("sequences/s", f"{findings.sequences / fastest_seconds:,.1f}")
    return table


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.2f} s"
    return f"{1e3 * seconds:,.2f} ms" if seconds >= 1e-4 else f"{1e6 * seconds:,.2f} µs"


def draw(findings: Findings, target: Path) -> None:
    """Draws rates of products by size, and the step's parts beside plan and products, as a PNG."""
    # The import takes a second, so it is left to where something is drawn.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    rates, parts = figure.subplots(1, 2)
    for index, (dtype, fitted) in enumerate(findings.machine.products.items()):
        points = sorted(
            (product.size, product.rate)
            for product in findings.rates.products
            if product.dtype == dtype
        )
        sizes, measured = zip(*points, strict=True)
        rates.plot(sizes, [rate / 1e12 for rate in measured], "o", color=f"C{index}", label=dtype)
        rates.plot(sizes, [fitted.of(size) / 1e12 for size in sizes], color=f"C{index}", alpha=0.5)
    rates.set(xlabel="size (harmonic mean of the extents)", ylabel="TFLOP/s", ylim=(0, None))
    rates.set_title("Matrix products (lines: what plans take)")
    rates.grid(alpha=0.3)
    rates.legend()
    _draw_parts(parts, findings)
    figure.suptitle(findings.device)
    figure.savefig(target, dpi=110)


def _draw_parts(axes: "Axes", findings: Findings) -> None:
    bars = {"measured": findings.times.fastest, "plan": findings.planned}
    bars["matrix products alone"] = findings.products
    names = list(dict.fromkeys([*findings.times.fastest, *findings.planned]))
    for index, (label, seconds) in enumerate(bars.items()):
        heights = [place + 0.27 * (index - 1) for place in range(len(names))]
        axes.barh(heights, [1e3 * seconds.get(name, 0.0) for name in names], 0.26, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="ms", title=f"A step of {_time(findings.times.seconds)}")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="lower right")
