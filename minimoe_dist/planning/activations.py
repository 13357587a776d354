"""Tensors of a pass: what a student keeps for its backward pass, and what a teacher holds.

The student's blocks are walked forward and backward as autograd does: forward a block leaves what
its gradient needs, backward it frees that and leaves gradients of its weights. Sizes are in bytes;
what is of the order of a few numbers a token (keys, routes, norms' statistics) is left out.

Shapes: B samples, S positions, T tokens of the batch without padding, N = B · S, H, A, I as in
`models.compute`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..data.row_counts import MASKED_SHARE
from ..models.submodels import LayerShape, SubModelShape
from .amounts import Amount, Moment, tensors
from .sizes import EncoderSizes

_CPU_TILE, _GPU_TILE = 2**19, 2**24  # elements, as objectives.relations has them
_HASH = 4  # an element's hash; there are three while one is made
_MASTER = 4


@dataclass(frozen=True)
class Batch:
    """What passes read.

    Attributes:
        samples: B.
        length: S.
        filled: T / N, the share of positions that are no padding.
    """

    samples: int
    length: int
    filled: float = 1.0

    @property
    def positions(self) -> int:
        """N."""
        return self.samples * self.length

    @property
    def tokens(self) -> float:
        """T."""
        return self.positions * self.filled


@dataclass(frozen=True)
class Block:
    """A part of a pass.

    Attributes:
        saved: kept until its backward has run.
        forward: beside what earlier blocks saved, while it runs forward.
        backward: beside what is saved, while it runs backward.
        gradients: of its weights.
    """

    saved: Amount
    forward: Amount
    backward: Amount
    gradients: Amount


@dataclass(frozen=True)
class Student:
    """A student as a rank trains it.

    Attributes:
        sizes: of the student.
        element: bytes of a number in its pass.
        local_experts: share of a block's experts that the rank holds.
        tile: elements of a tile of the relation loss.
    """

    sizes: EncoderSizes
    element: int
    local_experts: float
    tile: int

    def moments(self, batch: Batch, keeps_gradients: bool) -> Iterator[Moment]:
        """What a pass over a micro-batch holds, block by block.

        Args:
            batch: the micro-batch.
            keeps_gradients: whether gradients stay where they were made until the pass ends.
        """
        sizes = self.sizes
        blocks = [
            block
            for shape in sizes.passes or (sizes.shape,)
            for block in self._blocks(shape, batch)
        ]
        saved = gradients = Amount()
        for block in blocks:
            yield {"student pass": saved + block.forward}
            saved += block.saved
        yield {"student pass": saved, "relation loss": self._relations(batch)}
        for block in reversed(blocks):
            made = gradients + block.gradients
            yield {"student pass": saved + block.backward, "gradients": made}
            gradients = made if keeps_gradients else gradients
            saved -= block.saved

    def _relations(self, batch: Batch) -> Amount:
        """Signals, their float32 gradients, these scaled, and three tiles."""
        if not self.sizes.gives_signals:
            return Amount()
        numbers = batch.positions * self.sizes.width
        passes = max(1, len(self.sizes.passes))
        signals = [numbers * self.element, numbers * _MASTER, numbers * _MASTER] * 3 * passes
        return tensors(*signals, 3 * self.tile * _MASTER)

    def _blocks(self, shape: SubModelShape, batch: Batch) -> Iterator[Block]:
        sizes, row = self.sizes, batch.tokens * shape.hidden * self.element
        hashes = self._hashes(batch.tokens * shape.hidden)
        tables = tensors(
            *(
                rows * shape.hidden * self.element
                for rows in (sizes.vocabulary, sizes.positions, sizes.types)
            )
        )
        masks = [row] * sizes.dropout
        # The tables' gradients are as large as they are, whatever the batch.
        yield Block(tensors(row, *masks), hashes, tensors(row, row), tables)
        there = [layer for layer in shape.layers if not layer.missing]
        for layer in there[: sizes.whole_layers]:
            yield self._attention(layer, shape.hidden, batch)
            yield self._feed_forward(layer, shape.hidden, batch)
        yield self._top(len(there) > sizes.whole_layers, batch)

    def _attention(self, layer: LayerShape, hidden: int, batch: Batch) -> Block:
        sizes, element = self.sizes, self.element
        width = layer.heads * sizes.head_size
        row, context = batch.tokens * hidden * element, batch.tokens * width * element
        head = batch.positions * width * element
        scores = batch.samples * layer.heads * batch.length**2
        # What its maps read; queries, keys, values by head; context; mask; the LayerNorm's input.
        saved = tensors(row, head, head, head, context, row, *[row] * sizes.dropout)
        forward, backward = saved + tensors(3 * head, 3 * head), tensors(head, head, head)
        if sizes.dropout:
            probabilities = tensors(scores * element)
            # Probabilities, their mask, their product.
            saved += probabilities + probabilities + probabilities
            forward += probabilities + probabilities + self._hashes(scores)
            backward += probabilities
        if sizes.experts[0] > 1:
            saved += self._mixture(batch, hidden)
        return Block(saved, forward, backward, self._gradients(4, hidden, width, 0))

    def _feed_forward(self, layer: LayerShape, hidden: int, batch: Batch) -> Block:
        row = batch.tokens * hidden * self.element
        inner = batch.tokens * layer.neurons * self.element
        # What it reads; before and behind the activation; mask; the LayerNorm's input.
        saved = tensors(row, inner, inner, row, *[row] * self.sizes.dropout)
        forward = saved + tensors(row) + self._hashes(batch.tokens * hidden)
        if self.sizes.experts[1] > 1:
            saved += self._mixture(batch, hidden)
        gradients = self._gradients(2, hidden, layer.neurons, 1)
        return Block(saved, forward, tensors(inner, row, row), gradients)

    def _hashes(self, elements: float) -> Amount:
        return tensors(*[elements * _HASH] * 3) if self.sizes.dropout else Amount()

    def _mixture(self, batch: Batch, hidden: int) -> Amount:
        """Sorted rows, the unscaled output; a router's float32 copy of narrower tokens."""
        numbers = batch.tokens * hidden
        copies = [numbers * _MASTER] if self.element < _MASTER else []
        return tensors(numbers * self.element, numbers * self.element, *copies)

    def _gradients(self, maps: int, hidden: int, inner: int, block: int) -> Amount:
        count = self.sizes.experts[block]
        local = count * self.local_experts if count > 1 else 1
        return tensors(*[hidden * inner * local * self.element] * maps)

    def _top(self, maps_of_last_layer: bool, batch: Batch) -> Block:
        """What stands behind whole layers: maps of signals, of states, a prediction head."""
        sizes, hidden = self.sizes, self.sizes.shape.hidden
        row = batch.positions * sizes.width * self.element
        saved, backward = tensors(row), tensors(row, row, row)
        gradients = Amount()
        if sizes.mapped_to:
            wide = batch.positions * sizes.mapped_to * _MASTER
            saved += tensors(row)
            backward += tensors(wide, wide, wide, wide)
            gradients += tensors(sizes.width * sizes.mapped_to * self.element)
        if sizes.masked_lm:
            logits = MASKED_SHARE * batch.tokens * sizes.vocabulary * _MASTER
            backward += tensors(logits, logits)
        if maps_of_last_layer or sizes.relation_maps:
            width = sizes.shape.layers[-1].heads * sizes.head_size
            gradients += tensors(*[hidden * width * self.element] * 3)
        return Block(saved, saved + tensors(row, row, row), backward, gradients)


def tile_elements(on_gpu: bool) -> int:
    """Of a tile of the relation loss."""
    return _GPU_TILE if on_gpu else _CPU_TILE


def teacher_pass(sizes: EncoderSizes, batch: Batch, element: int, parts: int = 1) -> Amount:
    """A teacher's forward pass at its peak: it keeps nothing between its layers.

    Args:
        sizes: of the teacher.
        batch: one micro-batch.
        element: bytes of a number.
        parts: ranks that heads and neurons are shared out to.
    """
    row = batch.positions * sizes.width * element
    widest = max((layer.neurons for layer in sizes.shape.layers), default=0)
    inner = batch.positions * widest * element / parts
    # Feed-forward: residual, input, both sides of the activation. Attention: three more rows.
    in_attention = tensors(row, row, row, *[row / parts] * 4)
    in_feed_forward = tensors(row, row, inner, inner)
    return max(in_attention, in_feed_forward, key=lambda amount: amount.total)


def signals_of(sizes: EncoderSizes, batch: Batch, element: int) -> Amount:
    """What the teacher hands to the students of a micro-batch."""
    if not sizes.gives_signals:
        return Amount()
    return tensors(*[batch.positions * sizes.width * element] * 3)
