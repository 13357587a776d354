"""Predicts the memory of a rank by part: between steps, and at the moments of a step."""

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
    """The types of a run's passes, by torch's names."""

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
    """Predicts the bytes by part of the rank that holds most, at its highest.

    Args:
        students: the students that are trained.
        teacher: the teacher; None where none runs.
        layout: how the run is spread.
        batch: a rank's micro-batch.
        precision: types of the passes.
        machine: the machine that it runs on.
        passes: the passes of the run.

    Returns:
        Every part of PARTS. On GPUs, beside the framework, what torch counts as allocated at its
        peak; on CPUs the resident memory of the process, in which "allocator" is what glibc keeps
        of tensors that were freed.
    """
    on_gpu = machine.device == "cuda"
    element = ELEMENT_BYTES[precision.student]
    memories = [_StudentMemory(student, layout, element, on_gpu) for student in students]
    steady = dict.fromkeys(PARTS, 0.0)
    steady["framework"] = machine.framework_gib * GIB
    steady["student weights"] = sum(memory.weights for memory in memories)
    steady["optimizer state"] = sum(memory.optimizer for memory in memories)
    steady["buffers"] = sum(memory.bucket for memory in memories) if on_gpu else 0.0
    signals, moments = Amount(), [memory.building() for memory in memories]
    if teacher is not None:
        weight = ELEMENT_BYTES[precision.teacher]
        if not (on_gpu and layout.teacher_waits_outside):
            steady["teacher weights"] = teacher_weight_bytes(teacher, layout, weight)
        teacher_pass = passes.teacher(teacher_batch(batch, layout), precision.teacher)
        signals = teacher_pass.result
        shared = _shared_teacher(teacher, layout, max(weight, 2), signals)
        moments += [{"teacher pass": amount + shared} for amount in teacher_pass.peaks]
    for index, memory in enumerate(memories):
        keeps_gradients = layout.zero_stage == 0
        student_pass = passes.student(
            index, batch, precision.student, precision.teacher, keeps_gradients
        )
        moments += [{**moment, "teacher pass": signals} for moment in memory.moments(student_pass)]
    if not on_gpu:  # on GPUs a checkpoint is copied out of the device
        steady["buffers"] += sum(memory.snapshot for memory in memories)
    has_more_holes = layout.expert_parallel_size > 1 or element < _MASTER
    highest = peak(moments, MORE_HOLES if has_more_holes else HOLES)
    for part, amount in highest.parts.items():
        steady[part] += amount
    steady["allocator"] = 0.0 if on_gpu else highest.retained
    return steady


def teacher_parameters(teacher: EncoderSizes) -> int:
    """Counts the parameters of a cut teacher: of its relation layer only the three maps."""
    count = sum(teacher.parameters())
    for layer in teacher.shape.layers[teacher.whole_layers :]:
        hidden, width = teacher.shape.hidden, layer.heads * teacher.head_size
        count -= sum(teacher.layer_parameters(layer)) - 3 * (hidden + 1) * width
    return count


def teacher_weight_bytes(teacher: EncoderSizes, layout: Layout, element: int) -> float:
    """Returns the bytes of a teacher's weights on a rank, as if LayerNorms were shared out too."""
    return teacher_parameters(teacher) * element / layout.teacher_parallel_size


def teacher_batch(batch: Batch, layout: Layout) -> Batch:
    """Returns the batch as the teacher reads it: padded, where the teacher is shared out."""
    takes_packed = layout.teacher_layout == "replicated" and not batch.taught_padded
    return batch if takes_packed else replace(batch, packed=False)


def _shared_teacher(teacher: EncoderSizes, layout: Layout, element: int, signals: Amount) -> Amount:
    """Returns what the pass of a shared teacher holds beside that of a whole one."""
    if layout.teacher_parallel_size == 1:
        return Amount()
    if layout.teacher_layout == "tensor":
        # Columns of all batches of the group, and what is sent and received of them.
        return signals + signals
    layers = [sum(teacher.layer_parameters(layer)) for layer in teacher.shape.layers]
    # The layer that runs and the next one are whole; the table is gathered alone.
    return tensors(max(2 * max(layers, default=0), teacher.embedding_parameters()) * element)


class _StudentMemory:
    """The memory of a student on one rank.

    Attributes:
        weights: bytes, between steps.
        optimizer: bytes of masters, moments and what ZeRO keeps beside them.
        bucket: bytes of the buffer in which ZeRO stages 2 and 3 reduce gradients.
        snapshot: bytes of the copy that a checkpoint is written from, kept from the first one on.
    """

    def __init__(self, sizes: EncoderSizes, layout: Layout, element: int, on_gpu: bool) -> None:
        shared, experts = sizes.parameters()
        size = layout.expert_parallel_size if sizes.has_experts else 1
        self._sizes, self._layout, self._element = sizes, layout, element
        self._parameters = count = shared + experts / size
        # Experts are shared out only between the ranks that hold the same ones.
        self._shard = shared / layout.ranks + experts / size / max(1, layout.ranks // size)
        self.snapshot = self._shard * _MASTER * _STATES
        stage = layout.zero_stage
        buffered = BUCKET_ELEMENTS if on_gpu else min(count, BUCKET_ELEMENTS)
        self.bucket = buffered * element if stage > 1 else 0.0
        # Stage 1 sums gradients in flat tensors, which are there from the first step on.
        self._flat_gradients = tensors(count * element) if stage == 1 else Amount()
        # Pages that are never written take no memory on a CPU, and the bucket is a tensor of a
        # moment; on a GPU it is there all the time.
        self._reduction = Amount() if on_gpu else tensors(self.bucket)
        if stage == 0:
            self.weights, self.optimizer = count * _MASTER, count * _MOMENTS
        elif stage < 3:
            self.weights, self.optimizer = count * element, self._shard * (_MASTER + _MOMENTS)
        else:
            # Parts of weights and gradients; the weights in use are gathered for each pass.
            self.weights = self._shard * element
            self.optimizer = self._shard * (_MASTER + _MOMENTS + element)

    def building(self) -> Moment:
        """Returns the moment before DeepSpeed copies the student into one flat tensor."""
        if self._layout.zero_stage == 0:
            return {}
        return {"buffers": self._whole(_MASTER)}

    def moments(self, memory: PassMemory) -> Iterator[Moment]:
        """Yields the moments of a step whose pass makes the tensors of ``memory``."""
        stage, flat = self._layout.zero_stage, self._flat_gradients
        gathered = {"buffers": self._gathered()} if stage == 3 else {}
        for amount in memory.peaks:
            yield {**gathered, "student pass": amount, "gradients": flat}
        if stage == 0:
            # All gradients are there, and reduced as one flat copy, by a rank alone too.
            whole = tensors(self._parameters * _MASTER)
            yield {"gradients": whole, "buffers": whole}
        else:
            yield {"gradients": flat, "buffers": self._update()}

    def _whole(self, element: int) -> Amount:
        """Returns all parameters at `element` bytes each; only word embeddings are large."""
        table = self._sizes.vocabulary * self._sizes.shape.hidden
        return tensors(table * element) + Amount((self._parameters - table) * element)

    def _gathered(self) -> Amount:
        """Returns ZeRO-3's whole weights of a pass, and its buckets to gather and to reduce."""
        whole = self._whole(self._element)
        return (
            whole
            + tensors(min(self._parameters, BUCKET_ELEMENTS) * self._element)
            + self._reduction
        )

    def _update(self) -> Amount:
        """Returns what an update holds: bucket, flat gradient of the shard, norm in float64."""
        if self._layout.zero_stage == 1:
            return tensors(self._shard * _MASTER) if self._element < _MASTER else Amount()
        norm = tensors(2 * _MASTER * self._sizes.largest_tensor())
        if self._layout.zero_stage == 3:
            return norm
        copies = [self._shard * _MASTER]
        if self._element < _MASTER:
            copies.append(self._shard * self._element)
        reduction = self._reduction
        if self._layout.zero_stage == 2:
            reduction += tensors(self._shard * self._element)
        flat = tensors(*copies)
        return reduction + (flat if flat.total > norm.total else norm)
