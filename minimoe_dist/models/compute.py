"""Counts of compute and parameters: what a model costs, by formula rather than by clock.

A multiply-accumulate (MAC) is two floating-point operations. Embedding look-ups, LayerNorms,
softmaxes, activations and biases are left out, as is usual: they are no matrix products. No torch
here: plans are made without it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def encoder_gmac(layers: int, hidden: int, length: int = 128) -> float:
    """Counts encoder compute as the MiniMoE paper's tables do: 12 · L · H² a token, in 10⁹ MAC.

    Four H x H maps of attention and two H x 4H maps of the feed-forward block make 12 · H²;
    attention's own products and routers are not counted. With top-1 routing a token meets one
    expert, so a MiniMoE student counts as much as the plain student of its layers and width.

    Args:
        layers: number of layers L.
        hidden: width H.
        length: tokens in the sequence.

    Returns:
        10⁹ multiply-accumulates of one sequence, e.g. 10.87 for BERT-base at length 128.
    """
    return 12 * layers * hidden**2 * length / 1e9


def sequence_gmac(config: Any, length: float = 128) -> float:
    """Counts encoder compute by a model's own sizes, as of sub-models, or blocks not 4 H wide.

    Args:
        config: of a student, or of any BERT-like encoder.
        length: tokens in the sequence; a mean of lengths, too, since the count is linear in it.

    Returns:
        10⁹ multiply-accumulates: L · (4 · H² + 2 · H · I) a token.
    """
    if hasattr(config, "sparsity_map"):  # sliceable; its class would bring transformers along
        token_gmac: float = config.shape().gmac(config.sizes.head_size, 1)
        return token_gmac * length
    hidden = config.hidden_size
    layer_macs = 4 * hidden**2 + 2 * hidden * config.intermediate_size
    return config.num_hidden_layers * layer_macs * length / 1e9


@dataclass(frozen=True)
class RelationPath:
    """The sizes of what an encoder computes to give its relation signals.

    Counts are linear in the sizes of heads and neurons, so of layers that differ in them, as a
    sparse student's do, the means are exact.

    Attributes:
        layers: whole layers that run before the query, key and value maps: relation layer - 1
            for a teacher, L - 1 for a dense student (its own last layer's maps end the pass),
            L for a student with maps of its own on the final hidden states.
        hidden: width H that layers read and write.
        intermediate: feed-forward neurons that one token meets (those of one expert).
        router_outputs: experts of all routers of one layer together, 0 without routers.
        attention: width A of a layer's heads together; by default H.
        signals: width of each signal and of what its map reads; by default H, 0 where an encoder
            gives none.
        on_top: MACs of a token in what else stands on the encoder: a prediction head, a map to
            another width.
    """

    layers: int
    hidden: int
    intermediate: float
    router_outputs: int = 0
    attention: float | None = None
    signals: int | None = None
    on_top: float = 0.0

    @property
    def signal_width(self) -> int:
        """Width of each query, key and value that the relation loss reads."""
        return self.hidden if self.signals is None else self.signals

    def macs_per_token(self, length: int) -> float:
        """Counts the multiply-accumulates of one token's forward pass among `length` positions.

        Per layer: 4 · H · A (query, key, value, output), 2 · H · I (feed-forward), 2 · S · A
        (scores and their product with the values), H · (router outputs). Then the three maps of
        the signals, and what stands on top.
        """
        attention = self.hidden if self.attention is None else self.attention
        outputs = 4 * attention + 2 * self.intermediate + self.router_outputs
        layer_macs = self.hidden * outputs + 2 * length * attention
        return self.layers * layer_macs + 3 * self.signal_width**2 + self.on_top


def relation_macs_per_token(student_width: int, teacher_width: int, length: int) -> int:
    """Counts the multiply-accumulates of the relation loss with its gradient, per token.

    For each of query, key and value S · (teacher width) for the teacher's scores, and
    3 · S · (student width) for the student's and for the two products of their gradient.
    """
    return 3 * length * (teacher_width + 3 * student_width)


def distillation_flops_per_token(
    students: Iterable[RelationPath], teacher: RelationPath, length: int
) -> float:
    """Counts the floating-point operations of a relation distillation step, per token.

    The teacher runs forward once; each student runs forward and backward (three times its
    forward's MACs), and its relations are compared with the teacher's. This is the count behind
    the TFLOP/s that training reports.

    Args:
        students: what each student computes.
        teacher: what the teacher computes up to its relation layer's projections.
        length: positions S of the (padded) batch.

    Returns:
        Operations (two a MAC) per token; times the tokens of a step that are not padding, it is
        the step's useful work.
    """
    macs = teacher.macs_per_token(length)
    for student in students:
        macs += 3 * student.macs_per_token(length)
        if student.signal_width:
            macs += relation_macs_per_token(student.signal_width, teacher.signal_width, length)
    return 2 * macs
