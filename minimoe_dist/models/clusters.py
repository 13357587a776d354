"""Gives experts that are copies of a plain student's blocks tokens of their own.

Copies are alike, so that nothing tells a router which of them a token should go to, and it hardly
learns it. Here each router sends a cluster of tokens to each expert instead, of equal size, in the
space of what the block reads; what a cluster has in common its expert can then learn. Such routers
are meant to stay as they are (a learning rate of 0): tokens that change their expert find one that
has learnt from others.

Shapes: N tokens of a sample, W the student's width, E experts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.batches import MicroBatch
from .block_fits import StudentMap, balanced_router
from .build import probability_of_copies
from .encoder import Layer
from .errors import UserError
from .experts import ExpertLinear, Router
from .moebert import MiniMoeForRelations
from .taps import Tap, at_rest, hear


@dataclass(frozen=True)
class BlockClusters:
    """How tokens of a sample are sent to a block's experts.

    Attributes:
        layer: from 1.
        block: "attention" or "feed-forward".
        tokens: N.
        largest: share of the tokens that the most loaded expert gets; equal shares are 1/E.
        probability: of the chosen expert, mean over tokens.
    """

    layer: int
    block: str
    tokens: int
    largest: float
    probability: float


@torch.no_grad()
def send_clusters(
    student: MiniMoeForRelations,
    batches: Sequence[MicroBatch],
    seed: int = 0,
    go_on: Callable[[], None] = lambda: None,
) -> list[BlockClusters]:
    """Replaces the routers of a student whose experts are copies, in place, layer after layer.

    It reads the batches once for each block with experts, :func:`batches_read` of them in all.

    A block's output is scaled by its expert's probability, so that an expert's second map is the
    plain block's over what that is on the mean of its own tokens.

    Args:
        student: float32, as :func:`.build.copy_dense` leaves it.
        batches: the sample, on the student's device.
        seed: of where clusters begin.
        go_on: called before every batch of every pass; what it raises ends the work.

    Returns:
        One a block with experts, from the first layer on.

    Raises:
        UserError: what a block reads is not finite.
    """

    def read() -> Iterator[MicroBatch]:
        for batch in batches:
            go_on()
            yield batch

    found = []
    with at_rest(student, seed):
        for number, layer in enumerate(student.bert.encoder.layers(), 1):
            for block, router, second in _blocks(layer):
                tokens = hear(student, Tap(router, is_input=True), read())
                if not tokens.isfinite().all():
                    raise UserError(f"what its layer {number} reads is not finite")
                found.append(_send(number, block, router, second, tokens))
    return found


def batches_read(student: MiniMoeForRelations, batches: int) -> int:
    """Returns how often :func:`send_clusters` reads one of ``batches``."""
    return batches * sum(len([*_blocks(layer)]) for layer in student.bert.encoder.layers())


def _blocks(layer: Layer) -> Iterator[tuple[str, Router, ExpertLinear]]:
    """The blocks with experts, with their routers and second maps, in the order that they run."""
    for block, gate, second in (
        ("attention", "attn_gate", layer.attention.output.dense),
        ("feed-forward", "ffn_gate", layer.output.dense),
    ):
        router = getattr(layer, gate, None)
        if isinstance(second, ExpertLinear):
            assert isinstance(router, Router), gate
            yield block, router, second


def _send(
    number: int, block: str, router: Router, second: ExpertLinear, tokens: Tensor
) -> BlockClusters:
    StudentMap(router).write(balanced_router(tokens, router.out_features))
    expert, probability, _ = router(tokens, None)
    sums = torch.zeros_like(router.bias).index_add_(0, expert, probability[:, 0])
    sizes = torch.bincount(expert, minlength=router.out_features)
    # An expert without a token keeps the size that it has.
    expected = probability_of_copies(router.out_features)
    factor = torch.where(sizes > 0, expected * sizes / sums, 1.0)
    second.weight.mul_(factor[:, None, None])
    second.bias.mul_(factor[:, None])
    return BlockClusters(
        number, block, len(tokens), float(sizes.max() / len(tokens)), float(probability.mean())
    )
