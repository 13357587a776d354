"""Fits the blocks of a student: routers, second maps, and the norms behind them.

Shapes: N tokens of a sample, n of them, W the student's width, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .least_squares import Affine, fit_norm, least_squares, standardised, with_ones

# Of the residual's share in what is wanted, by whose inverse all weights of a block are scaled.
_LEAST_FACTOR = 0.05
# Relative to the weights' standard deviation: enough for copies to part.
_COPY_NOISE = 0.01
_CLUSTERING_ROUNDS = 30
_BALANCING_ROUNDS = 200
_BALANCING_STEP = 0.1
# Standard deviation of a fresh router's logits about their mean over experts: an expert then gets
# half to two thirds of the probability, and tokens can still change theirs.
_ROUTER_SPREAD = 2.0


@dataclass(frozen=True)
class StudentMap:
    """A linear map of a student.

    Attributes:
        linear: plain, or the maps of several experts.
        expert: whose it is; None of a plain one, and of all experts, which are then made alike.
    """

    linear: Any
    expert: int | None = None

    def read(self) -> Affine:
        """Returns the map, of one expert or a plain one."""
        weight, bias = self._parameters()
        return Affine(weight.T, bias)

    def write(self, values: Affine) -> None:
        """Replaces the map; experts that are alike get noise, which lets them part."""
        weight, bias = self._parameters()
        weight.copy_(values.weight.T)
        bias.copy_(values.bias)
        if weight.dim() > values.weight.dim():
            weight += _noise_like(weight)

    def _parameters(self) -> tuple[Tensor, Tensor]:
        weight, bias = self.linear.weight, self.linear.bias
        return (weight, bias) if self.expert is None else (weight[self.expert], bias[self.expert])


@dataclass(frozen=True)
class Part:
    """Tokens of a block, and the second map that they go through.

    Attributes:
        rows: bool [N], which tokens they are.
        read: [n, in], what the map reads of them.
        second: the map.
        probability: of the tokens' experts, [n, 1]; None where the block has none.
    """

    rows: Tensor
    read: Tensor
    second: StudentMap
    probability: Tensor | None = None

    def features(self) -> Tensor:
        """What a linear map without bias makes the block's output of, [n, in + 1]."""
        features = with_ones(self.read)
        return features if self.probability is None else features * self.probability


def _noise_like(weight: Tensor) -> Tensor:
    return _COPY_NOISE * weight.std() * torch.randn(weight.shape).to(weight.device)


def noisy(values: Affine) -> Affine:
    """Returns a map that parts from one it is a copy of."""
    return Affine(values.weight + _noise_like(values.weight), values.bias)


def noisy_beyond(values: Affine, size: int, own_size: int) -> Affine:
    """Returns a map of heads of ``own_size``, with noise for their elements beyond ``size``."""
    beyond = torch.arange(len(values.bias), device=values.bias.device) % own_size >= size
    return Affine(torch.where(beyond, _noise_like(values.weight), values.weight), values.bias)


def fit_block(
    output: Any,
    residual: Tensor,
    parts: Sequence[Part],
    target: Tensor,
    keeps_variance: bool = False,
) -> Tensor:
    """Fits a block's second map, and the LayerNorm behind it, to ``target`` [N, W].

    LayerNorm takes the size of its input away, so what the sum with the residual should be is
    known but for a factor, which is fitted too.

    Args:
        output: the second map's holder.
        residual: [N, W], what the block's output is added to.
        parts: what its maps read.
        target: of the states behind the block.
        keeps_variance: give the result the target's variance, where least squares would shrink
            what is explained in part.

    Returns:
        [N, W], the states behind the block.
    """
    norm = getattr(output, "LayerNorm", None)
    wanted = target if norm is None else standardised(target)
    solved = []
    crossed = squared = 0.0
    for part in parts:
        features, goals = part.features(), (wanted[part.rows], residual[part.rows])
        to_wanted, to_residual = least_squares(features, goals)
        solved.append((part, to_wanted, to_residual))
        left_of_wanted = goals[0] - features @ to_wanted
        left_of_residual = goals[1] - features @ to_residual
        crossed += float((left_of_wanted * left_of_residual).sum())
        squared += float(left_of_residual.square().sum())
    factor = 1.0
    if norm is not None:
        factor = max(crossed / max(squared, 1e-12), _LEAST_FACTOR)
    summed = residual.clone()
    for part, to_wanted, to_residual in solved:
        weights = to_wanted / factor - to_residual
        part.second.write(Affine(weights[:-1], weights[-1]))
        summed[part.rows] += part.features() @ weights
    if norm is None:
        return summed
    fit_norm(norm, summed, target, keeps_variance)
    normalised: Tensor = norm(summed)
    return normalised


def balanced_router(tokens: Tensor, experts: int) -> Affine:
    """Returns a router's map, W → E, that sends tokens [N, W] to clusters of equal size.

    Draws the clusters' first centres from PyTorch's generator. There may be fewer tokens than
    experts: some then get none.
    """
    centred = tokens - tokens.mean(0)
    drawn = torch.randperm(len(tokens))[torch.arange(experts) % len(tokens)]
    centres = centred[drawn.to(tokens.device)]
    for _ in range(_CLUSTERING_ROUNDS):
        nearest = _nearness(centred, centres).argmax(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, centred)
        sizes = torch.bincount(nearest, minlength=experts)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    logits = _nearness(centred, centres)
    scale = _ROUTER_SPREAD / (logits - logits.mean(-1, keepdim=True)).std().clamp_min(1e-6)
    logits = logits * scale
    balance = logits.new_zeros(experts)
    for _ in range(_BALANCING_ROUNDS):
        loads = torch.bincount((logits + balance).argmax(-1), minlength=experts) / len(logits)
        balance -= _BALANCING_STEP * torch.log(loads * experts + 0.01)
    weight = (centres * scale).T
    bias = balance - scale * centres.square().sum(-1) / 2
    return Affine(weight, bias - tokens.mean(0) @ weight)


def _nearness(rows: Tensor, centres: Tensor) -> Tensor:
    """Returns what is greatest of the nearest centre, [N, E], linear in rows."""
    return rows @ centres.T - centres.square().sum(-1) / 2
