"""Predicts memory, time, traffic, size and cost of a run in each layout, and recommends one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from ..config import ConfigError, RunConfig
from ..config.model_types import Learns
from ..data.signal_bytes import RELATIONS, bytes_per_token
from .layout import PRECISIONS, Layout, alternatives, layout_of_recipe
from .machine import GIB, Machine
from .memory import Precision, memory_of, teacher_batch, teacher_parameters
from .passes import Batch, Passes
from .rates import BACKWARD, FORWARD, TEACHER, UPDATE
from .sizes import EncoderSizes, Exports, student_sizes, teacher_sizes
from .timing import part_seconds
from .traffic import Traffic, traffic_of
from .work import (
    Work,
    relation_work,
    student_work,
    teacher_work,
    update_work,
)

_CHECKPOINT_BYTES = 12  # float32 masters and two moments of a parameter
SECONDS_A_DAY = 86_400
MOST_LAYOUTS = 8  # that a plan offers, of different kinds; passes are run for each one's memory


@dataclass(frozen=True)
class Corpus:
    """The size of the text that a run reads.

    Attributes:
        samples: number of samples of one epoch.
        mean_length: tokens of a sample that are no padding.
        known: False where both were assumed.
    """

    samples: int
    mean_length: float
    known: bool = True


@dataclass(frozen=True)
class Prediction:
    """The prediction of one layout on one machine.

    Attributes:
        layout: how the run is spread.
        seconds: seconds of a step by part.
        traffic: traffic of a rank in a step, by kind.
        tflops: operations of a rank and step in 10^12.
        filling: seconds before the first step, in which the teacher's cache is filled.
    """

    layout: Layout
    seconds: dict[str, float]
    traffic: dict[str, Traffic]
    tflops: float
    filling: float
    _machine: Machine
    _memory: Callable[[], dict[str, float]]

    @cached_property
    def memory(self) -> dict[str, float]:
        """The bytes by part of a rank at its highest; passes are run for it at the first read."""
        return self._memory()

    @property
    def fits(self) -> bool:
        """Whether the layout fits into a rank's memory."""
        return self.memory_total <= self._machine.memory_gib * GIB

    @property
    def memory_total(self) -> float:
        """The bytes of a rank at its highest."""
        return sum(self.memory.values())

    @property
    def step_seconds(self) -> float:
        """The seconds of a step, whose parts run one after the other."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Plan:
    """The predictions of a run on a machine.

    Attributes:
        machine: the machine that it runs on.
        recipe: prediction of the layout that the recipe states.
        best: fastest layout that fits of each way to hold students and teacher, of eight ways at
            most; the recommended one first. Empty where nothing fits.
        parameters: number of parameters of each student.
        teacher_parameters: number of parameters of the teacher's part that runs.
        checkpoint_bytes, export_bytes: bytes of one checkpoint, and of all exports.
        steps: steps of the whole run; None where the corpus is not known.
        cache_bytes: bytes of the teacher's cache; None without one, or where the corpus is not
            known.
    """

    machine: Machine
    recipe: Prediction
    best: list[Prediction]
    parameters: dict[str, int]
    teacher_parameters: int
    checkpoint_bytes: int
    export_bytes: int
    steps: int | None
    cache_bytes: float | None = None

    def days(self, prediction: Prediction) -> float | None:
        """Returns the days of the whole run; None where its steps are not known."""
        if self.steps is None:
            return None
        seconds = self.steps * prediction.step_seconds + prediction.filling
        return seconds / SECONDS_A_DAY

    def price(self, prediction: Prediction) -> float | None:
        """Returns the price of the whole run, in the machine's currency; None where unknown."""
        days = self.days(prediction)
        if days is None or not self.machine.price_per_device_hour:
            return None
        return days * 24 * self.machine.ranks * self.machine.price_per_device_hour


class Planner:
    """Predicts a run in layouts and on machines, by the sizes of its models and batches.

    Args:
        config: the run.
        corpus: the text that it reads; None where that is not known.
        future_exports: configurations of models that an earlier stage will export.
        passes: passes of the run, for its memory; None where only times are asked for.

    Raises:
        ConfigError: a model's sizes are not known here.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus | None,
        future_exports: Exports | None = None,
        passes: Passes | None = None,
    ) -> None:
        future_exports = future_exports or {}
        self._passes = passes
        self.config = config
        self.corpus = corpus
        self.teacher = teacher_sizes(config, future_exports)
        self.students = [
            student_sizes(config, student, future_exports) for student in config.students
        ]

    def plan(self, machine: Machine) -> Plan:
        """Predicts the recipe's layout and all others on a machine.

        Raises:
            ConfigError: the machine's ranks cannot be divided as the recipe says.
        """
        counts = {
            options.name: sum(sizes.parameters())
            for options, sizes in zip(self.config.students, self.students, strict=True)
        }
        total = sum(counts.values())
        stated = self.predict(layout_of_recipe(self.config, machine.ranks), machine)
        return Plan(
            machine=machine,
            recipe=stated,
            best=self._best(machine),
            parameters=counts,
            teacher_parameters=teacher_parameters(self.teacher) if self.teacher else 0,
            checkpoint_bytes=_CHECKPOINT_BYTES * total,
            export_bytes=4 * total,
            steps=self._steps(stated.layout.global_batch),
            cache_bytes=self._cache_bytes(),
        )

    def predict(self, layout: Layout, machine: Machine) -> Prediction:
        """Predicts one layout on a machine."""
        traffic, works = traffic_of(*self._conditions(layout, machine)), self.work(layout, machine)
        seconds: dict[str, float] = {}
        for part, work in works:
            seconds[part] = seconds.get(part, 0.0) + part_seconds(machine, part, work)
        for kind, exchanged in traffic.items():
            seconds[f"exchange of {kind}"] = exchanged.seconds
        return Prediction(
            layout=layout,
            seconds=seconds,
            traffic=traffic,
            tflops=sum(work.operations for _, work in works) / 1e12,
            filling=self._filling(layout, machine),
            _machine=machine,
            _memory=partial(self._memory, layout, machine),
        )

    def _memory(self, layout: Layout, machine: Machine) -> dict[str, float]:
        assert self._passes is not None, "only times are planned"
        return memory_of(*self._conditions(layout, machine), self._passes)

    def _conditions(
        self, layout: Layout, machine: Machine
    ) -> tuple[list[EncoderSizes], EncoderSizes | None, Layout, Batch, Precision, Machine]:
        batch, precision = self._batch(layout, machine), self._precision(layout, machine)
        return self.students, self.teacher, layout, batch, precision, machine

    def work(self, layout: Layout, machine: Machine) -> list[tuple[str, Work]]:
        """Lists the work of a rank in a step, each with the name of its part of the step."""
        batch, precision = self._batch(layout, machine), self._precision(layout, machine)
        recorded = (
            batch.packed and layout.zero_stage == 1 and self.config.parallel.compile == "auto"
        )
        times, size = layout.accumulation, layout.expert_parallel_size
        works: list[tuple[str, Work]] = []
        if self.teacher is not None and not self._is_cached:
            teacher_pass = self._teacher_pass(layout, machine)
            takes_packed = teacher_batch(batch, layout).packed
            works.append((TEACHER, replace(teacher_pass, recorded=recorded and takes_packed)))
        for student in self.students:
            parallel = size if student.has_experts else 1
            passes = student_work(student, batch, precision.student, parallel)
            for part, work in zip((FORWARD, BACKWARD), passes, strict=True):
                works.append((part, replace(work, recorded=recorded and parallel == 1)))
            heads = self.config.objective.num_relation_heads
            dtype = precision.student if batch.packed else "float32"
            comparison = relation_work(student, self.teacher, heads, batch, dtype)
            works.append((FORWARD, comparison))
        works = [(part, work.times(times)) for part, work in works]
        updates = [update_work(self._updated(student, layout)) for student in self.students]
        return works + [(UPDATE, work) for work in updates]

    @property
    def _is_cached(self) -> bool:
        return self.config.teacher.cache != "none"

    def _teacher_pass(self, layout: Layout, machine: Machine) -> Work:
        assert self.teacher is not None
        batch, precision = self._batch(layout, machine), self._precision(layout, machine)
        return teacher_work(self.teacher, teacher_batch(batch, layout), precision.teacher)

    def _distinct_pairs(self) -> int:
        """Returns the number of pairs whose signals are kept; 0 where that is not known."""
        return self.config.teacher.cache_epochs * self.corpus.samples if self.corpus else 0

    def _filling(self, layout: Layout, machine: Machine) -> float:
        """Returns the seconds in which a cache is filled, by passes of a step's batches."""
        if self.teacher is None or not self._is_cached:
            return 0.0
        passes = math.ceil(self._distinct_pairs() / (layout.micro_batch * layout.ranks))
        return passes * part_seconds(machine, TEACHER, self._teacher_pass(layout, machine))

    def _cache_bytes(self) -> float | None:
        if self.teacher is None or not self._is_cached or self.corpus is None:
            return None
        tokens = self._distinct_pairs() * self.corpus.mean_length
        signals = RELATIONS + self.config.learns_last_states
        return tokens * bytes_per_token(self.teacher.width, self.config.teacher.cache, signals)

    def smallest_memory(self, machine: Machine) -> float:
        """Returns the memory of a rank, in GiB, with which some layout would fit."""
        layouts = self._layouts(machine)
        batch = min(layout.micro_batch for layout in layouts)
        smallest = [layout for layout in layouts if layout.micro_batch == batch]
        return min(self.predict(layout, machine).memory_total for layout in smallest) / GIB

    def _layouts(self, machine: Machine) -> list[Layout]:
        stated = layout_of_recipe(self.config, machine.ranks)
        return [
            stated,
            *alternatives(self.config, machine, self.students, self.teacher),
        ]

    def _best(self, machine: Machine) -> list[Prediction]:
        best: dict[tuple[Any, ...], Prediction] = {}
        predictions = (self.predict(layout, machine) for layout in self._layouts(machine))
        for prediction in sorted(predictions, key=_preference):
            layout = prediction.layout
            kind = (layout.zero_stage, layout.expert_parallel_size, layout.teacher_layout)
            if kind not in best and prediction.fits:
                best[kind] = prediction
            if len(best) == MOST_LAYOUTS:
                break
        return list(best.values())

    def _batch(self, layout: Layout, machine: Machine) -> Batch:
        length = self.config.data.max_length
        filled = min(1.0, self.corpus.mean_length / length) if self.corpus else 1.0
        packed = machine.device == "cuda" and takes_packed(self.config)
        by_megatron = self.config.teacher.implementation == "megatron"
        is_padded = by_megatron or (self.teacher is not None and self.teacher.runs_padded)
        return Batch(layout.micro_batch, length, filled, packed, taught_padded=is_padded)

    def _precision(self, layout: Layout, machine: Machine) -> Precision:
        teacher, student = self.config.teacher.dtype, self.config.parallel.precision
        narrow = [dtype for dtype in ("bfloat16", "float16") if dtype in machine.tflops]
        fast: Any = narrow[0] if narrow else "float32"
        if student == "auto":
            students = "float32" if layout.zero_stage == 0 else fast
        else:
            students = PRECISIONS[student]
        return Precision(students, fast if teacher == "auto" else teacher)

    def _updated(self, student: EncoderSizes, layout: Layout) -> float:
        """Returns the number of parameters that a rank updates."""
        shared, experts = student.parameters()
        parts = layout.ranks if layout.zero_stage else 1
        rank_experts = experts / (layout.expert_parallel_size if student.has_experts else 1)
        return (shared + rank_experts) / parts

    def _steps(self, global_batch: int) -> int | None:
        training = self.config.training
        if training.max_steps is not None:
            return training.max_steps
        if self.corpus is None:
            return None
        samples = training.num_train_epochs * self.corpus.samples
        return max(1, math.ceil(samples / global_batch))


def takes_packed(config: RunConfig) -> bool:
    """Tells whether a run's batches may come without their padding."""
    return config.compat != "seed" and config.kind.learns is not Learns.STATES


def _preference(prediction: Prediction) -> tuple[float, ...]:
    """Returns a sort key: faster first, and the simpler of those within two per cent."""
    layout = prediction.layout
    coarse_seconds = round(math.log(max(prediction.step_seconds, 1e-12)) / math.log(1.02))
    complexity = (
        layout.accumulation,
        layout.teacher_parallel_size,
        layout.expert_parallel_size,
        abs(layout.zero_stage - 1),
    )
    return (coarse_seconds, *complexity)


def nothing_fits(planner: Planner, machines: Sequence[Machine], machine: Machine) -> ConfigError:
    """Words the error that nothing fits, and names the smallest machine that would do."""
    needed = planner.smallest_memory(machine)
    larger = sorted(
        (other for other in machines if planner.smallest_memory(other) <= other.memory_gib),
        key=lambda other: (other.ranks * other.memory_gib, other.ranks),
    )
    hint = (
        f"the smallest that would do of those described is {larger[0].name}"
        if larger
        else ("none of those described would do; use smaller students or a smaller teacher")
    )
    return ConfigError(
        f"machine: nothing fits {machine.name}: a rank needs {needed:.1f} GiB at least and has "
        f"{machine.memory_gib:g}; {hint}"
    )
