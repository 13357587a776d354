"""What students are trained for: relations, TinyBERT's states, masked tokens.

An objective is a weighted sum of parts. A part is a sum over a batch divided by a count that the
batch alone decides, so a step means the same on any number of ranks and micro-batches: sums are
local, counts are those of the whole step. A further objective is a further class of this shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..data.batches import IGNORED_LABEL, MicroBatch
from ..models.experts import RouterStatistics
from ..objectives.relations import Signals, relation_loss_sum
from ..objectives.tinybert import States, tinybert_counts, tinybert_loss_sums


class Student(Protocol):
    """A student's forward pass, and its configuration."""

    config: Any

    def __call__(self, **inputs: Any) -> Any: ...


class Measured(NamedTuple):
    """Of a student's pass over a micro-batch.

    Attributes:
        sums: one differentiable scalar a part.
        routers: the routers' statistics.
    """

    sums: Sequence[Tensor]
    routers: Sequence[RouterStatistics]


class Objective(Protocol):
    """What students are trained for.

    Attributes:
        parts: name -> weight in the loss, in the order of sums and counts.
    """

    parts: Mapping[str, float]

    def teach(self, micro: MicroBatch) -> Any:
        """What the teacher gives for a micro-batch, without gradients."""

    def counts(self, micro: MicroBatch) -> Sequence[float]:
        """What each part's sum over a micro-batch is divided by, as part of a whole step."""

    def measure(
        self, student: Student, inputs: Mapping[str, Any], micro: MicroBatch, given: Any
    ) -> Measured:
        """A student's sums, with what :meth:`teach` gave; ``inputs`` are for its forward pass."""


@dataclass
class RelationObjective:
    """KL of the relations of queries, keys and values (MiniLM).

    Attributes:
        teacher: gives (query, key, value) of (ids, mask, segments).
        num_relation_heads: R.
        weight: in the loss.
        compat_seed: the published implementation's epsilons.
        relation_dropout: dropout of the student's relations in training, with ``compat_seed``.
        seed: the run's, of that dropout.
    """

    teacher: nn.Module
    num_relation_heads: int = 32
    weight: float = 1.0
    compat_seed: bool = False
    relation_dropout: float = 0.0
    seed: int = 0
    parts: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = {"relation_loss": self.weight}

    def teach(self, micro: MicroBatch) -> Signals:
        """Query, key and value, each [B, S, H]."""
        with torch.no_grad():
            signals: Signals = self.teacher(
                micro.input_ids, micro.attention_mask, micro.token_type_ids
            )
        return signals

    def counts(self, micro: MicroBatch) -> Sequence[float]:
        """Rows: R · tokens of each of query, key and value."""
        return [3.0 * self.num_relation_heads * float(micro.attention_mask.sum())]

    def measure(
        self, student: Student, inputs: Mapping[str, Any], micro: MicroBatch, given: Signals
    ) -> Measured:
        """The student's summed KL."""
        output = student(**inputs)
        return Measured([self.relation_sum(output.signals, given, micro)], output.routers)

    def relation_sum(self, signals: Signals, given: Signals, micro: MicroBatch) -> Tensor:
        """Summed KL of one output; dropout where gradients are wanted."""
        dropout = self.relation_dropout if torch.is_grad_enabled() else 0.0
        generator = None
        if dropout:
            # Of the samples, so that a resumed run draws what the unbroken one would have.
            generator = torch.Generator(micro.input_ids.device)
            generator.manual_seed(self.seed * 1_000_003 + int(micro.sample_ids[0]))
        total, _ = relation_loss_sum(
            signals,
            given,
            micro.attention_mask,
            self.num_relation_heads,
            compat_seed=self.compat_seed,
            relation_dropout=dropout,
            generator=generator,
        )
        return total


class OnceForAllObjective(RelationObjective):
    """The same of every sub-model of a student on the same batch, averaged."""

    def measure(
        self, student: Student, inputs: Mapping[str, Any], micro: MicroBatch, given: Signals
    ) -> Measured:
        """The mean of the sub-models' summed KL."""
        outputs = student(**inputs, sparsities=tuple(student.config.sparsity_map))
        sums = [self.relation_sum(output.signals, given, micro) for output in outputs]
        return Measured([torch.stack(sums).mean()], ())


@dataclass
class MaskedLmObjective:
    """Cross entropy of masked tokens, alone or beside relations.

    Attributes:
        weight: of the cross entropy in the loss.
        relation: what is learnt besides, or None.
    """

    weight: float = 1.0
    relation: RelationObjective | None = None
    parts: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = {**(self.relation.parts if self.relation else {}), "mlm_loss": self.weight}

    def teach(self, micro: MicroBatch) -> Signals | None:
        """The teacher reads the masked text as well."""
        return None if self.relation is None else self.relation.teach(micro)

    def counts(self, micro: MicroBatch) -> Sequence[float]:
        """Of the relation, if any; then positions to be predicted."""
        assert micro.labels is not None, "the data type has no masks"
        masked = float((micro.labels != IGNORED_LABEL).sum())
        return [*(self.relation.counts(micro) if self.relation else ()), masked]

    def measure(
        self, student: Student, inputs: Mapping[str, Any], micro: MicroBatch, given: Signals | None
    ) -> Measured:
        """Summed KL, if relations are learnt too; then summed cross entropy."""
        relation = self.relation
        output = student(**inputs, labels=micro.labels, with_signals=relation is not None)
        sums = [output.loss_sum]
        if relation is not None:
            assert given is not None
            sums.insert(0, relation.relation_sum(output.signals, given, micro))
        return Measured(sums, output.routers)


@dataclass
class TinyBertObjective:
    """Squared errors of states and of attention scores, averaged (TinyBERT).

    Attributes:
        teacher: gives the States of (ids, mask, segments).
        width: the teacher's hidden size.
        num_heads: attention heads of teacher and students.
        padded_length: with compat seed, the length that the published implementation pads to.
    """

    teacher: nn.Module
    width: int
    num_heads: int
    padded_length: int | None = None
    parts: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = {"states_loss": 0.5, "scores_loss": 0.5}

    def teach(self, micro: MicroBatch) -> States:
        """The teacher's states."""
        with torch.no_grad():
            states: States = self.teacher(
                micro.input_ids, micro.attention_mask, micro.token_type_ids
            )
        return states

    def counts(self, micro: MicroBatch) -> Sequence[float]:
        """Numbers that the errors of states and of scores are over."""
        return tinybert_counts(
            micro.attention_mask, self.width, self.num_heads, padded_length=self.padded_length
        )

    def measure(
        self, student: Student, inputs: Mapping[str, Any], micro: MicroBatch, given: States
    ) -> Measured:
        """Squared errors of states and of scores."""
        output = student(**inputs)
        sums = tinybert_loss_sums(output.states, given, micro.attention_mask, self.num_heads)
        return Measured([sums.states, sums.scores], output.routers)
