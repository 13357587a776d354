"""How gpu_step.py measures: a case on a device, and clocks around the parts of a step."""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from gpu_shapes import SHAPES, Case

VOCABULARY = 30522
WARM_UP = 6
WATCHED = 10  # steps of which parts, kernels and waits are counted
GB = 1 << 30


class Bench:
    """A case on a device."""

    def __init__(self, case: Case, options: argparse.Namespace, device: Any) -> None:
        self.case = case
        self.options = options
        self.device = device
        self.on_gpu = device.type == "cuda"

    def name(self) -> str:
        """The device's, with what computes on it."""
        import torch

        name = torch.cuda.get_device_name() if self.on_gpu else "CPU"
        return f"{name}, torch {torch.__version__}"

    def wait(self) -> None:
        """For all that was started."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()

    def teacher(self) -> str:
        """The folder of a teacher with random weights, and words to read with."""
        import torch
        from transformers import BertConfig, BertModel, BertTokenizer

        folder = Path(self.options.folder) / self.case.teacher
        if not (folder / "config.json").exists():
            layers, hidden, heads = SHAPES[self.case.teacher]
            torch.manual_seed(1)
            config = BertConfig(
                vocab_size=VOCABULARY, num_hidden_layers=layers, hidden_size=hidden,
                num_attention_heads=heads, intermediate_size=4 * hidden,
            )  # fmt: skip
            BertModel(config).save_pretrained(folder)
            special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
            words = special + [f"w{number}" for number in range(VOCABULARY - len(special))]
            (folder / "vocab.txt").write_text("\n".join(words) + "\n")
            BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
        return str(folder)

    def batch(self) -> Any:
        """Random ids; the share of padding lies evenly on samples."""
        import torch

        from minimoe_dist.data.batches import MicroBatch

        case, generator = self.case, torch.Generator().manual_seed(1)
        shape = (case.batch, case.length)
        ids = torch.randint(1000, VOCABULARY, shape, generator=generator)
        shortest = round((1 - 2 * case.padding) * case.length)
        lengths = torch.linspace(shortest, case.length, case.batch).round()
        mask = torch.arange(case.length) < lengths[:, None]
        return MicroBatch(ids * mask, mask, torch.zeros_like(ids), torch.arange(case.batch))

    def seconds(self, step: Callable[[], object]) -> tuple[float, float]:
        """The fastest and the median block's seconds a step."""
        for _ in range(WARM_UP):
            step()
        blocks = []
        for _ in range(self.options.blocks):
            self.wait()
            started = time.perf_counter()
            for _ in range(self.options.steps):
                step()
            self.wait()
            blocks.append((time.perf_counter() - started) / self.options.steps)
        return min(blocks), median(blocks)

    def rates(self, step: Callable[[], object], tokens: int) -> dict[str, Any]:
        """Of a step, after its warm-up: time, memory, waits and kernels."""
        import torch

        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        fastest, usual = self.seconds(step)
        peak = torch.cuda.max_memory_allocated() / GB if self.on_gpu else 0.0
        held = torch.cuda.max_memory_reserved() / GB if self.on_gpu else 0.0
        return {
            "ms": 1e3 * fastest,
            "median_ms": 1e3 * usual,
            "sequences_per_second": self.case.batch / fastest,
            "tokens": tokens,
            "peak_gb": peak,
            "held_gb": held,
            "waits": self._waits(step),
            **self._kernels(step),
        }

    def _waits(self, step: Callable[[], object]) -> float:
        """Times a step that the host waits for the device, as torch sees it."""
        import torch

        if not self.on_gpu:
            return 0
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            for _ in range(WATCHED):
                step()
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in seen) / WATCHED

    def _kernels(self, step: Callable[[], object]) -> dict[str, Any]:
        """Launches a step, and the kernels that take longest: (ms a step, times, name)."""
        from torch.profiler import ProfilerActivity, profile

        if not self.on_gpu:
            return {"launches": 0}
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            for _ in range(WATCHED):
                step()
            self.wait()
        events = seen.key_averages()
        launches = sum(one.count for one in events if "Launch" in one.key) / WATCHED
        busy = [one for one in events if one.self_device_time_total > 0 and one.device_type.value]
        busy.sort(key=lambda one: -one.self_device_time_total)
        kernels = [
            (round(one.self_device_time_total / WATCHED / 1e3, 4), one.count / WATCHED, one.key)
            for one in busy
        ]
        return {
            "launches": round(launches),
            "kernel_ms": sum(one[0] for one in kernels),
            "kernels": [(ms, count, key[:90]) for ms, count, key in kernels[:40]],
        }


class TimedPasses:
    """Passes with the device's clock around each, while ``clocks`` is a dictionary."""

    def __init__(self, passes: Any) -> None:
        self._passes = passes
        self.packed, self.warms_up = passes.packed, passes.warms_up
        self.clocks: dict[str, list[Any]] | None = None

    def teach(self, batch: Any, recalled: Any = None) -> Any:
        with self.timed("teacher"):
            return self._passes.teach(batch, recalled)

    def forward(self, index: int, batch: Any, given: Any) -> Any:
        with self.timed("forward"):
            return self._passes.forward(index, batch, given)

    def backward(self, index: int, loss: Any) -> None:
        with self.timed("backward"):
            self._passes.backward(index, loss)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        import torch

        if self.clocks is None:
            yield
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self.clocks[part].append((start, end))

    def parts(self) -> dict[str, float]:
        """Milliseconds of each part in a step; waits."""
        import torch

        torch.cuda.synchronize()
        assert self.clocks is not None
        return {
            part: sum(start.elapsed_time(end) for start, end in pairs) / WATCHED
            for part, pairs in self.clocks.items()
        }
