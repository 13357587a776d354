"""Shows a run's progress, and writes JSON lines (:mod:`..runs.metrics`) and to trackers.

A resumed run appends, after dropping what the interrupted one wrote beyond the step that it
continues from.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from ..runs.folder import RunFolder
from ..runs.health import HealthRecord
from ..runs.metrics import (
    HeldoutRecord,
    MetricsRecord,
    StudentRecord,
    TrainingRecord,
    drop_after,
)
from ..runtime import logger
from .journal import Journal
from .progress import Progress
from .trackers import open_trackers

if TYPE_CHECKING:
    from .step_metrics import StepMetrics

_log = logger("train.metrics")


class Meter:
    """Weighted means and sums of named numbers, and rates by wall time, since the last reset.

    Args:
        clock: gives seconds; monotone.
    """

    def __init__(self, clock: Any = time.perf_counter) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forgets everything and starts the clock anew."""
        self._weighted: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._started: float = self._clock()
        self._paused_seconds = 0.0

    def add(self, name: str, value: float, weight: float = 1.0) -> None:
        """Takes `value` into the mean of `name`; non-finite values make the mean so."""
        self._weighted[name] = self._weighted.get(name, 0.0) + weight * value
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def mean(self, name: str) -> float:
        """Returns the weighted mean; NaN where nothing was added."""
        weight = self._weights.get(name, 0.0)
        return self._weighted[name] / weight if weight else math.nan

    def seconds(self) -> float:
        """Returns the wall time since the last reset, pauses left out."""
        return self._clock() - self._started - self._paused_seconds

    def sum(self, name: str) -> float:
        """Returns the sum of weight times value; 0 where nothing was added."""
        return self._weighted.get(name, 0.0)

    def rates(self, *names: str) -> list[float]:
        """Returns each one's sum per second of wall time, pauses left out, all at one moment."""
        seconds = self.seconds()
        return [self.sum(name) / seconds if seconds > 0 else math.nan for name in names]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of the rates."""
        started = self._clock()
        try:
            yield
        finally:
            self._paused_seconds += self._clock() - started


class Metrics:
    """Collects what steps did and shows it; does nothing on ranks that do not write.

    Rates count from the making of this object: make it right before the first step.

    Args:
        output_dir: the run's folder.
        total_steps: steps of the whole run, resumed part included.
        first_step: steps already done when this process starts; later records are dropped.
        log_interval: steps between two records.
        flops_per_token: counted floating-point operations of a step per token that is not padding
            (`models.compute`); None leaves TFLOP/s out.
        is_writer: whether this rank writes; true on one rank.
        stream: where progress goes, by default stderr. A terminal gets a bar, anything else a
            line per record.
        label: of lines of progress, before each.
        report_to: trackers (:mod:`.trackers`) that get the scalars too.
        run_options: which the trackers show, as JSON.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        total_steps: int,
        first_step: int = 0,
        log_interval: int = 1,
        flops_per_token: float | None = None,
        is_writer: bool = True,
        stream: TextIO | None = None,
        label: str = "",
        report_to: Sequence[str] = ("tensorboard",),
        run_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._is_writer = is_writer
        self._trained_sequences = self._trained_seconds = 0.0
        if not is_writer:
            return
        folder = RunFolder(Path(output_dir))
        try:
            damaged = drop_after(folder.metrics, first_step)
        except OSError as error:
            damaged = None
            _log.warning("%s: later steps stay in it (%s)", folder.metrics, error.strerror or error)
        if damaged is not None:
            _log.warning("%s: had lines that cannot be read; now in %s", folder.metrics, damaged)
        self._lines = Journal(folder.metrics)
        self._trackers = open_trackers(report_to, folder, first_step, run_options or {})
        self._progress = Progress(stream or sys.stderr, total_steps, first_step, label=label)
        self._total_steps = total_steps
        self._log_interval = log_interval
        self._flops_per_token = math.nan if flops_per_token is None else flops_per_token
        self._meter = Meter()
        self._steps = 0
        self._tokens_per_expert: dict[str, list[list[float]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def step(self, step: int, metrics: "StepMetrics") -> None:
        """Takes in one step; every `log_interval` steps and at the last one, writes a record.

        Args:
            step: steps done, this one included.
            metrics: the step's numbers over all ranks. Losses weigh by tokens, as a mean over
                rows must; gradient norms of skipped steps do not count.
        """
        if not self._is_writer:
            return
        meter = self._meter
        self._steps += 1
        self._progress.phase(None)
        meter.add("sequences", metrics.sequences)
        meter.add("tokens", metrics.tokens)
        for name, student in metrics.students.items():
            losses = {"loss": student.loss, **student.parts, "balance": student.balance}
            for part, value in losses.items():
                meter.add(f"{name}/{part}", value, metrics.tokens)
            if student.applied:
                meter.add(f"{name}/gradient_norm", student.gradient_norm)
            meter.add(f"{name}/skipped_steps", float(not student.applied))
            self._add_tokens_per_expert(name, student.tokens_per_expert)
        self._progress.advance(self._summary(metrics.students))
        if step % self._log_interval == 0 or step == self._total_steps:
            self._log(step, metrics)

    def phase(self, text: str) -> None:
        """Shows what goes on until the first step's numbers come."""
        if self._is_writer:
            self._progress.phase(text)

    def evaluation(
        self, step: int, heldout_loss: Mapping[str, float], shown: Collection[str] | None = None
    ) -> None:
        """Writes each student's mean loss on held-out text after `step` steps.

        Args:
            step: steps done.
            heldout_loss: by student, and by sub-model of once-for-all ones.
            shown: names whose losses progress shows; by default all.
        """
        if not self._is_writer:
            return
        self._write(HeldoutRecord(step=step, heldout_loss=heldout_loss))
        self._track(step, {f"{name}/heldout_loss": v for name, v in heldout_loss.items()})
        losses = {n: v for n, v in heldout_loss.items() if shown is None or n in shown}
        self._progress.print_step(step, {f"{n} held-out loss": v for n, v in losses.items()})

    def health(self, records: Iterable[HealthRecord]) -> None:
        """Writes what was wrong, and where it is over."""
        if self._is_writer:
            for record in records:
                self._write(record)

    @property
    def sequences_per_second(self) -> float | None:
        """The rate over all records of this process, pauses left out; None before the first."""
        if self._trained_seconds <= 0:
            return None
        return self._trained_sequences / self._trained_seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside (evaluation, saving) out of the rates."""
        if not self._is_writer:
            yield
            return
        with self._meter.paused():
            yield

    def close(self) -> None:
        """Ends the display of progress; may be called twice."""
        if self._is_writer:
            self._progress.close()
            for tracker in self._trackers:
                tracker.close()
            self._trackers = []

    def _track(self, step: int, scalars: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.add(step, scalars)

    def _add_tokens_per_expert(self, name: str, blocks: list[list[float]]) -> None:
        sums = self._tokens_per_expert.setdefault(name, [[0.0] * len(block) for block in blocks])
        for block_sums, block in zip(sums, blocks, strict=True):
            for expert, tokens in enumerate(block):
                block_sums[expert] += tokens

    def _summary(self, students: Mapping[str, Any]) -> dict[str, float]:
        """Returns what the bar shows: each student's loss and the speed."""
        label = "loss" if len(students) == 1 else "{} loss"
        losses = {label.format(name): self._meter.mean(f"{name}/loss") for name in students}
        return losses | {"sequences/s": self._meter.rates("sequences")[0]}

    def _log(self, step: int, last: "StepMetrics") -> None:
        meter = self._meter
        sequences_per_second, tokens_per_second = meter.rates("sequences", "tokens")
        throughput = {
            "learning_rate": last.learning_rate,
            "sequences_per_second": sequences_per_second,
            "tokens_per_second": tokens_per_second,
            "tflops": tokens_per_second * self._flops_per_token / 1e12,
        }
        students: dict[str, StudentRecord] = {}
        scalars = dict(throughput)
        for name, student in last.students.items():
            parts = {
                part: meter.mean(f"{name}/{part}")
                for part in ("loss", *student.parts, "balance", "gradient_norm")
            }
            scalars |= {f"{name}/{part}": value for part, value in parts.items()}
            blocks = self._tokens_per_expert[name]
            for index, block in enumerate(blocks):
                share = max(block) / max(1.0, sum(block))
                scalars[f"{name}/largest_expert_share/{index}"] = share
            students[name] = StudentRecord(
                **parts,
                skipped_steps=round(meter.sum(f"{name}/skipped_steps")),
                tokens_per_expert=[[round(tokens) for tokens in block] for block in blocks],
            )
        self._write(TrainingRecord(step=step, steps=self._steps, **throughput, students=students))
        self._track(step, scalars)
        self._progress.print_without_bar(step, self._summary(last.students))
        self._tokens_per_expert = {}
        self._steps = 0
        self._trained_sequences += meter.sum("sequences")
        self._trained_seconds += meter.seconds()
        meter.reset()

    def _write(self, record: MetricsRecord) -> None:
        line = json.dumps(_finite(record.as_json()), allow_nan=False) + "\n"
        self._lines.append(line.encode())


def _finite(value: Any) -> Any:
    """Returns `value` with None where a number is NaN or infinite, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
