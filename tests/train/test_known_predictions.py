"""A teacher's predictions of a task's samples, asked for once, on one rank and on several."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from minimoe_dist.data.tasks import Kind, Task
from minimoe_dist.data.tasks.batches import training_step
from minimoe_dist.data.tasks.encoding import IGNORED, UNLABELLED, UNLABELLED_VALUE, EncodedTask
from minimoe_dist.errors import UserError
from minimoe_dist.models.task_heads import (
    MiniMoeForSequenceClassification,
    MiniMoeForTokenClassification,
)
from minimoe_dist.runtime import StopRequest
from minimoe_dist.train import known_predictions
from minimoe_dist.train.known_predictions import KnownPredictions, PredictionFiller
from minimoe_dist.train.task_objective import TaskObjective, TaskTeacher
from tests.distributed import run_distributed
from tests.train import runs

DEVICE = torch.device("cpu")
LENGTHS = [3, 9, 4, 17, 5, 4, 12]


def samples(kind: Kind) -> EncodedTask:
    """Samples of several lengths, the last of which have no labels."""
    labels: list[Any] = [number % 2 for number in range(4)] + [UNLABELLED] * 3
    if kind == "regression":
        labels = [0.5, 1.0, -2.0, 0.0] + [UNLABELLED_VALUE] * 3
    if kind == "tagging":
        tags = [np.full(length, labels[at]) for at, length in enumerate(LENGTHS)]
        for one in tags:
            one[[0, -1]] = IGNORED
        labels = [one.astype(np.int32) for one in tags]
    generator = np.random.default_rng(3)
    ids = [generator.integers(5, runs.VOCABULARY, length).astype(np.int32) for length in LENGTHS]
    segments = [np.zeros(length, np.int8) for length in LENGTHS]
    return EncodedTask(Task("t", kind, ("accuracy",), ("a", "b")), ids, segments, labels, [])


def teacher_of(kind: Kind) -> Any:
    """A teacher of two blocks with random weights."""
    torch.manual_seed(2)
    config = runs.student_options((1, 1), initializer_range=0.3, max_position_embeddings=32)
    config.num_labels = 1 if kind == "regression" else 2
    of_tokens = kind == "tagging"
    model = MiniMoeForTokenClassification if of_tokens else MiniMoeForSequenceClassification
    return model(config).eval().requires_grad_(False)


class _Counting(nn.Module):
    """Counts the samples that a teacher is asked about."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher, self.asked = teacher, 0

    def forward(self, **inputs: Tensor) -> Any:
        self.asked += int(inputs["attention_mask"].any(1).sum())
        return self.teacher(**inputs)


def asked(teacher: nn.Module, data: EncodedTask) -> KnownPredictions | None:
    return PredictionFiller(teacher, "t", data, 2, DEVICE, None).fill(StopRequest())


def known_to_all(kind: Kind) -> tuple[Tensor, int]:
    """The rows that this rank knows, and about how many samples it asked."""
    teacher, data = _Counting(teacher_of(kind)), samples(kind)
    known = asked(teacher, data)
    assert known is not None
    assert not known.faults
    teacher.asked -= len(LENGTHS)  # all of so few are looked at before
    objective = TaskObjective(TaskTeacher(teacher.teacher, 0.5, 1.0, 0.0, 1))
    for step in range(4):
        ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
        chosen, micro = training_step(data, step, batch_size=3, seed=5, **ranks)
        exact = objective.teach(micro)
        assert exact is not None
        torch.testing.assert_close(
            known.recall(chosen).decode().predictions, exact.predictions, rtol=1e-4, atol=1e-5
        )
    return known.rows, teacher.asked


@pytest.mark.parametrize("kind", ["classification", "regression", "tagging"])
def test_each_sample_is_asked_about_once_and_ranks_know_the_same(kind: Kind) -> None:
    ((alone, count),) = run_distributed(known_to_all, 1, kind)
    assert count == len(LENGTHS)
    assert len(alone) == (sum(LENGTHS) - 2 * len(LENGTHS) if kind == "tagging" else len(LENGTHS))
    shares = run_distributed(known_to_all, 3, kind)
    assert sum(asked for _, asked in shares) == len(LENGTHS)
    for rows, _ in shares:
        assert torch.equal(rows, alone)


def refusals() -> str:
    """What a teacher that predicts the same of everything ends with."""
    teacher = teacher_of("classification")
    nn.init.zeros_(teacher.classifier.weight)
    try:
        asked(teacher, samples("classification"))
    except UserError as error:
        return str(error)
    return "nothing"


def test_a_teacher_of_which_nothing_can_be_learnt_is_refused_at_once() -> None:
    for said in run_distributed(refusals, 2):
        assert said.startswith("teacher: ") and said.endswith("its weights, or give another")


def known_faults() -> list[float]:
    """Finite shares of a teacher that is not finite for long samples, which come first and alike.

    A copy of the longest one is behind all others.
    """
    teacher, data = teacher_of("classification"), samples("classification")
    longest = int(np.argmax(LENGTHS))
    for values in (data.input_ids, data.segments, data.labels):
        values.append(values[longest])
    known = asked(teacher, data)
    assert known is not None and not known.faults
    with torch.no_grad():
        teacher.bert.embeddings.position_embeddings.weight[max(LENGTHS) - 1] = float("nan")
    known = asked(teacher, data)
    assert known is not None
    return [fault.finite_share for fault in known.faults]


def test_samples_that_are_alike_or_not_finite_are_no_reason_to_refuse_all_others() -> None:
    (shares,) = run_distributed(known_faults, 1)
    assert shares == [1 - 2 / (len(LENGTHS) + 1)]


def stopped() -> tuple[bool, int]:
    """Whether asking ends where rank 1 alone was asked to stop, and samples asked about."""
    known_predictions._LOOK_SECONDS = -1.0
    stop = StopRequest()
    stop.requested = dist.get_rank() == 1
    teacher, data = _Counting(teacher_of("classification")), samples("classification")
    known = PredictionFiller(teacher, "t", data, 1, DEVICE, None).fill(stop)
    return known is None, teacher.asked - len(data)


def test_a_stop_that_one_rank_hears_of_is_heeded_by_all() -> None:
    assert run_distributed(stopped, 2) == [(True, 1), (True, 1)]


def empty_samples() -> bool:
    """Whether samples without tokens, which come last and are a batch of their own, are known."""
    data = samples("classification")
    for number in range(2):
        data.input_ids[number] = data.input_ids[number][:0]
        data.segments[number] = data.segments[number][:0]
    known = asked(teacher_of("classification"), data)
    return known is not None and known.rows[:2].shape == (2, 2)


def test_samples_without_tokens_have_predictions_too() -> None:
    assert run_distributed(empty_samples, 1) == [True]
