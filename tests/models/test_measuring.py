"""Measurements belong to what was asked for."""

import pytest
import torch
from torch import nn
from transformers import BertConfig

from minimoe_dist.models.measuring import describe_machine, measure_latency


class Recorder(nn.Module):
    """Remembers what it was given; takes as many bytes as asked."""

    def __init__(self, taken: int = 0) -> None:
        super().__init__()
        self.config = BertConfig(vocab_size=11)
        self.weight = nn.Parameter(torch.zeros(1))
        self.taken = taken
        self.shapes: list[tuple[int, int]] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        assert attention_mask.all() and int(input_ids.max()) < 11
        assert torch.is_inference_mode_enabled()
        self.shapes.append(tuple(input_ids.shape))
        torch.ones(self.taken, dtype=torch.uint8)


def test_passes_have_the_asked_shapes_and_number() -> None:
    model = Recorder()
    found = list(measure_latency(model, [1, 3], length=5, repeats=4))
    assert [one.batch_size for one in found] == [1, 3]
    assert model.shapes == [(1, 5)] * 6 + [(3, 5)] * 6


def test_throughput_is_of_the_median() -> None:
    (found,) = measure_latency(Recorder(), [4], length=5, repeats=3)
    assert found.fastest_seconds <= found.median_seconds <= found.slowest_seconds
    assert found.sequences_per_second == pytest.approx(4 / found.median_seconds)


def test_peak_is_what_a_pass_took() -> None:
    taken = 200 * 2**20
    (found,) = measure_latency(Recorder(taken), [1], length=2, repeats=3)
    if found.peak_bytes is None:
        pytest.skip("this system does not tell the memory of a process")
    assert taken * 0.9 < found.peak_bytes < taken * 1.5


def test_machine_names_its_processor_and_threads() -> None:
    machine = describe_machine(torch.device("cpu"))
    assert machine["device"] == "cpu" and machine["name"]
    assert machine["threads"] == torch.get_num_threads()
