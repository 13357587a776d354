"""Watches a run's numbers for what is wrong without being NaN: gradients, experts, the teacher.

A watcher is fed with the numbers of each step, which the loop reads anyway and which are the same
on every rank, so all ranks find the same and nothing waits for a device. It tells a condition where
it begins and where it is over.
"""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import add
from statistics import median
from typing import Any, NamedTuple

from ..config.schema import HealthConfig
from ..errors import UserError
from ..models.configuration import MiniMoeConfig, router_places
from ..runs.health import (
    BROKEN_TEACHER,
    DEAD_EXPERT,
    EXPLODING_GRADIENT,
    OVERLOADED_EXPERT,
    HealthRecord,
    Place,
)
from .step_metrics import StepMetrics, StudentMetrics
from .teacher_signals import SignalFault

_FEWEST_NORMS = 20  # whose median says what is usual; before, the largest of them
_FEWEST_TOKENS = 100  # of an even share, below which chance may leave an expert out
_MOST_TOLD = 3  # conditions of one kind in a line of the log
_REMEDIES = {
    BROKEN_TEACHER: "look at the weights of teacher.model_name_or_path, or give another",
    EXPLODING_GRADIENT: "lower training.learning_rate or training.max_grad_norm",
    DEAD_EXPERT: "raise objective.balance_coefficient, or give fewer experts",
    OVERLOADED_EXPERT: "raise objective.balance_coefficient, or lower training.learning_rate",
}


class Router(NamedTuple):
    """The place of a router: its layer, counted from 1, and ``attention`` or ``feed-forward``."""

    layer: int
    block: str


def routers_of(config: MiniMoeConfig) -> list[Router]:
    """Returns the routers of a student in the order of its blocks' token counts; none if plain."""
    return [Router(*place) for place in router_places(config)]


class HealthWatch:
    """Finds exploding gradients, and dead and overloaded experts.

    Attributes:
        options: what is watched, what counts as wrong, and what then happens.

    Args:
        options: see above.
        routers: of each student by name, in the order of its blocks' token counts.
    """

    def __init__(self, options: HealthConfig, routers: Mapping[str, Sequence[Router]]) -> None:
        self.options = options
        self._gradients: dict[str, _GradientWatch] = {}
        self._experts: dict[str, _ExpertWatch] = {}
        if options.exploding_gradient != "off":
            self._gradients = {name: _GradientWatch(name, options) for name in routers}
        if options.dead_expert != "off" or options.overloaded_expert != "off":
            self._experts = {
                name: _ExpertWatch(name, options, places)
                for name, places in routers.items()
                if places
            }

    def state(self) -> dict[str, Any]:
        """Returns windows and open conditions as JSON, the same on every rank."""
        return {
            "gradients": {name: watch.state() for name, watch in self._gradients.items()},
            "experts": {name: watch.state() for name, watch in self._experts.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state` returned, as far as the same things are watched."""
        for name, gradients in self._gradients.items():
            gradients.restore(state.get("gradients", {}).get(name, {}))
        for name, experts in self._experts.items():
            experts.restore(state.get("experts", {}).get(name, {}))

    def step(self, step: int, metrics: StepMetrics) -> list[HealthRecord]:
        """Takes in a step's numbers; steps come in their order.

        Args:
            step: steps done, this one included.
            metrics: over all ranks.

        Returns:
            What began or is over.
        """
        found: list[HealthRecord] = []
        for name, student in metrics.students.items():
            if name in self._gradients:
                found += self._gradients[name].step(step, student)
            if name in self._experts:
                found += self._experts[name].step(step, student.tokens_per_expert)
        return found


class _GradientWatch:
    """Holds each norm against the median of the window before.

    What explodes is not usual: it does not count for the median.
    """

    def __init__(self, student: str, options: HealthConfig) -> None:
        self._student = student
        self._factor = options.exploding_factor
        self._fewest = min(options.window, _FEWEST_NORMS)
        self._norms: deque[float] = deque(maxlen=options.window)
        self._since: int | None = None

    def state(self) -> dict[str, Any]:
        return {"norms": list(self._norms), "since": self._since}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._norms.extend(state.get("norms", ()))
        self._since = state.get("since")

    def step(self, step: int, student: StudentMetrics) -> Iterator[HealthRecord]:
        norm = student.gradient_norm
        if not student.applied or not math.isfinite(norm):
            return  # left out and told as such
        limit = self._factor * self._usual_norm() or math.inf
        explodes = norm > limit
        if explodes != (self._since is not None):
            since = step if self._since is None else self._since
            self._since = step if explodes else None
            record = HealthRecord(
                step=step,
                health=EXPLODING_GRADIENT,
                since=since,
                student=self._student,
                value=norm,
                limit=limit,
            )
            yield record if explodes else _over(record, since)
        if not explodes:
            self._norms.append(norm)

    def _usual_norm(self) -> float:
        if len(self._norms) >= self._fewest:
            return median(self._norms)
        return max(self._norms, default=0.0)


class _ExpertWatch:
    """Sums each expert's tokens over a window, and judges its share at the window's end."""

    def __init__(self, student: str, options: HealthConfig, routers: Sequence[Router]) -> None:
        self._student, self._options, self._routers = student, options, routers
        self._steps = 0
        self._tokens: list[list[float]] = []
        self._open: dict[Place, int] = {}

    def state(self) -> dict[str, Any]:
        is_open = [[list(place), since] for place, since in self._open.items()]
        return {"steps": self._steps, "tokens": self._tokens, "open": is_open}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._steps, self._tokens = state.get("steps", 0), state.get("tokens", [])
        self._open = {tuple(place): since for place, since in state.get("open", ())}

    def step(self, step: int, blocks: Sequence[Sequence[float]]) -> Iterator[HealthRecord]:
        if self._steps == 0:
            self._tokens = [[0.0] * len(block) for block in blocks]
        self._steps += 1
        self._tokens = [
            list(map(add, sums, block)) for sums, block in zip(self._tokens, blocks, strict=True)
        ]
        if self._steps >= self._options.window:
            for router, sums in zip(self._routers, self._tokens, strict=True):
                yield from self._judge(step, router, sums)
            self._steps = 0

    def _judge(self, step: int, router: Router, tokens: Sequence[float]) -> Iterator[HealthRecord]:
        even, options = sum(tokens) / len(tokens), self._options
        if not even >= _FEWEST_TOKENS:
            return
        dead_below = options.dead_share / len(tokens)
        for expert, count in enumerate(tokens, 1):
            share = count / sum(tokens)
            for health, reaction, limit, holds in (
                (DEAD_EXPERT, options.dead_expert, dead_below, share < dead_below),
                (
                    OVERLOADED_EXPERT,
                    options.overloaded_expert,
                    options.overloaded_share,
                    share > options.overloaded_share,
                ),
            ):
                if reaction == "off":
                    continue
                record = HealthRecord(
                    step=step,
                    health=health,
                    since=step - self._steps + 1,
                    student=self._student,
                    layer=router.layer,
                    block=router.block,
                    expert=expert,
                    value=share,
                    limit=limit,
                )
                yield from self._changed(record, holds)

    def _changed(self, record: HealthRecord, holds: bool) -> Iterator[HealthRecord]:
        since = self._open.get(record.place)
        if holds and since is None:
            self._open[record.place] = record.since
            yield record
        elif not holds and since is not None:
            del self._open[record.place]
            yield _over(record, since)


def _over(record: HealthRecord, since: int) -> HealthRecord:
    return record.model_copy(update={"is_over": True, "since": since})


def teacher_records(step: int, teacher: str, faults: Iterable[SignalFault]) -> list[HealthRecord]:
    """Returns the lines of what is wrong with a teacher's signals: one for those that are alike.

    Args:
        step: at which they were looked at.
        teacher: its path.
        faults: all that were found.
    """
    alike: dict[float, list[str]] = defaultdict(list)
    for fault in faults:
        alike[fault.finite_share].append(fault.signal)
    return [
        HealthRecord(
            step=step,
            health=BROKEN_TEACHER,
            since=step,
            teacher=teacher,
            signal=", ".join(signals),
            value=share,
            limit=1.0,
        )
        for share, signals in alike.items()
    ]


def refuse_useless(records: Sequence[HealthRecord]) -> None:
    """Refuses a fine-tuned teacher from which nothing can be learnt.

    Raises:
        UserError: a signal of it is nowhere finite, or everywhere the same.
    """
    for record in records:
        if record.value in (0.0, 1.0):
            raise UserError(f"teacher: {record.describe()}: look at its weights, or give another")


def tell(records: Iterable[HealthRecord], options: HealthConfig) -> Iterator[str]:
    """Yields a line for the log for the conditions of each kind and student that changed.

    Raises:
        UserError: options ask for an end at one of them; that one comes last.
    """
    kinds: dict[tuple[bool, str, str | None, bool], list[HealthRecord]] = defaultdict(list)
    for record in records:
        ends = _ends(record, options)
        kinds[ends, record.health, record.student, record.is_over].append(record)
    for (ends, health, _, _), alike in sorted(kinds.items(), key=lambda kind: kind[0][0]):
        if not ends:
            yield _line(alike)
            continue
        raise UserError(
            f"{_line(alike)}: {_REMEDIES[health]}, or set training.health.{health}=warn; the next "
            "start goes on from the newest checkpoint"
        )


def _ends(record: HealthRecord, options: HealthConfig) -> bool:
    """Returns whether options ask for an end; a teacher that fails now and then is none."""
    is_partial = record.health == BROKEN_TEACHER and record.value not in (0.0, 1.0)
    return not record.is_over and not is_partial and getattr(options, record.health) == "stop"


def _line(alike: Sequence[HealthRecord]) -> str:
    first, names = alike[0], [record.describe() for record in alike]
    more = f"; and {len(names) - _MOST_TOLD:,} more" if len(names) > _MOST_TOLD else ""
    steps = (
        f"over, it began at step {first.since}" if first.is_over else f"since step {first.since}"
    )
    return f"step {first.step}: {'; '.join(names[:_MOST_TOLD])}{more}: {steps}"
