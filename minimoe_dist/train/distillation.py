"""One training step: a teacher's pass, each student's pass and loss, the updates.

The teacher runs once per micro-batch, whatever the number of students. A step means the same on
any number of ranks: sums of KL are divided by the rows of the whole step over all ranks, and the
balance uses token counts of all ranks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.batches import MicroBatch
from ..data.loader import StepBatch
from ..models.experts import RouterStatistics
from ..objectives.balance import balance_loss
from ..objectives.relations import relation_loss_sum
from .engine import StepResult, StudentEngine
from .schedule import Schedule


@dataclass(frozen=True)
class Objective:
    """What students are trained for.

    Attributes:
        num_relation_heads: R.
        balance_coefficient: weight of the balance term (0.01).
        compat_seed: the published implementation's epsilons, relation dropout and balance.
        relation_dropout: dropout of the student's relations in training, with ``compat_seed``.
    """

    num_relation_heads: int = 32
    balance_coefficient: float = 0.01
    compat_seed: bool = False
    relation_dropout: float = 0.0


@dataclass(frozen=True)
class StudentMetrics:
    """Of one step over all ranks; means over the step's rows or micro-batches."""

    loss: float
    relation_loss: float
    balance: float
    gradient_norm: float
    applied: bool
    tokens_per_expert: list[list[float]]


@dataclass(frozen=True)
class StepMetrics:
    """What a step did, the same on every rank."""

    learning_rate: float
    sequences: int
    tokens: int
    stop_requested: bool
    students: dict[str, StudentMetrics]


@dataclass
class _Sums:
    """A student's running sums over the micro-batches of a step on this rank."""

    relation: Tensor
    balance: Tensor
    counts: list[Tensor] = field(default_factory=list)

    def count(self, counts: Sequence[Tensor]) -> None:
        """Adds a micro-batch's tokens per block and expert."""
        before = self.counts or [torch.zeros_like(count) for count in counts]
        self.counts = [old + new for old, new in zip(before, counts, strict=True)]


class Distiller:
    """A frozen teacher and the students that learn from it."""

    def __init__(
        self,
        teacher: nn.Module,
        students: Sequence[StudentEngine],
        objective: Objective,
        schedule: Schedule,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.students = list(students)
        self._teacher = teacher
        self._objective = objective
        self._schedule = schedule
        self._seed = seed
        self._device = device
        self._ranks = dist.get_world_size()
        self._generator = torch.Generator(device)

    def train_step(self, batch: StepBatch, step: int, stop_requested: bool) -> StepMetrics:
        """Trains every student on ``batch``; a collective.

        Args:
            batch: this rank's micro-batches of the step.
            step: counts from 0; sets the learning rate.
            stop_requested: whether this process was asked to stop; all ranks learn if any was.
        """
        micro_batches = batch.micro_batches
        tokens = sum(int(micro.attention_mask.sum()) for micro in micro_batches)
        sequences = sum(len(micro.input_ids) for micro in micro_batches)
        totals = self._sum_over_ranks([tokens, sequences, float(stop_requested)])
        learning_rate = self._schedule(step)
        sums = [self._new_sums() for _ in self.students]
        results = []
        for index, micro in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            on_device = micro.to(self._device)
            signals = self._teach(on_device)
            # Engines average over ranks and accumulation steps; this makes it a mean over rows.
            share = self._ranks * len(micro_batches) / max(1.0, totals[0])
            for student, student_sums in zip(self.students, sums, strict=True):
                student.module.train()
                loss = self._loss(student, on_device, signals, share, student_sums)
                student.backward(loss)
                result = student.step(learning_rate if last else None)
                if last:
                    results.append(result)
        return StepMetrics(
            learning_rate=learning_rate,
            sequences=int(totals[1]),
            tokens=int(totals[0]),
            stop_requested=totals[2] > 0,
            students=self._metrics(sums, results, totals[0], len(micro_batches)),
        )

    def evaluate(self, batches: Iterable[MicroBatch]) -> dict[str, float]:
        """Mean relation loss of every student over all ranks' batches; a collective.

        Every rank gives the same number of batches; one may have no sample.
        """
        sums = torch.zeros(len(self.students) + 1, dtype=torch.float64, device=self._device)
        for batch in batches:
            micro = (batch if len(batch.input_ids) else _nothing()).to(self._device)
            signals = self._teach(micro)
            for place, student in enumerate(self.students):
                student.module.eval()
                with torch.no_grad():
                    output = student(**_inputs(micro))
                    loss, _ = self._relation_loss(output.signals, signals, micro, training=False)
                sums[place] += loss
            sums[-1] += micro.attention_mask.sum()
        dist.all_reduce(sums)
        rows = 3 * self._objective.num_relation_heads * sums[-1].item()
        return {
            student.name: value / max(1.0, rows)
            for student, value in zip(self.students, sums[:-1].tolist(), strict=True)
        }

    def _teach(self, micro: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            signals: tuple[Tensor, Tensor, Tensor] = self._teacher(
                micro.input_ids, micro.attention_mask, micro.token_type_ids
            )
        return signals

    def _loss(
        self,
        student: StudentEngine,
        micro: MicroBatch,
        signals: tuple[Tensor, Tensor, Tensor],
        share: float,
        sums: _Sums,
    ) -> Tensor:
        objective = self._objective
        output = student(**_inputs(micro), sample_ids=micro.sample_ids, noise_seed=self._seed)
        relation, _ = self._relation_loss(output.signals, signals, micro, training=True)
        sums.relation = sums.relation + relation.detach()
        loss = relation * (share / (3 * objective.num_relation_heads))
        if output.routers:
            balance = self._balance(student, output.routers, sums)
            sums.balance = sums.balance + balance.detach()
            loss = loss + objective.balance_coefficient * balance
        return loss

    def _relation_loss(
        self,
        student: tuple[Tensor, Tensor, Tensor],
        teacher: tuple[Tensor, Tensor, Tensor],
        micro: MicroBatch,
        *,
        training: bool,
    ) -> tuple[Tensor, int]:
        dropout = self._objective.relation_dropout if training else 0.0
        if dropout:
            # Of the samples, so that a resumed run draws what the unbroken one would have.
            self._generator.manual_seed(self._seed * 1_000_003 + int(micro.sample_ids[0]))
        return relation_loss_sum(
            student,
            teacher,
            micro.attention_mask,
            self._objective.num_relation_heads,
            compat_seed=self._objective.compat_seed,
            relation_dropout=dropout,
            generator=self._generator,
        )

    def _balance(
        self, student: StudentEngine, routers: Sequence[RouterStatistics], sums: _Sums
    ) -> Tensor:
        """This rank's share of the balance; token counts, not probabilities, cross ranks."""
        sizes = [len(router.token_count) for router in routers]
        counts = torch.cat([router.token_count for router in routers])
        dist.all_reduce(counts)
        sums.count(counts.split(sizes))
        plain = 0
        if self._objective.compat_seed and student.config.feedforward_experts == 1:
            plain = student.config.num_hidden_layers
        return balance_loss(
            [router.probability_sum for router in routers],
            counts.split(sizes),
            scale=float(self._ranks),
            plain_blocks=plain,
        )

    def _new_sums(self) -> _Sums:
        zero = torch.zeros((), device=self._device)
        return _Sums(relation=zero, balance=zero)

    def _metrics(
        self,
        sums: Sequence[_Sums],
        results: Sequence[StepResult],
        tokens: float,
        micro_batches: int,
    ) -> dict[str, StudentMetrics]:
        over_ranks = torch.stack([torch.stack([own.relation, own.balance]) for own in sums])
        over_ranks = over_ranks.double()
        dist.all_reduce(over_ranks)
        rows = max(1.0, 3 * self._objective.num_relation_heads * tokens)
        metrics = {}
        for student, own, result, (relation_sum, balance_sum) in zip(
            self.students, sums, results, over_ranks.tolist(), strict=True
        ):
            relation = relation_sum / rows
            balance = balance_sum / (self._ranks * micro_batches)
            metrics[student.name] = StudentMetrics(
                loss=relation + self._objective.balance_coefficient * balance,
                relation_loss=relation,
                balance=balance,
                gradient_norm=result.gradient_norm,
                applied=result.applied,
                tokens_per_expert=[count.tolist() for count in own.counts],
            )
        return metrics

    def _sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]


def _inputs(micro: MicroBatch) -> dict[str, Tensor]:
    return {
        "input_ids": micro.input_ids,
        "attention_mask": micro.attention_mask,
        "token_type_ids": micro.token_type_ids,
    }


def _nothing() -> MicroBatch:
    """One sample of padding: a rank without a sample still joins the students' collectives."""
    return MicroBatch(
        input_ids=torch.zeros((1, 8), dtype=torch.long),
        attention_mask=torch.zeros((1, 8), dtype=torch.bool),
        token_type_ids=torch.zeros((1, 8), dtype=torch.long),
        sample_ids=torch.zeros(1, dtype=torch.long),
    )
