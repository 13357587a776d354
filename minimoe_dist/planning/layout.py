"""Describes how a run is spread over a machine, and lists the layouts that a plan tries."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..config import RunConfig, fit_to_ranks
from ..config.checks import check_world_size
from .machine import Machine
from .sizes import EncoderSizes

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
BUCKET_ELEMENTS = 50_000_000  # as DeepSpeed is given


@dataclass(frozen=True)
class Layout:
    """One way to spread a run.

    Attributes:
        ranks: number of ranks on all nodes.
        zero_stage: ZeRO stage of the students.
        expert_parallel_size: ranks that share one set of experts.
        teacher_layout: ``replicated``, ``zero3`` or ``tensor``.
        teacher_parallel_size: ranks that share one teacher.
        teacher_waits_outside: whether its parts lie in the host's memory between layers.
        micro_batch: sequences of a rank in one pass.
        accumulation: passes a step.
    """

    ranks: int
    zero_stage: int
    expert_parallel_size: int = 1
    teacher_layout: str = "replicated"
    teacher_parallel_size: int = 1
    teacher_waits_outside: bool = False
    micro_batch: int = 1
    accumulation: int = 1

    @property
    def global_batch(self) -> int:
        """The number of sequences of a step."""
        return self.ranks * self.micro_batch * self.accumulation

    def describe(self) -> str:
        """Formats it as "ZeRO-1, EP 2, teacher zero3 / 4, batch 64 × 2"."""
        parts = [f"ZeRO-{self.zero_stage}"]
        if self.expert_parallel_size > 1:
            parts.append(f"EP {self.expert_parallel_size}")
        if self.teacher_layout != "replicated":
            parts.append(f"teacher {self.teacher_layout} / {self.teacher_parallel_size}")
        factor = f" × {self.accumulation}" if self.accumulation > 1 else ""
        return ", ".join([*parts, f"batch {self.micro_batch}{factor}"])


def layout_of_recipe(config: RunConfig, ranks: int) -> Layout:
    """Returns the layout that a recipe states.

    Raises:
        ConfigError: the ranks cannot be divided as it says, or do not divide its batch.
    """
    config = fit_to_ranks(config, ranks)
    check_world_size(config, ranks)
    teacher, training = config.teacher, config.training
    return Layout(
        ranks=ranks,
        zero_stage=config.parallel.zero_stage,
        expert_parallel_size=config.parallel.expert_parallel_size,
        teacher_layout=teacher.layout,
        teacher_parallel_size=teacher.ranks(ranks),
        teacher_waits_outside=teacher.offload == "cpu",
        micro_batch=training.per_device_train_batch_size,
        accumulation=training.num_grad_accum_steps,
    )


def alternatives(
    config: RunConfig,
    machine: Machine,
    students: list[EncoderSizes],
    teacher: EncoderSizes | None,
) -> Iterator[Layout]:
    """Yields every layout that trains the same global batch on the machine."""
    stated = layout_of_recipe(config, machine.ranks)
    for zero_stage in (0, 1, 2, 3):
        if zero_stage == 0 and config.parallel.precision not in ("auto", "fp32"):
            continue
        for expert in _expert_sizes(machine, students):
            if zero_stage == 3 and expert > 1:
                continue
            for kind, size in _teacher_layouts(config, machine, teacher):
                for split in _splits(stated.micro_batch):
                    yield Layout(
                        ranks=stated.ranks,
                        zero_stage=zero_stage,
                        expert_parallel_size=expert,
                        teacher_layout=kind,
                        teacher_parallel_size=size,
                        micro_batch=stated.micro_batch // split,
                        accumulation=stated.accumulation * split,
                    )


def _expert_sizes(machine: Machine, students: list[EncoderSizes]) -> list[int]:
    counts = [count for student in students for count in student.experts if count > 1]
    most = min([machine.ranks, *counts]) if counts else 1
    fits = [
        size
        for size in range(1, most + 1)
        if machine.ranks % size == 0 and all(count % size == 0 for count in counts)
    ]
    return fits or [1]


def _teacher_layouts(
    config: RunConfig, machine: Machine, teacher: EncoderSizes | None
) -> list[tuple[str, int]]:
    if teacher is None:
        return [("replicated", 1)]
    # Sharing stays inside a node: between nodes the teacher's traffic would be the step.
    sizes = [n for n in (2, 4, 8) if machine.ranks_per_node % n == 0]
    by_megatron = config.teacher.implementation == "megatron"
    kinds = [
        *(() if by_megatron else ("zero3",)),
        *(("tensor",) if by_megatron or teacher.cut_by_columns else ()),
    ]
    return [("replicated", 1), *((kind, n) for kind in kinds for n in sizes)]


def _splits(micro_batch: int) -> list[int]:
    return [n for n in (1, 2, 4, 8, 16, 32) if micro_batch % n == 0]
