"""What a model takes on this machine: latency, throughput, memory. By the clock, not by formula."""

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_WARM_UP = 2
_SEED = 0


@dataclass(frozen=True)
class Latency:
    """How long forward passes of one batch size take.

    Attributes:
        batch_size: sequences of a pass.
        median_seconds: of all measured passes.
        fastest_seconds: of all measured passes.
        slowest_seconds: of all measured passes.
        sequences_per_second: batch size over the median.
        peak_bytes: what a pass took at most above what there was before the first of all passes,
            weights among it: on a GPU by PyTorch's allocator, on Linux by the process's resident
            memory; None where neither tells.
    """

    batch_size: int
    median_seconds: float
    fastest_seconds: float
    slowest_seconds: float
    sequences_per_second: float
    peak_bytes: int | None


def measure_latency(
    model: nn.Module, batch_sizes: Sequence[int], *, length: int, repeats: int
) -> Iterator[Latency]:
    """Times forward passes of random ids without padding, without gradients.

    Args:
        model: in evaluation mode; takes ids and a mask by name.
        batch_sizes: one measurement each, after two passes that are not counted; rising, since
            memory that a larger batch had may stay with the process.
        length: tokens of each sequence.
        repeats: counted passes.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(_SEED)
    config: Any = model.config
    before = _held_bytes(device)
    for batch_size in batch_sizes:
        ids = torch.randint(config.vocab_size, (batch_size, length), generator=generator).to(device)
        mask = torch.ones_like(ids)

        def forward(ids: Tensor = ids, mask: Tensor = mask) -> None:
            with torch.inference_mode():
                model(input_ids=ids, attention_mask=mask)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        peak = _peak_bytes(forward, device, before)
        for _ in range(_WARM_UP - 1):
            forward()
        seconds = sorted(_timed(forward) for _ in range(repeats))
        median = statistics.median(seconds)
        yield Latency(batch_size, median, seconds[0], seconds[-1], batch_size / median, peak)


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """The device, its name, and the threads that PyTorch uses."""
    if device.type == "cuda":
        return {"device": "cuda", "name": torch.cuda.get_device_name(device)}
    return {"device": "cpu", "name": _processor(), "threads": torch.get_num_threads()}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _timed(forward: Callable[[], None]) -> float:
    started = time.perf_counter()
    forward()
    return time.perf_counter() - started


def _held_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _resident("VmRSS")


def _peak_bytes(
    forward: Callable[[], None], device: torch.device, before: int | None
) -> int | None:
    """The most bytes that a pass had at once, above ``before``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            # Linux: sets the high-water mark of resident memory to what is resident now.
            Path("/proc/self/clear_refs").write_text("5")
    forward()
    most = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")
    return None if before is None or most is None else max(0, most - before)


def _resident(name: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
