"""Counts what the parts of a step compute: matrix products, moved bytes, launches.

Counts follow what the trainer does. On CPUs batches are padded: teachers and attention compute
padding, students' other layers do not. On GPUs batches come packed, and nothing computes padding.

Shapes: B samples, S positions, T tokens, N = B · S, H, A, I as in `models.compute`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from ..data.row_counts import rows_for
from ..models.submodels import LayerShape, SubModelShape
from .layout import ELEMENT_BYTES
from .passes import Batch
from .sizes import MASKED_SHARE, EncoderSizes


class Product(NamedTuple):
    """Matrix products of one size.

    Attributes:
        operations: operations of all of them, two a multiply-accumulate.
        size: harmonic mean of the three extents of one.
    """

    operations: float
    size: float


def product(rows: float, inner: float, outer: float, count: float = 1.0) -> Product:
    """Returns ``count`` products [rows, inner] · [inner, outer]."""
    if not rows * inner * outer:
        return Product(0.0, 1.0)
    size = 3.0 / (1.0 / rows + 1.0 / inner + 1.0 / outer)
    return Product(2.0 * rows * inner * outer * count, size)


@dataclass(frozen=True)
class Work:
    """The work of one part of a step.

    Attributes:
        dtype: type of its products.
        products: its matrix products.
        moved_bytes: bytes that are read and written, as few as compilers leave.
        launches: launches of operators, or of kernels.
        recorded: whether these are played as one CUDA graph.
    """

    dtype: str
    products: tuple[Product, ...] = ()
    moved_bytes: float = 0.0
    launches: float = 0.0
    recorded: bool = False

    @property
    def operations(self) -> float:
        """The operations of all products."""
        return sum(product.operations for product in self.products)

    def __add__(self, other: "Work") -> "Work":
        """Returns the sum of two works of one type."""
        return replace(
            self,
            products=self.products + other.products,
            moved_bytes=self.moved_bytes + other.moved_bytes,
            launches=self.launches + other.launches,
        )

    def times(self, count: float) -> "Work":
        """Returns the work of ``count`` micro-batches."""
        return replace(
            self,
            products=tuple(
                Product(count * product.operations, product.size) for product in self.products
            ),
            moved_bytes=count * self.moved_bytes,
            launches=count * self.launches,
        )


class Rows(NamedTuple):
    """The numbers of rows and pairs that a pass computes of a micro-batch.

    Attributes:
        rows: rows of its products.
        pairs: pairs of positions of which a head computes scores.
        length: positions of a sample, on average.
    """

    rows: float
    pairs: float
    length: float

    def attention(self, head_size: float, heads: float, count: float) -> Product:
        """Returns ``count`` products of all heads with scores on one side."""
        size = 3.0 / (2.0 / self.length + 1.0 / head_size) if heads else 1.0
        return Product(2.0 * self.pairs * head_size * heads * count, size)


def rows_of(batch: Batch, drops_padding: bool) -> Rows:
    """Counts the rows of a pass that drops padding, outside of attention, or computes it."""
    if not batch.packed:
        rows = batch.tokens if drops_padding else batch.positions
        return Rows(rows, batch.positions * batch.length, batch.length)
    mean = batch.tokens / batch.samples
    return Rows(rows_for(round(batch.tokens), batch.positions), batch.tokens * mean, mean)


class _PassCosts(NamedTuple):
    """The costs of a pass beside its products.

    Attributes:
        ends, layer, experts: launches at its ends, of a plain layer, and of a block of experts
            besides: half of its operators that are no views, as compilers fuse the others away.
        numbers, scores, routed: how often it reads or writes a number of a layer's rows, a score of
            attention, and a number on its way to experts and back, where compilers leave few.
    """

    ends: int
    layer: int
    experts: int
    numbers: int
    scores: int
    routed: int


_TEACHER, _FORWARD = _PassCosts(6, 5, 0, 18, 1, 0), _PassCosts(44, 7, 33, 18, 2, 4)
_BACKWARD = _PassCosts(14, 17, 13, 42, 4, 10)
_UPDATE_LAUNCHES = 38
# How often a parameter's gradient is touched backward, and the parameter in an update; how often a
# score of the objective is.
_GRADIENT, _UPDATED, _COMPARED = 3, 10, 3


def teacher_work(sizes: EncoderSizes, batch: Batch, dtype: str) -> Work:
    """Counts the work of a teacher's forward pass up to its signals."""
    width = max(2, ELEMENT_BYTES[dtype])  # 8-bit products leave 16 bits
    rows = rows_of(batch, drops_padding=False)
    return _pass(sizes, sizes.shape, rows, dtype, _TEACHER, width)


def student_work(
    sizes: EncoderSizes, batch: Batch, dtype: str, expert_parallel_size: int = 1
) -> tuple[Work, Work]:
    """Counts the work of a student's forward pass without its objective, and backward."""
    rows, width = rows_of(batch, drops_padding=True), ELEMENT_BYTES[dtype]
    forward, backward = Work(dtype), Work(dtype)
    for shape in sizes.passes or (sizes.shape,):
        arguments = (sizes, shape, rows, dtype)
        forward += _pass(*arguments, _FORWARD, width, expert_parallel_size)
        backward_pass = _pass(*arguments, _BACKWARD, width, expert_parallel_size)
        backward += replace(backward_pass, products=backward_pass.times(2).products)
    shared, experts = sizes.parameters()
    gradients = _GRADIENT * width * (shared + experts / expert_parallel_size)
    return forward, backward + Work(dtype, moved_bytes=gradients)


def relation_work(
    student: EncoderSizes,
    teacher: EncoderSizes | None,
    heads: int,
    batch: Batch,
    dtype: str = "float32",
) -> Work:
    """Counts the work of the objective against a teacher, with its gradient.

    Args:
        student: the student whose signals or states are compared.
        teacher: the teacher; None where none runs.
        heads: number of relation heads.
        batch: the micro-batch.
        dtype: type of the products.
    """
    if teacher is None:
        return Work(dtype)
    length = batch.tokens / batch.samples if batch.packed else batch.length
    rows = Rows(batch.tokens, batch.tokens * length, length)
    passes, width = max(1, len(student.passes)), _COMPARED * ELEMENT_BYTES[dtype]
    if not student.gives_signals:  # TinyBERT's: states of the teacher's width, and all scores
        states = batch.tokens * teacher.width * (student.whole_layers + 1)
        scores = rows.pairs * sum(layer.heads for layer in student.shape.layers)
        return Work(dtype, moved_bytes=width * (states + scores))
    products = (
        rows.attention(teacher.width / heads, heads, 3 * passes),
        rows.attention(student.width / heads, heads, 9 * passes),
    )
    scores = 3.0 * heads * rows.pairs * passes
    return Work(dtype, products, width * (scores + batch.tokens * student.mapped_to))


def update_work(parameters: float) -> Work:
    """Counts the work of the optimizer's update of ``parameters`` on a rank, in float32."""
    return Work("float32", (), 4 * _UPDATED * parameters, _UPDATE_LAUNCHES)


def _pass(
    sizes: EncoderSizes,
    shape: SubModelShape,
    rows: Rows,
    dtype: str,
    costs: _PassCosts,
    width: int,
    parallel: int = 1,
) -> Work:
    """Counts the work of a pass, with the products of a forward one."""
    layers = [layer for layer in shape.layers if not layer.missing]
    whole = layers[: sizes.whole_layers]
    products: list[Product] = []
    for layer in whole:
        products += _layer(sizes, shape, layer, rows, parallel)
    mixtures = sum(count > 1 for count in sizes.experts)
    numbers = rows.rows * shape.hidden
    moved = costs.numbers * numbers * (len(whole) + 1)
    moved += costs.scores * rows.pairs * sum(layer.heads for layer in whole)
    moved += costs.routed * numbers * len(whole) * mixtures
    if sizes.masked_lm:
        moved += costs.numbers * MASKED_SHARE * rows.rows * sizes.vocabulary
    launches = costs.ends + len(whole) * (costs.layer + mixtures * costs.experts)
    return Work(dtype, (*products, *_top(sizes, rows)), width * moved, launches)


def _layer(
    sizes: EncoderSizes, shape: SubModelShape, layer: LayerShape, rows: Rows, parallel: int
) -> list[Product]:
    hidden, width = shape.hidden, layer.heads * sizes.head_size
    attention, feed_forward = sizes.experts
    routers = [product(rows.rows, hidden, count) for count in sizes.experts if count > 1]
    return [
        _of_experts(rows.rows, hidden, 3 * width, attention, parallel),
        rows.attention(sizes.head_size, layer.heads, 2),
        _of_experts(rows.rows, width, hidden, attention, parallel),
        _of_experts(rows.rows, hidden, layer.neurons, feed_forward, parallel),
        _of_experts(rows.rows, layer.neurons, hidden, feed_forward, parallel),
        *routers,
    ]


def _of_experts(rows: float, inner: float, outer: float, count: int, parallel: int) -> Product:
    """Returns a rank's products: rows are shared out evenly among experts, its peers' included."""
    if count == 1:
        return product(rows, inner, outer)
    return product(rows * parallel / count, inner, outer, count / parallel)


def _top(sizes: EncoderSizes, rows: Rows) -> list[Product]:
    """Lists the products of the maps of signals, and of what else stands on the encoder."""
    width, products = sizes.width, []
    if sizes.gives_signals:
        products.append(product(rows.rows, width, 3 * width))
    if sizes.mapped_to:
        products.append(product(rows.rows, width, sizes.mapped_to, sizes.mapped_states))
    if sizes.masked_lm:
        masked = MASKED_SHARE * rows.rows
        products += [product(masked, width, width), product(masked, width, sizes.vocabulary)]
    return products
