"""Predicts the bytes that a rank sends in a step, by kind, and how long they take."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.signal_bytes import RELATIONS
from .layout import ELEMENT_BYTES, Layout
from .machine import Machine
from .memory import Precision, teacher_parameters
from .passes import Batch
from .sizes import EncoderSizes

# Rows that cross for a block of experts, in widths of a token: there and back, forward and
# backward. Attention sends a token, gets q, k, v; sends the context, gets the output.
_ATTENTION_ROWS, _FEED_FORWARD_ROWS = 2 * (1 + 3 + 1 + 1), 2 * (1 + 1)


@dataclass(frozen=True)
class Traffic:
    """The traffic of one kind of exchange.

    Attributes:
        sent: bytes that a rank sends in a step.
        seconds: time that they take when nothing else is sent.
    """

    sent: float
    seconds: float


def traffic_of(
    students: Sequence[EncoderSizes],
    teacher: EncoderSizes | None,
    layout: Layout,
    batch: Batch,
    precision: Precision,
    machine: Machine,
) -> dict[str, Traffic]:
    """Predicts every kind of exchange that a step has.

    Arguments are those of `memory.memory_of`. An all-reduce among n ranks sends 2 (n - 1) / n of
    its bytes, a gathering, a scattering or an all-to-all (n - 1) / n.
    """
    counter = _TrafficCounter(layout, machine)
    element = ELEMENT_BYTES[precision.student]
    for student in students:
        _students_traffic(counter, student, layout, batch, element)
    if teacher is not None and layout.teacher_parallel_size > 1:
        _teachers_traffic(counter, teacher, layout, batch, max(2, ELEMENT_BYTES[precision.teacher]))
    return {kind: Traffic(*numbers) for kind, numbers in counter.kinds.items() if numbers[0] > 0}


class _TrafficCounter:
    """Sums up bytes and seconds by kind of exchange."""

    def __init__(self, layout: Layout, machine: Machine) -> None:
        self._machine = machine
        self.kinds: dict[str, tuple[float, float]] = {}

    def add(self, kind: str, size: float, group: int, calls: float, stride: int = 1) -> None:
        """Adds `size` bytes among `group` ranks, each `stride` apart, in `calls` collectives."""
        if group < 2:
            return
        sent, machine = size * (group - 1) / group, self._machine
        seconds = sent / machine.bandwidth(group, stride)
        seconds += calls * machine.latency_microseconds * 1e-6
        total_sent, total_seconds = self.kinds.get(kind, (0.0, 0.0))
        self.kinds[kind] = (total_sent + sent, total_seconds + seconds)


def _students_traffic(
    counter: _TrafficCounter, sizes: EncoderSizes, layout: Layout, batch: Batch, element: int
) -> None:
    shared, experts = sizes.parameters()
    size = layout.expert_parallel_size if sizes.has_experts else 1
    ranks, stage, times = layout.ranks, layout.zero_stage, layout.accumulation
    # Stages 2 and 3 reduce at every pass, the others once a step.
    reductions = times if stage >= 2 else 1
    width = 4 if stage == 0 else element
    for count, group, stride in ((shared, ranks, 1), (experts / size, ranks // size, size)):
        weights = count * element
        reduced = 1 if stage == 3 else 2
        gradients = reduced * count * width * reductions
        counter.add("gradients", gradients, group, reductions * (count > 0), stride)
        if stage in (1, 2):
            counter.add("updated weights", weights, group, count > 0, stride)
        elif stage == 3:
            calls = 2 * times * len(sizes.shape.layers)
            counter.add("ZeRO-3 weights", 2 * weights * times, group, calls, stride)
    layers = sizes.whole_layers * max(1, len(sizes.passes))
    row = batch.tokens * sizes.shape.hidden * element * times
    blocks = ((sizes.experts[0], _ATTENTION_ROWS, 8), (sizes.experts[1], _FEED_FORWARD_ROWS, 4))
    for number, rows, calls in blocks:
        if number > 1:
            counter.add("experts", layers * rows * row, size, layers * calls * times)


def _teachers_traffic(
    counter: _TrafficCounter, teacher: EncoderSizes, layout: Layout, batch: Batch, element: int
) -> None:
    size, times, layers = layout.teacher_parallel_size, layout.accumulation, teacher.whole_layers
    if layout.teacher_layout == "zero3":
        weights = teacher_parameters(teacher) * element * times
        counter.add("teacher", weights, size, layers * times)
        return
    row = batch.positions * teacher.width * element * times
    # Each rank's batch goes through the whole group: two all-reduces a layer, then the signals.
    counter.add("teacher", (4 * layers + 1) * size * row, size, 2 * layers * size * times)
    signals = RELATIONS + teacher.gives_states
    counter.add("teacher", signals * row, size, times)
