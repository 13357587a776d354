"""Measures a device at its best: matrix products by type and size, copies, launches."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.float8 import Float8Linear, multiplies_float8
from ..planning.work import product
from .clocks import fastest, stamps_of

# (rows, inner, outer) of maps as steps have them; a GPU is not filled by a CPU's.
_CPU_SHAPES = ((128, 64, 256), (256, 192, 768), (512, 384, 1536), (1024, 768, 3072))
_GPU_SHAPES = (
    (1024, 384, 384), (4096, 384, 1536), (16384, 384, 1536), (16384, 768, 3072),
    (16384, 1024, 4096),
)  # fmt: skip
_AT_ONCE = {"cpu": 1, "cuda": 20}
_COPIED = {"cpu": 1 << 24, "cuda": 1 << 26}  # float32 numbers, beyond any cache
_LAUNCHES = 200


class MeasuredProduct(NamedTuple):
    """A matrix product [rows, inner] · [inner, outer] and its seconds."""

    dtype: str
    rows: int
    inner: int
    outer: int
    seconds: float

    @property
    def size(self) -> float:
        """The harmonic mean of the extents."""
        return product(self.rows, self.inner, self.outer).size

    @property
    def rate(self) -> float:
        """The operations a second, two a multiply-accumulate."""
        return product(self.rows, self.inner, self.outer).operations / self.seconds


class DeviceRates(NamedTuple):
    """The measured rates of a device.

    Attributes:
        products: measured products, by type and size.
        memory: bytes a second that are read and written in a copy.
        launch: seconds of an operator on one number.
        recorded_launch: seconds of one in a CUDA graph; None on CPUs.
    """

    products: list[MeasuredProduct]
    memory: float
    launch: float
    recorded_launch: float | None


def dtypes_of(device: torch.device) -> list[str]:
    """Lists the types that a device multiplies; a CPU without bfloat16 of its own converts it."""
    if device.type == "cpu":
        return ["float32", "bfloat16"]
    return ["float32", "bfloat16", "float16", *["float8"] * multiplies_float8(device)]


def count_measurements(device: torch.device) -> int:
    """Returns how often :func:`measure_device` calls ``tell``."""
    return len(dtypes_of(device)) * len(_shapes(device)) + (2 if device.type == "cpu" else 3)


def measure_device(
    device: torch.device, seconds: float, tell: Callable[[], None] = lambda: None
) -> DeviceRates:
    """Measures a device, a CPU with the threads that torch has.

    Args:
        device: device to measure.
        seconds: time of each measurement; a slow one takes longer.
        tell: function that is called after each measurement.
    """
    products = []
    for dtype in dtypes_of(device):
        for shape in _shapes(device):
            products.append(measure_product(device, dtype, shape, seconds))
            tell()
    memory = measure_copies(device, seconds)
    tell()
    number = torch.zeros(1, device=device)
    launch = fastest(lambda: number.add_(1), stamps_of(device), seconds, _LAUNCHES)
    tell()
    recorded = None
    if device.type == "cuda":
        recorded = _recorded_launch(number, seconds)
        tell()
    return DeviceRates(products, memory, launch, recorded)


def measure_product(
    device: torch.device, dtype: str, shape: tuple[int, int, int], seconds: float
) -> MeasuredProduct:
    """Measures a product of (rows, inner, outer); of 8 bits, with its rows' quantisation."""
    rows, inner, outer = shape
    multiply = _map(device, dtype, inner, outer)
    numbers = torch.randn(rows, inner, device=device).to(_torch_type(dtype))
    with torch.no_grad():
        at_once = _AT_ONCE[device.type]
        fastest_seconds = fastest(lambda: multiply(numbers), stamps_of(device), seconds, at_once)
    return MeasuredProduct(dtype, rows, inner, outer, fastest_seconds)


def measure_copies(device: torch.device, seconds: float) -> float:
    """Measures the bytes a second that a copy reads and writes."""
    source = torch.zeros(_COPIED[device.type], device=device)
    target = torch.empty_like(source)
    at_once = _AT_ONCE[device.type]
    copy_seconds = fastest(lambda: target.copy_(source), stamps_of(device), seconds, at_once)
    return 2 * source.nbytes / copy_seconds


def _shapes(device: torch.device) -> tuple[tuple[int, int, int], ...]:
    return _CPU_SHAPES if device.type == "cpu" else _GPU_SHAPES


def _torch_type(dtype: str) -> torch.dtype:
    result: torch.dtype = torch.bfloat16 if dtype == "float8" else getattr(torch, dtype)
    return result


def _map(device: torch.device, dtype: str, inner: int, outer: int) -> Callable[[Tensor], Tensor]:
    if dtype == "float8":
        linear = nn.Linear(inner, outer, bias=False, device=device, dtype=torch.bfloat16)
        return Float8Linear(linear)
    weight = torch.randn(outer, inner, device=device).to(_torch_type(dtype))
    return lambda rows: F.linear(rows, weight)


def _recorded_launch(number: Tensor, seconds: float) -> float:
    """Measures the seconds of one of many kernels that a CUDA graph plays in turn."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_LAUNCHES):
            number.add_(1)
    return fastest(graph.replay, stamps_of(number.device), seconds) / _LAUNCHES
