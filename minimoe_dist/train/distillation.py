"""One training step: a teacher's pass, each student's pass and loss, the updates.

The teacher runs once per micro-batch, whatever the number of students. A step means the same on
any number of ranks: sums of the objective's parts are divided by counts of the whole step over all
ranks, and the balance uses token counts of all ranks.

Nothing here waits for the device. What a step found out is a row of numbers that are on their way
to the host when it ends; whoever reads them waits.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
import torch.distributed as dist
from torch import Tensor

from ..data.batches import MicroBatch, padding_batch
from ..data.loader import StepBatch
from ..data.placing import PlacedBatch, Placer
from ..models.configuration import router_sizes
from ..models.submodels import once_for_all_name
from ..objectives.balance import balance_loss
from .engine import StudentEngine
from .fastest_passes import choose_passes
from .objectives import Objective, inputs_of, measure
from .passes import Passes, PassOutput
from .schedule import Schedule
from .step_metrics import PendingMetrics, StudentRow, to_device
from .teacher_signals import SignalFault, find_faults
from .updates import StepResult


class Part(StrEnum):
    """The parts of a step in their order, some several times; the loss is in the forward one."""

    PLACING = "placing"
    TEACHER = "teacher"
    FORWARD = "student forward"
    BACKWARD = "student backward"
    UPDATE = "update"


@dataclass(frozen=True)
class Balance:
    """The weight of the experts' balance, and what it counts.

    Attributes:
        coefficient: its weight in the loss.
        compat_seed: count plain blocks as the published implementation does.
    """

    coefficient: float = 0.01
    compat_seed: bool = False


@dataclass
class _Sums:
    """A student's running sums over the micro-batches of a step on this rank.

    Attributes:
        parts: float32 [P], the objective's parts.
        balance: float32 scalar.
        counts: tokens per expert, float32 [E], a tensor a block.
    """

    parts: Tensor
    balance: Tensor
    counts: list[Tensor] = field(default_factory=list)

    def count(self, counts: Sequence[Tensor]) -> None:
        """Adds a micro-batch's tokens per block and expert."""
        before = self.counts or [torch.zeros_like(count) for count in counts]
        self.counts = [old + new for old, new in zip(before, counts, strict=True)]


class Distiller:
    """Trains students for an objective, step by step.

    Its ``place`` brings micro-batches to where passes want them; a loader may call it ahead.

    Args:
        students: trained side by side.
        objective: what for, with its teacher.
        schedule: of the learning rate.
        seed: of dropout and router noise.
        device: of this rank.
        balance: of experts.
        passes: how they are run; by default the fastest way there is.
        max_length: no sample is longer; None: than its batch is wide.
        mark: called behind each part of a step with its name, one of :class:`Part`; for clocks.
    """

    def __init__(
        self,
        students: Sequence[StudentEngine],
        objective: Objective,
        schedule: Schedule,
        *,
        seed: int,
        device: torch.device,
        balance: Balance | None = None,
        passes: Passes | None = None,
        max_length: int | None = None,
        mark: Callable[[Part], None] | None = None,
    ) -> None:
        self.students = list(students)
        self._objective = objective
        self._weights = torch.tensor(list(objective.parts.values()), device=device)
        self._schedule = schedule
        self._seed = seed
        self._device = device
        self._balance = balance or Balance()
        self._ranks = dist.get_world_size()
        self._last_batches: deque[list[PlacedBatch]] = deque(maxlen=2)
        self._student_names = [student.name for student in self.students]
        self._passes = passes or choose_passes(self.students, objective, seed, device)
        self.place = Placer(device, packed=self._passes.packed, longest=max_length)
        self._mark = mark or (lambda part: None)

    @property
    def warms_up(self) -> bool:
        """Whether the first steps compile the passes of all."""
        return self._passes.warms_up

    def train_step(self, batch: StepBatch, step: int, stop_requested: bool) -> PendingMetrics:
        """Trains every student on ``batch``; a collective that does not wait for the device.

        Args:
            batch: this rank's micro-batches of the step.
            step: counts from 0; sets the learning rate.
            stop_requested: whether this process was asked to stop; all ranks learn if any was.

        Returns:
            The step's numbers over all ranks, which are still on their way to the host.
        """
        micro_batches = [self._placed(micro) for micro in batch.micro_batches]
        # Who looks at the teacher again asks it: signals that were recalled need not stay.
        self._last_batches.append([replace(placed, recalled=None) for placed in micro_batches])
        totals = self._totals(micro_batches, stop_requested)
        part_counts = totals[3:].clamp(min=1.0)
        # Engines average over ranks and accumulation steps; this makes sums means over the step.
        shares = (self._weights * (self._ranks * len(micro_batches)) / part_counts).float()
        learning_rate = self._schedule(step)
        sums = [self._new_sums() for _ in self.students]
        results = []
        for student in self.students:
            student.module.train()
        self._mark(Part.PLACING)
        for number, placed in enumerate(micro_batches):
            targets = self._passes.teach(placed.arrived(), placed.recalled)
            self._mark(Part.TEACHER)
            for index, (student, student_sums) in enumerate(zip(self.students, sums, strict=True)):
                output = self._passes.forward(index, *targets)
                loss = self._loss(student, output, shares, student_sums)
                self._mark(Part.FORWARD)
                self._passes.backward(index, loss)
                self._mark(Part.BACKWARD)
                if number == len(micro_batches) - 1:
                    results.append(student.step(learning_rate))
                    self._mark(Part.UPDATE)
        rows = self._rows(sums, results, part_counts, len(micro_batches))
        return PendingMetrics(
            learning_rate, list(self._objective.parts), self._student_names, totals[:3], rows
        )

    def _placed(self, micro: MicroBatch | PlacedBatch) -> PlacedBatch:
        return micro if isinstance(micro, PlacedBatch) else self.place(micro)

    def _totals(self, micro_batches: Sequence[PlacedBatch], stop_requested: bool) -> Tensor:
        """Sums tokens, sequences, stop requests and parts' counts over ranks: float64 [3 + P]."""
        per_batch = [self._objective.counts(placed.micro) for placed in micro_batches]
        numbers = [
            float(sum(placed.micro.num_tokens for placed in micro_batches)),
            float(sum(len(placed.micro.input_ids) for placed in micro_batches)),
            float(stop_requested),
            *(sum(counts) for counts in zip(*per_batch, strict=True)),
        ]
        totals = to_device(numbers, self._device)
        if self._ranks > 1:
            dist.all_reduce(totals)
        return totals

    def teacher_faults(self, batch: StepBatch | None = None) -> list[SignalFault]:
        """Finds what is wrong with the teacher's signals; a collective that waits.

        Args:
            batch: whose first micro-batch is looked at; None: all of the last two steps, one of
                which is the one whose numbers were read last.
        """
        seen = [micro for step in self._last_batches for micro in step]
        if batch is not None:
            seen = [self._placed(batch.micro_batches[0])]
        return find_faults((self._signals(placed) for placed in seen), self._device)

    def _signals(self, placed: PlacedBatch) -> Mapping[str, Tensor]:
        batch = placed.arrived()
        return self._objective.signals(self._objective.teach(batch), batch)

    def teacher_is_finite(self) -> bool:
        """Returns whether the teacher's signals of the last steps are finite; a collective."""
        return all(fault.finite_share == 1.0 for fault in self.teacher_faults())

    def evaluate(self, batches: Iterable[MicroBatch]) -> dict[str, float]:
        """Computes every student's mean loss, balance left out, over all ranks; a collective.

        Every rank gives the same number of batches; one may have no sample.

        Returns:
            By student; a once-for-all one's is the mean of its sub-models', which follow it by the
            names that their exports have.
        """
        names = [_sub_model_names(student) for student in self.students]
        passes = [max(1, len(sub_models)) for sub_models in names]
        shape = (sum(passes) + 1, len(self._objective.parts))
        sums = torch.zeros(shape, dtype=torch.float64, device=self._device)
        for batch in batches:
            micro = batch if len(batch.input_ids) else padding_batch()
            counts = self._objective.counts(micro)
            sums[-1] += torch.tensor(counts, dtype=torch.float64, device=self._device)
            placed = self._placed(micro).arrived()
            targets = self._objective.teach(placed)
            for student, student_sums in zip(self.students, sums[:-1].split(passes), strict=True):
                student.module.eval()
                sub_models, inputs = student.config.sub_models, inputs_of(placed)
                with torch.no_grad():
                    student_sums += measure(
                        self._objective, student, sub_models, inputs, placed, targets
                    ).sums
        dist.all_reduce(sums)
        means = (self._weights * sums[:-1] / sums[-1].clamp(min=1.0)).sum(1)
        losses: dict[str, float] = {}
        for student, sub_models, student_losses in zip(
            self.students, names, means.split(passes), strict=True
        ):
            losses[student.name] = float(student_losses.mean())
            losses |= dict(zip(sub_models, student_losses.tolist(), strict=False))
        return losses

    def _loss(
        self, student: StudentEngine, output: PassOutput, shares: Tensor, sums: _Sums
    ) -> Tensor:
        sums.parts = sums.parts + output.parts.detach()
        loss = (output.parts * shares).sum()
        if output.token_counts.numel():
            balance = self._balance_of(student, output, sums)
            sums.balance = sums.balance + balance.detach()
            loss = loss + self._balance.coefficient * balance
        return loss

    def _balance_of(self, student: StudentEngine, output: PassOutput, sums: _Sums) -> Tensor:
        """Returns this rank's share of the balance; token counts cross ranks, not probabilities."""
        counts = output.token_counts
        if self._ranks > 1:
            dist.all_reduce(counts)
        sizes = router_sizes(student.config)
        sums.count(counts.split(sizes))
        plain_blocks = 0
        if self._balance.compat_seed and student.config.feedforward_experts == 1:
            plain_blocks = student.config.num_hidden_layers
        return balance_loss(
            output.probability_sums.split(sizes),
            counts.split(sizes),
            scale=float(self._ranks),
            plain_blocks=plain_blocks,
        )

    def _new_sums(self) -> _Sums:
        return _Sums(torch.zeros_like(self._weights), torch.zeros((), device=self._device))

    def _rows(
        self,
        sums: Sequence[_Sums],
        results: Sequence[StepResult],
        part_counts: Tensor,
        num_micro_batches: int,
    ) -> list[StudentRow]:
        per_student = [torch.cat([student.parts, student.balance[None]]) for student in sums]
        over_ranks = torch.stack(per_student).double()
        if self._ranks > 1:
            dist.all_reduce(over_ranks)
        means = over_ranks[:, :-1] / part_counts
        balances = over_ranks[:, -1] / (self._ranks * num_micro_batches)
        losses = (means * self._weights).sum(1) + self._balance.coefficient * balances
        return [
            StudentRow(loss, part_means, balance, result, student.counts)
            for student, result, loss, part_means, balance in zip(
                sums, results, losses, means, balances, strict=True
            )
        ]


def _sub_model_names(student: StudentEngine) -> list[str]:
    return [once_for_all_name(student.name, sub_model) for sub_model in student.config.sub_models]
