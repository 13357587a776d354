"""What a step asks the device for: on a GPU, each such operator would wait for it."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minimoe_dist.data.loader import StepBatch
from minimoe_dist.train.distillation import Distiller
from minimoe_dist.train.schedule import make_schedule
from tests.distributed import run_distributed
from tests.train import runs
from tests.train.runs import Layout
from tests.train.test_passes import DEVICE, make_engines, make_objective, make_passes, masked_batch

_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class HostReads(TorchDispatchMode):
    """Counts operators whose result's value or shape the host must learn from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        indices = args[1] if func is torch.ops.aten.index.Tensor else []
        by_mask = any(one is not None and one.dtype == torch.bool for one in indices)
        if by_mask or (_READS & set(func.tags) and func is not torch.ops.aten.index.Tensor):
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def reads_of_a_step(kind: str, precision: str, accumulation: int, masked: bool) -> dict[str, int]:
    layout = Layout(1, 1, precision, accumulation=accumulation)
    engines = make_engines([(1, 4), (2, 2)], layout, masked)
    objective = make_objective(masked)
    distiller = Distiller(
        engines, objective, make_schedule("linear", 1e-3, 20, 0.1), seed=runs.SEED, device=DEVICE,
        passes=make_passes(kind, engines, objective), max_length=runs.LENGTH,
    )  # fmt: skip
    batches = [runs.make_batch(step, layout, 0, 1) for step in range(2)]
    if masked:
        batches = [masked_batch(batch, step) for step, batch in enumerate(batches)]
    placed = [StepBatch([distiller.place(m) for m in one.micro_batches], 0) for one in batches]
    distiller.train_step(placed[0], 0, False)
    with HostReads() as reads:
        pending = distiller.train_step(placed[1], 1, False)
    assert pending.sequences == layout.global_batch
    return dict(reads.found)


@pytest.mark.parametrize(
    ("precision", "accumulation", "masked"),
    [("fp32", 1, False), ("bf16", 2, False), ("fp16", 1, False), ("fp32", 1, True)],
)
def test_no_step_on_packed_batches_asks_the_device(
    precision: str, accumulation: int, masked: bool
) -> None:
    given = (precision, accumulation, masked)
    assert run_distributed(reads_of_a_step, 1, "packed", *given)[0] == {}


def test_the_count_sees_what_asks() -> None:
    with HostReads() as reads:
        mask = torch.tensor([True, False])
        found = [bool(mask[0]), mask.nonzero(), torch.ones(2)[mask], torch.bincount(mask.int())]
    assert len(found) == 4 and isinstance(found[1], Tensor)
    assert sum(reads.found.values()) == 4
