"""Memory of a rank by part: what it holds between steps, and at the moments of a step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .amounts import HOLES, MORE_HOLES, Amount, Moment, peak, tensors
from .layout import BUCKET_ELEMENTS, ELEMENT_BYTES, Layout
from .machine import GIB, Machine
from .passes import Batch, Passes, PassMemory
from .sizes import EncoderSizes

_MASTER, _MOMENTS = 4, 8  # bytes of a parameter in float32
_STATES = 3  # tensors of a parameter in a checkpoint: the master and two moments
PARTS = (
    "framework",
    "teacher weights",
    "teacher pass",
    "student weights",
    "optimizer state",
    "gradients",
    "buffers",
    "student pass",
    "allocator",
)


@dataclass(frozen=True)
class Precision:
    """Types of a run's passes: torch's names of them."""

    student: str
    teacher: str


def memory_of(
    students: Sequence[EncoderSizes],
    teacher: EncoderSizes | None,
    layout: Layout,
    batch: Batch,
    precision: Precision,
    machine: Machine,
    passes: Passes,
) -> dict[str, float]:
    """Bytes by part of the rank that holds most, at its highest.

    Args:
        students: that are trained.
        teacher: None where no teacher runs.
        layout: how all is spread.
        batch: a rank's micro-batch.
        precision: of the passes.
        machine: where.
        passes: of the run.

    Returns:
        Every part of PARTS. On GPUs, beside the framework, what torch counts as allocated at its
        peak; on CPUs the resident memory of the process. Of that, tensors are what there is at
        one time, and "allocator" is what glibc keeps of those that were freed.
    """
    on_gpu = machine.device == "cuda"
    element = ELEMENT_BYTES[precision.student]
    held = [_Held(one, layout, element, on_gpu) for one in students]
    steady = dict.fromkeys(PARTS, 0.0)
    steady["framework"] = machine.framework_gib * GIB
    steady["student weights"] = sum(one.weights for one in held)
    steady["optimizer state"] = sum(one.optimizer for one in held)
    steady["buffers"] = sum(one.bucket for one in held) if on_gpu else 0.0
    signals, moments = Amount(), [one.building() for one in held]
    if teacher is not None:
        weight = ELEMENT_BYTES[precision.teacher]
        if not (on_gpu and layout.teacher_waits_outside):
            steady["teacher weights"] = teacher_weight_bytes(teacher, layout, weight)
        taught = passes.teacher(of_teacher(batch, layout), precision.teacher)
        signals = taught.result
        shared = _shared_teacher(teacher, layout, max(weight, 2), signals)
        moments += [{"teacher pass": amount + shared} for amount in taught.peaks]
    for index, one in enumerate(held):
        keeps_gradients = layout.zero_stage == 0
        made = passes.student(index, batch, precision.student, precision.teacher, keeps_gradients)
        moments += [{**moment, "teacher pass": signals} for moment in one.moments(made)]
    # On GPUs a checkpoint's copies are made outside the device.
    copies = [] if on_gpu else [one.saving() for one in held]
    more = layout.expert_parallel_size > 1 or element < _MASTER
    highest = peak(moments, copies, MORE_HOLES if more else HOLES)
    for part, amount in highest.parts.items():
        steady[part] += amount
    steady["allocator"] = 0.0 if on_gpu else highest.kept
    return steady


def teacher_parameters(teacher: EncoderSizes) -> int:
    """Of a teacher that is cut: of its relation layer only the three maps."""
    count = sum(teacher.parameters())
    for layer in teacher.shape.layers[teacher.whole_layers :]:
        hidden, width = teacher.shape.hidden, layer.heads * teacher.head_size
        count -= sum(teacher.layer_parameters(layer)) - 3 * (hidden + 1) * width
    return count


def teacher_weight_bytes(teacher: EncoderSizes, layout: Layout, element: int) -> float:
    """Weights of a teacher on one rank; what each holds whole (LayerNorms) is not told apart."""
    return teacher_parameters(teacher) * element / layout.teacher_parallel_size


def of_teacher(batch: Batch, layout: Layout) -> Batch:
    """The batch as the teacher reads it: one that is shared out wants it padded."""
    return batch if layout.teacher_layout == "replicated" else replace(batch, packed=False)


def _shared_teacher(teacher: EncoderSizes, layout: Layout, element: int, signals: Amount) -> Amount:
    """What the pass of a teacher that is shared out holds besides."""
    if layout.teacher_parallel_size == 1:
        return Amount()
    if layout.teacher_layout == "tensor":
        # Columns of all batches of the group, and what is sent and received of them.
        return signals + signals
    layers = [sum(teacher.layer_parameters(one)) for one in teacher.shape.layers]
    # The layer that runs and the next one are whole; the table is gathered alone.
    return tensors(max(2 * max(layers, default=0), teacher.embedding_parameters()) * element)


class _Held:
    """A student on a rank.

    Attributes:
        weights: bytes, between steps.
        optimizer: bytes of masters, moments and what ZeRO keeps beside them.
        bucket: bytes of the buffer in which other stages reduce theirs.
    """

    def __init__(self, sizes: EncoderSizes, layout: Layout, element: int, on_gpu: bool) -> None:
        shared, experts = sizes.parameters()
        size = layout.expert_parallel_size if sizes.has_experts else 1
        self._sizes, self._layout, self._element = sizes, layout, element
        self._own = own = shared + experts / size
        # Experts are shared out only between the ranks that hold the same ones.
        self._part = shared / layout.ranks + experts / size / max(1, layout.ranks // size)
        stage = layout.zero_stage
        buffered = BUCKET_ELEMENTS if on_gpu else min(own, BUCKET_ELEMENTS)
        self.bucket = buffered * element if stage > 1 else 0.0
        # Stage 1 sums gradients in flat tensors, which are there from the first step on.
        self._flat_gradients = tensors(own * element) if stage == 1 else Amount()
        # Pages that are never written take no memory on a CPU, and the bucket is a tensor of a
        # moment; on a GPU it is there all the time.
        self._reduced = Amount() if on_gpu else tensors(self.bucket)
        if stage == 0:
            self.weights, self.optimizer = own * _MASTER, own * _MOMENTS
        elif stage < 3:
            self.weights, self.optimizer = own * element, self._part * (_MASTER + _MOMENTS)
        else:
            # Parts of weights and gradients; the weights in use are gathered for each pass.
            self.weights = self._part * element
            self.optimizer = self._part * (_MASTER + _MOMENTS + element)

    def building(self) -> Moment:
        """The student as it was made, before DeepSpeed copies it into one flat tensor."""
        if self._layout.zero_stage == 0:
            return {}
        return {"buffers": self._whole(_MASTER)}

    def moments(self, made: PassMemory) -> Iterator[Moment]:
        """Of a step, whose pass makes these tensors."""
        stage, flat = self._layout.zero_stage, self._flat_gradients
        gathered = {"buffers": self._gathered()} if stage == 3 else {}
        for amount in made.peaks:
            yield {**gathered, "student pass": amount, "gradients": flat}
        if stage == 0:
            # All gradients are there, and reduced as one flat copy, by a rank alone too.
            whole = tensors(self._own * _MASTER)
            yield {"gradients": whole, "buffers": whole}
        else:
            yield {"gradients": flat, "buffers": self._update()}

    def saving(self) -> Moment:
        """Rank 0's piece of a checkpoint."""
        pieces = sum([self._whole(_MASTER)] * _STATES, start=Amount())
        return {"gradients": self._flat_gradients, "buffers": pieces}

    def _whole(self, element: int) -> Amount:
        """All parameters in `element` bytes each: the word embeddings are the one large tensor."""
        table = self._sizes.vocabulary * self._sizes.shape.hidden
        return tensors(table * element) + Amount((self._own - table) * element)

    def _gathered(self) -> Amount:
        """ZeRO-3's weights of a pass, whole, and two buckets: of gathering and of reducing."""
        whole = self._whole(self._element)
        return whole + tensors(min(self._own, BUCKET_ELEMENTS) * self._element) + self._reduced

    def _update(self) -> Amount:
        """The bucket, a flat gradient of the own part, and the norm, which sums in float64."""
        if self._layout.zero_stage == 1:
            return tensors(self._part * _MASTER) if self._element < _MASTER else Amount()
        norm = tensors(2 * _MASTER * self._sizes.largest_tensor())
        if self._layout.zero_stage == 3:
            return norm
        copies = [self._part * _MASTER]
        if self._element < _MASTER:
            copies.append(self._part * self._element)
        reduced = self._reduced
        if self._layout.zero_stage == 2:
            reduced += tensors(self._part * self._element)
        flat = tensors(*copies)
        return reduced + (flat if flat.total > norm.total else norm)
