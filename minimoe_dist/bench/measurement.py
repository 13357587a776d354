"""Measures the machine, the link between ranks, and a recipe's step."""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..config import RunConfig
from ..config.commands import BenchOptions
from ..data.loader import StepBatch
from ..doctor.ranks import bandwidths, latency
from ..models.measuring import describe_machine
from ..planning.layout import layout_of_recipe
from ..planning.plan import Corpus, Planner
from ..planning.rates import rounded
from ..planning.timing import product_seconds
from ..recipes.building import make_distiller, with_precision
from ..recipes.model_types import open_lesson
from ..runtime import Launch
from ..train.engine import release
from ..train.progress import Progress
from ..train.scope import Scope
from .clocks import StepClock, stamps_of
from .device import DeviceRates, count_measurements, measure_device
from .fitting import fit_machine, machine_of_rates
from .machines import at_hand
from .recipe import Labels, make_batches, with_models
from .steps import StepTimes, measure_steps
from .view import Findings

RANDOM_MODEL = "random_model"
_WARM_UP, _COMPILING_WARM_UP = 2, 4

Result = TypeVar("Result")
Link = dict[str, float] | None


class Measurement:
    """One call of ``minimoe-dist bench`` on this rank."""

    def __init__(
        self, options: BenchOptions, config: RunConfig, launch: Launch, scope: Scope
    ) -> None:
        self.options = options
        self.launch = launch
        self.stop = scope.stop
        self.device = scope.device
        folder = Path(options.output) / RANDOM_MODEL
        self.config, self.labels = with_models(with_precision(config, scope.device), folder)

    def findings(self) -> Findings:
        """Measures everything; a collective."""
        count = count_measurements(self.device)
        measure = partial(measure_device, self.device, self.options.seconds)
        rates = self._with_progress("measuring the machine", count, measure)
        link = self._link()
        times, filled, labels = self._step()
        return self._findings(rates, link, times, filled, labels)

    def _with_progress(
        self, label: str, count: int, measure: Callable[[Callable[[], None]], Result]
    ) -> Result:
        """Runs ``measure`` and shows its progress; ends where a signal asks for it."""
        stream = sys.stdout if self.launch.rank == 0 else None
        completed, started = 0, time.perf_counter()

        def tell() -> None:
            nonlocal completed
            completed += 1
            if self.stop.requested:
                raise KeyboardInterrupt
            rate = {f"{label}, a second": completed / (time.perf_counter() - started)}
            progress.advance(rate)
            progress.print_without_bar(completed, rate)

        with Progress(stream, count, 0, label) as progress:
            return measure(tell)

    def _link(self) -> Link:
        if self.launch.world_size == 1:
            return None
        link = {"latency": latency(self.device)}
        for kind, by_size in bandwidths(self.device).items():
            link |= {f"{kind} of {size}": 1e9 * speed for size, speed in by_size.items()}
        return link

    def _step(self) -> tuple[StepTimes, float, Labels]:
        """Returns times of steps, the share of positions without padding, and labels of both."""
        config, steps, device = self.config, self.options.steps, self.device
        lesson = open_lesson(config, device)
        batches, share, labels = make_batches(
            config, self.options.filled, lesson.teacher.vocab_size
        )
        clock = StepClock(stamps_of(device))
        total = steps + _COMPILING_WARM_UP
        distiller = make_distiller(config, lesson, self.launch, device, total, clock.mark)
        warm_up = _COMPILING_WARM_UP if distiller.warms_up else _WARM_UP
        if distiller.warms_up and self.launch.rank == 0:
            print("compiling passes, which takes a minute or two", flush=True)
        measure = partial(
            measure_steps,
            lambda step: distiller.train_step(StepBatch([*batches], step), step, False),
            clock,
            warm_up=warm_up,
            steps=steps,
            reads_behind=device.type == "cuda",
        )
        times = self._with_progress(
            "measuring steps", warm_up + steps, lambda tell: measure(tell=tell)
        )
        for student in distiller.students:
            student.close()
        if lesson.model is not None:
            release(lesson.model)
        return times, share, labels

    def _findings(
        self, rates: DeviceRates, link: Link, times: StepTimes, filled: float, labels: Labels
    ) -> Findings:
        config = self.config
        planner = Planner(config, Corpus(1, filled * config.data.max_length))
        layout = layout_of_recipe(config, self.launch.world_size)
        device = describe_machine(self.device)
        machine = machine_of_rates(self._fixed_fields(str(device["name"]), link), rates)
        machine = fit_machine(machine, planner, layout, times.fastest)
        products: dict[str, float] = {}
        for part, work in planner.work(layout, machine):
            products[part] = products.get(part, 0.0) + product_seconds(machine, work)
        threads = f", {device['threads']} threads a rank" if "threads" in device else ""
        return Findings(
            machine=machine,
            device=f"{device['name']}{threads}",
            rates=rates,
            link=link,
            recipe=[*self.labels, *labels],
            sequences=layout.global_batch,
            times=times,
            planned=planner.predict(layout, machine).seconds,
            products=products,
        )

    def _fixed_fields(self, name: str, link: Link) -> dict[str, Any]:
        """Returns the machine's fields that its device's rates do not tell."""
        launch = self.launch
        nodes = max(1, launch.world_size // launch.local_world_size)
        values = at_hand(self.device.type, launch.local_world_size)
        values |= {"name": name, "nodes": nodes}
        if link is not None:
            between = "link_gb_per_second" if nodes == 1 else "network_gb_per_second"
            values[between] = rounded(link["all-reduce of 16 MiB"] / 1e9)
            values["latency_microseconds"] = rounded(1e6 * link["latency"])
        return values
