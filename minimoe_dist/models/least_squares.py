"""Linear maps between hidden spaces, fitted in closed form: ridge regression, principal components.

Shapes: N rows of a sample, W a student's width, D a head's size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# Relative to the mean eigenvalue; far below what text's own directions have.
_RIDGE = 1e-3
_TINY_RIDGE = 1e-6


@dataclass
class Moments:
    """First and second moments of rows [N, C], gathered batch by batch in float64.

    Attributes:
        count: N.
        total: [C], sum of the rows; 0 before the first.
        products: [C, C], sum of their outer products.
    """

    count: int = 0
    total: Tensor | float = 0.0
    products: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        """Counts rows [n, C] in."""
        rows = rows.double()
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.products = self.products + rows.T @ rows

    @property
    def mean(self) -> Tensor:
        """The rows' mean, float64 [C]."""
        assert isinstance(self.total, Tensor)
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """The rows' covariance, float64 [C, C]."""
        assert isinstance(self.products, Tensor)
        return self.products / self.count - torch.outer(self.mean, self.mean)


@dataclass(frozen=True)
class Affine:
    """An affine map of rows: [N, in] -> rows @ ``weight`` [in, out] + ``bias`` [out], float32."""

    weight: Tensor
    bias: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.addmm(self.bias, rows, self.weight)

    def then(self, other: "Affine") -> "Affine":
        """Returns the map that applies this one, then another."""
        return Affine(self.weight @ other.weight, self.bias @ other.weight + other.bias)

    def of(self, columns: Tensor) -> "Affine":
        """Returns the map to some of the outputs, int64 [k]."""
        return Affine(self.weight[:, columns], self.bias[columns])


def with_ones(rows: Tensor) -> Tensor:
    """Returns rows [N, C] with a 1 behind each, which a linear map makes its bias of."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def least_squares(features: Tensor, targets: Sequence[Tensor]) -> list[Tensor]:
    """Solves features @ x ≈ target for each target by ridge regression, in float64.

    Args:
        features: [N, C]; the last is a bias's, whose penalty is next to nothing.
        targets: [N, out] each.

    Returns:
        [C, out] each, float32.
    """
    features = features.double()
    gram = features.T @ features
    penalty = torch.full_like(gram.diagonal(), _RIDGE * float(gram.diagonal()[:-1].mean()))
    penalty[-1] = _TINY_RIDGE * float(gram[-1, -1])
    gram.diagonal().add_(penalty + 1e-12)
    wanted = torch.cat([features.T @ target.double() for target in targets], dim=1)
    found = torch.linalg.solve(gram, wanted).float()
    return list(found.split([target.shape[1] for target in targets], dim=1))


def ridge(rows: Tensor, target: Tensor) -> Affine:
    """Fits rows [N, in] -> target [N, out]; means are fitted without penalty."""
    mean, target_mean = rows.mean(0).double(), target.mean(0).double()
    centred = rows.double() - mean
    gram = centred.T @ centred
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + 1e-12)
    weight = torch.linalg.solve(gram, centred.T @ (target.double() - target_mean))
    return Affine(weight.float(), (target_mean - mean @ weight).float())


def way_back(moments: Moments, space: Tensor) -> Affine:
    """Returns what is nearest to a teacher's rows, of these in the student's space: W → H."""
    covariance = moments.covariance
    inner = space.T @ covariance @ space
    inner.diagonal().add_(_TINY_RIDGE * inner.diagonal().mean() + 1e-12)
    weight = torch.linalg.solve(inner, space.T @ covariance)
    return Affine(weight.float(), (moments.mean - moments.mean @ space @ weight).float())


def standardised(rows: Tensor) -> Tensor:
    """Returns rows as LayerNorm would give them, before it scales: what is left to reach."""
    scaled = (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-6)
    return functional.layer_norm(scaled, list(scaled.shape[1:]))


def fit_norm(norm: nn.LayerNorm, rows: Tensor, target: Tensor, keeps_variance: bool) -> None:
    """Fits a LayerNorm's weight and bias so that it makes ``target`` of ``rows``, [N, W].

    Args:
        norm: changed in place.
        rows: what it reads.
        target: what it should give.
        keeps_variance: give each unit the target's variance, where least squares would shrink what
            is explained in part.
    """
    normalised = functional.layer_norm(rows, list(rows.shape[1:]), eps=norm.eps)
    mean, target_mean = normalised.mean(0), target.mean(0)
    spread = normalised.std(0, correction=0).clamp_min(1e-6)
    if keeps_variance:
        weight = target.std(0, correction=0) / spread
    else:
        weight = ((normalised - mean) * (target - target_mean)).mean(0) / spread.square()
    norm.weight.copy_(weight)
    norm.bias.copy_(target_mean - weight * mean)


def explained(rows: Tensor, target: Tensor) -> float:
    """Returns the share of the variance of ``target`` [N, C] that rows explain; it may be < 0."""
    left, whole = (target - rows).square().sum(), (target - target.mean(0)).square().sum()
    return 1.0 - float(left / whole.clamp_min(1e-12))


def second_moment_factor(rows: Tensor) -> Tensor:
    """Returns L with L Lᵀ the second moments of rows [N, C], float64."""
    moments = rows.T @ rows / len(rows)
    moments.diagonal().add_(_TINY_RIDGE * moments.diagonal().mean() + 1e-12)
    return torch.linalg.cholesky(moments)


def narrow_scores(
    maps: tuple[Affine, Affine], factor: Tensor, size: int, divisor: float = 1.0
) -> tuple[Affine, Affine]:
    """Narrows a head of attention to ``size``: its scores are the nearest of that rank.

    Args:
        maps: to its queries and keys, W → D each.
        factor: [W + 1, W + 1], see :func:`second_moment_factor`, of what both read and a 1.
        size: of the new head; more than D leaves zeros.
        divisor: by whose root scores are divided beside D's.
    """
    whole = [torch.cat([each.weight, each.bias[None]]).double() for each in maps]
    old_size = whole[0].shape[1]
    left, values, right = torch.linalg.svd(factor.T @ whole[0] @ whole[1].T @ factor)
    kept = min(size, old_size)
    # Scores are divided by the root of the size.
    root = values[:kept].sqrt() * (size / (old_size * divisor)) ** 0.25
    found = []
    for vectors in (left[:, :kept], right[:kept].T):
        wide = torch.linalg.solve_triangular(factor.T, vectors * root, upper=True)
        wide = functional.pad(wide, (0, size - kept)).float()
        found.append(Affine(wide[:-1], wide[-1]))
    return found[0], found[1]


def narrow(wide: Affine, read: Tensor, size: int, centred: bool) -> Affine:
    """Narrows a map W → D to its principal components on ``read``; more than D leaves zeros."""
    rows = wide(read).double()
    if centred:
        rows = rows - rows.mean(0)
    kept = min(size, rows.shape[1])
    directions = torch.linalg.eigh(rows.T @ rows)[1].flip(1)[:, :kept].float()
    directions = functional.pad(directions, (0, size - kept))
    return Affine(wide.weight @ directions, wide.bias @ directions)


def side_by_side(maps: Sequence[Affine]) -> Affine:
    """Returns the map whose outputs are those of several, side by side."""
    return Affine(
        torch.cat([each.weight for each in maps], 1), torch.cat([each.bias for each in maps])
    )


def over(old: Affine, new: Affine) -> Affine:
    """Returns ``old`` with its first outputs replaced by ``new``'s."""
    count = len(new.bias)
    return Affine(
        torch.cat([new.weight, old.weight[:, count:]], 1), torch.cat([new.bias, old.bias[count:]])
    )
