"""Measures what a model takes on this machine, by the clock: latency, throughput, memory."""

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
    """The durations and the memory of forward passes of one batch size.

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
    baseline = _allocated_bytes(device)
    for batch_size in batch_sizes:
        ids = torch.randint(config.vocab_size, (batch_size, length), generator=generator).to(device)
        mask = torch.ones_like(ids)

        def forward(ids: Tensor = ids, mask: Tensor = mask) -> None:
            with torch.inference_mode():
                model(input_ids=ids, attention_mask=mask)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        peak = _peak_bytes(forward, device, baseline)
        for _ in range(_WARM_UP - 1):
            forward()
        seconds = sorted(_timed(forward) for _ in range(repeats))
        median = statistics.median(seconds)
        yield Latency(batch_size, median, seconds[0], seconds[-1], batch_size / median, peak)


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Describes the device: its kind, its name, and the threads that PyTorch uses on a CPU."""
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
    start = time.perf_counter()
    forward()
    return time.perf_counter() - start


def _allocated_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status_bytes("VmRSS")


def _peak_bytes(
    forward: Callable[[], None], device: torch.device, baseline: int | None
) -> int | None:
    """Returns the most bytes that a pass had at once, above ``baseline``."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            # Linux: sets the high-water mark of resident memory to what is resident now.
            Path("/proc/self/clear_refs").write_text("5")
    forward()
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else _status_bytes("VmHWM")
    return None if baseline is None or peak is None else max(0, peak - baseline)


def _status_bytes(name: str) -> int | None:
    """Returns an entry of Linux's record of this process's memory; None where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
