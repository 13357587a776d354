"""Models the speed of matrix products by their size, and names the parts of a step."""

from collections.abc import Iterable

from pydantic import Field

from ..config.schema import Section

# As a step's clock names them; the objective with its gradients belongs to the forward pass, and
# what belongs to no pass to the update.
TEACHER, FORWARD, BACKWARD = "teacher", "student forward", "student backward"
UPDATE = "update"
PARTS = (TEACHER, FORWARD, BACKWARD, UPDATE)


class ProductRate(Section):
    """The rate of matrix products of one type: ``tflops`` · size / (size + ``half_size``).

    The size of a product is the harmonic mean of its three extents: operations a byte that it
    moves, but for a factor.
    """

    tflops: float = Field(gt=0, description="of very large ones, 10^12 operations a second")
    half_size: float = Field(ge=0, description="size of products that reach half of that")

    def of(self, size: float) -> float:
        """Returns the operations a second of products of a size."""
        return 1e12 * self.tflops * size / (size + self.half_size)


def fit_rate(measured: Iterable[tuple[float, float]]) -> ProductRate:
    """Fits a rate by size to measured ones, by least squares of relative errors.

    The inverse of the rate is linear in the inverse of the size.

    Args:
        measured: (size, operations a second) of some products.
    """
    import numpy as np
    from scipy.optimize import nnls

    points = list(measured)
    rows = np.array([[rate, rate / size] for size, rate in points])
    (slowness, loss), _ = nnls(rows, np.ones(len(points)))
    if slowness <= 0:  # all of them far from the peak: the fastest is the nearest
        best = max(rate for _, rate in points)
        return ProductRate(tflops=rounded(best / 1e12), half_size=0.0)
    return ProductRate(tflops=rounded(1e-12 / slowness), half_size=rounded(loss / slowness))


def rounded(value: float) -> float:
    """Rounds a measurement to the four digits that a file should say of it."""
    return float(f"{value:.4g}")
