"""The objectives of students: relations, TinyBERT's states, masked tokens, or several of these.

An objective is a weighted sum of parts. A part is a sum over a batch divided by a count that the
batch alone decides, so a step means the same on any number of ranks and micro-batches: sums are
local, counts are those of the whole step. A further objective is a further class of this shape;
:class:`JointObjective` puts any of them side by side on one pass of the student.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batches import IGNORED_LABEL, MicroBatch
from ..data.packed import PackedBatch
from ..models.blocks import StudentOutput
from ..models.experts import RouterStatistics
from ..models.noise import RelationDropout, sample_keys
from ..models.packed import PackedLayout
from ..objectives.last_states import last_states_loss_sum
from ..objectives.packed_relations import packed_relation_loss
from ..objectives.relations import relation_loss_sum
from ..objectives.tinybert import States, tinybert_counts, tinybert_loss_sums

# A micro-batch on the device, with its padding or without.
Batch = MicroBatch | PackedBatch

RELATIONS = ("queries", "keys", "values")  # the signals that relations are of
_SIGNALS = (*RELATIONS, "last states")
_IDS = ("input_ids", "token_type_ids")


def inputs_of(batch: Batch) -> dict[str, Any]:
    """Returns what an encoder takes of a batch, by its argument's name."""
    if isinstance(batch, MicroBatch):
        return dict(batch.inputs())
    layout = PackedLayout(batch.sample, batch.position, batch.starts, batch.lengths, batch.longest)
    return {
        "input_ids": batch.input_ids,
        "token_type_ids": batch.token_type_ids,
        "layout": layout,
    }


def of_tokens(signals: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Leaves the padding of signals out: [T, …] of [B, S, …], or of [rows, …] of a packed batch."""
    if isinstance(batch, PackedBatch):
        return {name: signal[: batch.num_tokens] for name, signal in signals.items()}
    mask = batch.attention_mask.bool()
    return {name: signal[mask] for name, signal in signals.items()}


class Measured(NamedTuple):
    """The sums and router statistics of a student's pass over a micro-batch.

    Attributes:
        sums: differentiable float32 [M, parts]; M sub-models of a once-for-all student, 1 of any
            other.
        routers: the statistics of the pass's routers.
    """

    sums: Tensor
    routers: Sequence[RouterStatistics]


class Objective(Protocol):
    """An objective of students: a weighted sum of parts.

    Attributes:
        parts: name -> weight in the loss, in the order of sums and counts.
        takes_packed: whether batches may come without their padding.
        teaches_packed: whether the teacher then computes no padding, and asks no other rank.
    """

    parts: Mapping[str, float]

    @property
    def takes_packed(self) -> bool: ...

    @property
    def teaches_packed(self) -> bool: ...

    def teach(self, batch: Any) -> Any:
        """Computes the teacher's targets for a micro-batch, without gradients."""

    def counts(self, micro: MicroBatch) -> Sequence[float]:
        """Returns what each part's sum over a micro-batch is divided by, as part of a whole step.

        The micro-batch is on the host.
        """

    def extra_inputs(self, batch: Any) -> Mapping[str, Any]:
        """Returns inputs of the student's pass beside the batch's own."""

    def sums(self, output: StudentOutput, targets: Any, batch: Any) -> Sequence[Tensor]:
        """Computes a scalar a part, of a student's output and of :meth:`teach`'s targets."""

    def signals(self, targets: Any, batch: Any) -> Mapping[str, Tensor]:
        """Names what :meth:`teach` gave, [rows, …] each: a row a token or sample, no padding."""


def measure(
    objective: Objective,
    student: Callable[..., Any],
    sub_models: Sequence[str],
    inputs: Mapping[str, Any],
    batch: Batch,
    targets: Any,
) -> Measured:
    """Computes a student's sums; of a once-for-all student, each sub-model's on the same batch.

    Args:
        objective: what the student is trained for.
        student: runs one pass, or one for each of its sub-models.
        sub_models: their names; none of a student without any.
        inputs: arguments of the pass.
        batch: the samples that the inputs were taken of.
        targets: what the objective's teacher gave for the batch.
    """
    inputs = {**inputs, **objective.extra_inputs(batch)}
    outputs = student(**inputs, sparsities=sub_models) if sub_models else (student(**inputs),)
    sums = [torch.stack(list(objective.sums(output, targets, batch))) for output in outputs]
    return Measured(torch.stack(sums), outputs[0].routers)


@dataclass
class RelationObjective:
    """Learns a teacher's relations of queries, keys and values by their KL (MiniLM).

    With a weight of their own it also learns the teacher's last states, by squared error.

    Attributes:
        teacher: gives (query, key, value) of (ids, mask, segments), and last states where these
            are to be learnt.
        num_relation_heads: R.
        weight: in the loss.
        compat_seed: the published implementation's epsilons.
        relation_dropout: dropout of the student's relations in training, with ``compat_seed``.
        seed: the run's, of that dropout.
        state_weight: of the last states' error in the loss; 0: they are not learnt.
    """

    teacher: nn.Module
    num_relation_heads: int = 32
    weight: float = 1.0
    compat_seed: bool = False
    relation_dropout: float = 0.0
    seed: int = 0
    state_weight: float = 0.0
    parts: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = {"relation_loss": self.weight}
        if self.state_weight:
            self.parts = {**self.parts, "last_states_loss": self.state_weight}

    @property
    def takes_packed(self) -> bool:
        """Whether padding may be left out: the published loss drops by padded positions."""
        return not self.compat_seed

    @property
    def teaches_packed(self) -> bool:
        """Whether the teacher is one of our own encoders, whole on this rank."""
        return bool(getattr(self.teacher, "takes_packed", False))

    @torch.no_grad()
    def teach(self, batch: Batch) -> tuple[Tensor, ...]:
        """Computes the teacher's signals, each [B, S, H], or [T, H] of a packed batch."""
        if isinstance(batch, MicroBatch):
            return self.teacher(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        inputs = inputs_of(batch)
        if self.teaches_packed:
            teacher: Any = self.teacher
            return teacher.packed(**inputs)
        layout: PackedLayout = inputs["layout"]
        ids, segments = (layout.padded(inputs[name].long()) for name in _IDS)
        mask = torch.arange(batch.longest, device=ids.device) < batch.lengths[:, None]
        return tuple(
            signal.flatten(0, 1).index_select(0, layout.cells())
            for signal in self.teacher(ids, mask, segments)
        )

    def counts(self, micro: MicroBatch) -> Sequence[float]:
        """Counts rows: R · tokens of each of query, key and value, and the last states' tokens."""
        rows = 3.0 * self.num_relation_heads * micro.num_tokens
        return [rows, float(micro.num_tokens)] if self.state_weight else [rows]

    def extra_inputs(self, batch: Batch) -> Mapping[str, Any]:
        """Returns nothing: relations need no further inputs."""
        return {}

    def sums(
        self, output: StudentOutput, targets: tuple[Tensor, ...], batch: Batch
    ) -> Sequence[Tensor]:
        """Computes the summed KL, with dropout where gradients are wanted, and states' errors."""
        query, key, value, *states = targets
        total = self._relations(output, (query, key, value), batch)
        if not self.state_weight:
            return [total]
        assert output.last_states is not None, "the student has no map of its states"
        is_token = (
            batch.attention_mask
            if isinstance(batch, MicroBatch)
            else inputs_of(batch)["layout"].real
        )
        return [total, last_states_loss_sum(output.last_states, states[0], is_token)]

    def _relations(
        self, output: StudentOutput, teacher: tuple[Tensor, Tensor, Tensor], batch: Batch
    ) -> Tensor:
        assert output.signals is not None, "the student has none"
        heads = self.num_relation_heads
        if isinstance(batch, PackedBatch):
            spans = (batch.starts, batch.lengths)
            return packed_relation_loss(output.signals, teacher, *spans, heads, batch.longest)
        total, _ = relation_loss_sum(
            output.signals,
            teacher,
            batch.attention_mask,
            heads,
            compat_seed=self.compat_seed,
            dropout=self._dropout(batch) if torch.is_grad_enabled() else None,
        )
        return total

    def signals(self, targets: tuple[Tensor, ...], batch: Batch) -> Mapping[str, Tensor]:
        """Names what the teacher gave, [tokens, H] each."""
        return of_tokens(dict(zip(_SIGNALS, targets, strict=False)), batch)

    def _dropout(self, micro: MicroBatch) -> RelationDropout | None:
        if not self.relation_dropout:
            return None
        keys = sample_keys(self.seed, micro.sample_ids, micro.input_ids.shape[1])
        return RelationDropout(keys, self.relation_dropout)


@dataclass
class MaskedLmObjective:
    """Learns masked tokens by cross entropy.

    Attributes:
        weight: in the loss.
    """

    weight: float = 1.0
    parts: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = {"mlm_loss": self.weight}

    takes_packed = True
    teaches_packed = True

    def teach(self, batch: Batch) -> None:
        """Does nothing: the text itself teaches."""

    def counts(self, micro: MicroBatch) -> Sequence[float]:
        """Counts the positions to be predicted."""
        assert micro.labels is not None, "the data type has no masks"
        return [float(np.count_nonzero(micro.labels.numpy() != IGNORED_LABEL))]

    def extra_inputs(self, batch: Batch) -> Mapping[str, Any]:
        """Asks for predictions, and for nothing that a teacher would be compared with."""
        if isinstance(batch, PackedBatch):
            rows, labels = batch.predicted_rows, batch.predicted_labels
            return {"labels": labels, "predicted_rows": rows, "compares": False}
        return {"labels": batch.labels, "compares": False}

    def sums(self, output: StudentOutput, targets: None, batch: Batch) -> Sequence[Tensor]:
        """Returns the summed cross entropy."""
        assert output.masked_lm_sum is not None, "the student has no masked-LM head"
        return [output.masked_lm_sum]

    def signals(self, targets: None, batch: Batch) -> Mapping[str, Tensor]:
        """Returns nothing: no teacher gives any."""
        return {}


@dataclass
class TinyBertObjective:
    """Learns a teacher's states and attention scores by squared errors, averaged (TinyBERT).

    Attributes:
        teacher: gives the States of (ids, mask, segments).
        width: the teacher's hidden size.
        num_heads: attention heads of teacher and students.
        weight: of their mean in the loss.
        padded_length: with compat seed, the length that the published implementation pads to.
    """

    teacher: nn.Module
    width: int
    num_heads: int
    weight: float = 1.0
    padded_length: int | None = None
    parts: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = {"states_loss": 0.5 * self.weight, "scores_loss": 0.5 * self.weight}

    takes_packed = False
    teaches_packed = False

    def teach(self, micro: MicroBatch) -> States:
        """Computes the teacher's states."""
        with torch.no_grad():
            states: States = self.teacher(
                micro.input_ids, micro.attention_mask, micro.token_type_ids
            )
        return states

    def counts(self, micro: MicroBatch) -> Sequence[float]:
        """Counts the numbers that the errors of states and of scores are over."""
        return tinybert_counts(
            micro.attention_mask, self.width, self.num_heads, padded_length=self.padded_length
        )

    def extra_inputs(self, micro: MicroBatch) -> Mapping[str, Any]:
        """Returns nothing: states and scores need no further inputs."""
        return {}

    def sums(self, output: StudentOutput, targets: States, micro: MicroBatch) -> Sequence[Tensor]:
        """Computes the squared errors of states and of scores."""
        sums = tinybert_loss_sums(output.states, targets, micro.attention_mask, self.num_heads)
        return [sums.states, sums.scores]

    def signals(self, targets: States, micro: MicroBatch) -> Mapping[str, Tensor]:
        """Names the teacher's states, [tokens, width] each."""
        names = ("embeddings", "hidden states", "queries", "keys")
        return of_tokens(dict(zip(names, targets, strict=True)), micro)


class JointObjective:
    """Puts several objectives on one pass of the student; teachers read the masked text as well.

    Attributes:
        parts: those of all objectives, in their order.
    """

    parts: Mapping[str, float]

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = tuple(objectives)
        self.parts = {
            name: weight
            for objective in self._objectives
            for name, weight in objective.parts.items()
        }

    @property
    def takes_packed(self) -> bool:
        """Whether batches may come without their padding for every objective."""
        return all(objective.takes_packed for objective in self._objectives)

    @property
    def teaches_packed(self) -> bool:
        """Whether every objective's teacher computes no padding."""
        return all(objective.teaches_packed for objective in self._objectives)

    def teach(self, batch: Batch) -> Sequence[Any]:
        """Computes the targets of each objective, in their order."""
        return [objective.teach(batch) for objective in self._objectives]

    def counts(self, micro: MicroBatch) -> Sequence[float]:
        """Returns the counts of each objective's parts, side by side."""
        return [count for objective in self._objectives for count in objective.counts(micro)]

    def extra_inputs(self, batch: Batch) -> Mapping[str, Any]:
        """Merges the extra inputs of all objectives, with the signals that teachers compare."""
        inputs: dict[str, Any] = {}
        for objective in self._objectives:
            inputs |= objective.extra_inputs(batch)
        return {**inputs, "compares": True}

    def sums(self, output: StudentOutput, targets: Sequence[Any], batch: Batch) -> Sequence[Tensor]:
        """Computes the sums of each objective's parts, side by side."""
        return [
            total
            for objective, objective_targets in zip(self._objectives, targets, strict=True)
            for total in objective.sums(output, objective_targets, batch)
        ]

    def signals(self, targets: Sequence[Any], batch: Batch) -> Mapping[str, Tensor]:
        """Names the signals of each objective's teacher, side by side."""
        return {
            name: signal
            for objective, objective_targets in zip(self._objectives, targets, strict=True)
            for name, signal in objective.signals(objective_targets, batch).items()
        }
