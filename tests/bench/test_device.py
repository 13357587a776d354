"""What is measured of a device: real products, copies and launches on a CPU."""

import pytest
import torch

from minimoe_dist.bench import device
from minimoe_dist.bench.device import (
    MeasuredProduct,
    count_measurements,
    measure_device,
    measure_product,
)

CPU = torch.device("cpu")


def test_a_product_knows_its_rate_and_size():
    one = MeasuredProduct("float32", 100, 100, 100, 0.5)
    assert (one.rate, one.size) == (pytest.approx(4e6), pytest.approx(100.0))


def test_everything_is_measured_and_told(monkeypatch):
    monkeypatch.setattr(device, "_CPU_SHAPES", ((8, 4, 16), (16, 8, 32)))
    told = []
    found = measure_device(CPU, 0.0, lambda: told.append(None))
    assert len(told) == count_measurements(CPU)
    assert [(one.dtype, one.rows) for one in found.products] == [
        ("float32", 8), ("float32", 16), ("bfloat16", 8), ("bfloat16", 16),
    ]  # fmt: skip
    assert min(found.memory, found.launch, *(one.seconds for one in found.products)) > 0
    assert found.recorded_launch is None  # there are no graphs here


def test_products_of_8_bits_run_as_a_teachers_maps_do():
    assert measure_product(CPU, "float8", (4, 16, 32), 0.0).seconds > 0
