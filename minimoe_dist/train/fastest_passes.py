"""Chooses the fastest way that applies to run the passes of a step."""

from collections.abc import Sequence

import torch

from ..runtime import logger
from .captured import CapturedPasses
from .engine import StudentEngine
from .objectives import Objective
from .passes import CompiledPasses, EagerPasses, Passes
from .recorder import CudaRecorder
from .updates import FlatUpdate

_log = logger("train.fastest_passes")


def choose_passes(
    students: Sequence[StudentEngine],
    objective: Objective,
    seed: int,
    device: torch.device,
    compiles: bool = True,
) -> Passes:
    """Chooses the fastest way to run a step's passes here.

    Args:
        students: of the step.
        objective: what they are trained for.
        seed: of dropout and router noise.
        device: where they are.
        compiles: whether passes may be compiled and recorded.
    """
    packed = device.type == "cuda" and takes_packed(students, objective)
    if not (packed and compiles):
        return EagerPasses(students, objective, seed, packed)
    reason = _why_not_compiled(students)
    if reason is not None:
        _log.info("passes are not compiled: %s", reason)
        return EagerPasses(students, objective, seed, packed)
    passes = CompiledPasses(students, objective, seed)
    if not all(isinstance(student.update, FlatUpdate) for student in students):
        _log.info("passes are compiled, but not recorded: that is for students of plain ZeRO-1")
        return passes
    return CapturedPasses(passes, CudaRecorder())


def takes_packed(students: Sequence[StudentEngine], objective: Objective) -> bool:
    """Returns whether batches may come without their padding."""
    routes_padding = any(getattr(student.config, "route_padding", False) for student in students)
    return objective.takes_packed and not routes_padding


def _why_not_compiled(students: Sequence[StudentEngine]) -> str | None:
    for student in students:
        if student.zero_stage == 3:
            return f"{student.name}'s weights are shared out by ZeRO-3"
        if student.expert_parallel_size > 1:
            return f"{student.name}'s experts are on several ranks"
    return None
