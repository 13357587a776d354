"""Batches of a recipe's shapes, and which of a step's times count."""

from types import SimpleNamespace

import pytest
import torch

from minimoe_dist.bench.clocks import Stamps, StepClock
from minimoe_dist.bench.steps import METRICS, StepTimes, measure_steps
from minimoe_dist.data.batches import IGNORED_LABEL
from minimoe_dist.recipes.random_batches import make_micro_batches

SHAPE = {"samples": 32, "length": 64, "accumulation": 2, "vocabulary": 50}


@pytest.mark.parametrize("filled", [1.0, 0.9, 0.5, 0.3])
def test_as_much_is_padding_as_was_asked_for(filled):
    for micro in make_micro_batches(filled=filled, masked=False, **SHAPE):
        assert micro.input_ids.shape == (32, 64)
        assert micro.attention_mask[-1].all()  # or the batch were narrower
        assert micro.num_tokens / (32 * 64) == pytest.approx(filled, abs=0.02)


def test_micro_batches_are_of_other_samples():
    first, second = make_micro_batches(filled=1.0, masked=False, **SHAPE)
    assert not set(first.sample_ids.tolist()) & set(second.sample_ids.tolist())
    assert not torch.equal(first.input_ids, second.input_ids)


def test_as_many_tokens_are_predicted_as_in_masked_text():
    micro = make_micro_batches(filled=1.0, masked=True, **SHAPE)[0]
    assert micro.labels is not None
    assert ((micro.labels != IGNORED_LABEL).sum(1) == 10).all()  # 15 % of 64


def measured(reads_behind):
    """Three steps of which the numbers are told apart by what is read when."""
    now, said = [0.0], []
    clock = StepClock(Stamps(lambda: now[0], lambda first, last: last - first))

    class Pending(SimpleNamespace):
        @property
        def metrics(self):
            said.append(f"read {self.step}")

    def train_step(step):
        said.append(f"step {step}")
        now[0] += [9.0, 3.0, 2.0][step]
        clock.mark("teacher")
        now[0] += 0.5
        clock.mark("update")
        return Pending(step=step)

    times = measure_steps(train_step, clock, warm_up=1, steps=2, reads_behind=reads_behind)
    return times, said


def test_steps_that_warm_up_do_not_count():
    times, _ = measured(reads_behind=False)
    assert times.steps == [
        {"teacher": 3.0, "update": 0.5, METRICS: 0.0},
        {"teacher": 2.0, "update": 0.5, METRICS: 0.0},
    ]


def test_the_host_reads_a_step_behind_where_training_does():
    assert measured(reads_behind=False)[1][:4] == ["step 0", "read 0", "step 1", "read 1"]
    assert measured(reads_behind=True)[1][:4] == ["step 0", "step 1", "read 0", "step 2"]


def test_the_fastest_step_is_told_by_part():
    times = StepTimes([{"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 2.0}, {"a": 3.0, "b": 3.0}])
    assert (times.fastest, times.seconds, times.median_seconds) == ({"a": 2.0, "b": 2.0}, 4.0, 5.0)
