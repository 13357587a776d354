"""MiniDisc's λ-tradeoff, which chooses the sparse assistant that should teach the student.

MiniDisc (Zhang et al., arXiv 2205.14570) finds that a student gets the better, the better its
assistant does *and* the smaller it is, and scores a candidate by

    performance + λ · sparsity

with a metric of the task as performance and the share of parameters that were taken away as
sparsity, both shares of one; λ is 0.2. The candidates are the sub-models of one sparsified teacher
between half of it and the student, all distilled in one run, so that nothing is distilled into the
student before the choice.

What differs here: there, the sub-models share their weights and one loss (a "sandwich"), and the
metric is that of the dev part of the one task that everything is distilled on. Here distillation
knows no task. Candidates are students of one run that share the teacher's pass, each with weights
of its own, and performance is exp(-D) of the relation loss D on held-out text: 1 where all
relations are the teacher's.
"""

import math
from collections.abc import Mapping


def tradeoff(performance: float, sparsity: float, weight: float = 0.2) -> float:
    """Scores a candidate by the λ-tradeoff.

    Args:
        performance: share of one.
        sparsity: share of parameters that it has lost.
        weight: λ.
    """
    return performance + weight * sparsity


def relation_performance(loss: float) -> float:
    """Converts a relation loss D to the performance exp(-D), in [0, 1].

    Args:
        loss: KL a row, in nats; what is not finite counts as nothing kept.
    """
    return math.exp(-loss) if math.isfinite(loss) else 0.0


def best_candidate(
    losses: Mapping[str, float], sparsities: Mapping[str, float], weight: float
) -> tuple[str, dict[str, dict[str, float]]]:
    """Chooses the candidate with the best λ-tradeoff; of equal ones, the first.

    Args:
        losses: candidate -> relation loss on held-out text.
        sparsities: candidate -> share of parameters that it has lost.
        weight: λ.

    Returns:
        Its name, and each candidate's ``performance``, ``sparsity`` and ``tradeoff``.
    """
    scores = {}
    for name, loss in losses.items():
        performance, sparsity = relation_performance(loss), sparsities[name]
        scores[name] = {
            "performance": performance,
            "sparsity": sparsity,
            "tradeoff": tradeoff(performance, sparsity, weight),
        }
    return max(scores, key=lambda name: scores[name]["tradeoff"]), scores
