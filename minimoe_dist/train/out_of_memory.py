"""Says what to lower where a device's memory does not suffice."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import UserError

# What torch's allocator of CPUs says; it has no type of its own.
_CPU_MESSAGE = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")
_GIB = 1 << 30


@contextmanager
def naming_batch(batch: str, remedy: str) -> Iterator[None]:
    """Turns an allocation that fails inside into one line.

    Args:
        batch: what was worked on at once, for people.
        remedy: the options that make it smaller.

    Raises:
        UserError: out of memory; started again as it is, the run would fail there again.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"{_gpu_reason(error)} with {batch}: {remedy}") from error
    except RuntimeError as error:
        match = _CPU_MESSAGE.search(str(error))
        if match is None:
            raise
        size = int(match[1]) / _GIB
        raise UserError(f"out of memory for {size:.2f} GiB more with {batch}: {remedy}") from error


def _gpu_reason(error: torch.OutOfMemoryError) -> str:
    wanted = re.search(r"allocate ([\d.]+ \w+)", str(error))
    device = torch.cuda.current_device()
    total = torch.cuda.get_device_properties(device).total_memory
    held = torch.cuda.memory_allocated(device)
    return (
        f"out of memory on cuda:{device}{f' for {wanted[1]} more' if wanted else ''}, of whose "
        f"{total / _GIB:.1f} GiB this process uses {held / _GIB:.1f},"
    )
