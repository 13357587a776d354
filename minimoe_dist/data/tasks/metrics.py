"""Scores of predictions, from scikit-learn, SciPy and seqeval.

All are shares of one: accuracy 0.93, F1 0.88, Matthews' correlation 0.52.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .task import Task


def score(task: Task, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """A task's metrics by name, the one that decides first.

    Args:
        task: with its labels.
        predictions: of each sample, its label's number, its value, or its words' label numbers.
        references: the same, as :class:`.task.TaskData` has them.

    Returns:
        Metric -> value. A correlation of constant predictions is 0, as is F1 where nothing is
        found.
    """
    assert len(predictions) == len(references), "a prediction for every sample"
    if task.kind == "tagging":
        return _tagging(task, predictions, references)
    return {name: _METRICS[name](predictions, references) for name in task.metrics}


def _accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references, predictions))


def _f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Of the class with number 1, as GLUE has it."""
    from sklearn.metrics import f1_score

    # By its number, since a file may have labels that are neither 0 nor 1.
    return float(f1_score(references, predictions, labels=[1], average="macro", zero_division=0))


def _macro_f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="macro", zero_division=0))


def _matthews(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


def _correlation(name: str) -> Callable[[Sequence[Any], Sequence[Any]], float]:
    def measure(predictions: Sequence[Any], references: Sequence[Any]) -> float:
        from scipy import stats

        if len(set(predictions)) < 2 or len(set(references)) < 2:
            return 0.0
        value = getattr(stats, name)(np.asarray(predictions, float), np.asarray(references, float))
        return float(value.statistic) if math.isfinite(value.statistic) else 0.0

    return measure


_METRICS: dict[str, Callable[[Sequence[Any], Sequence[Any]], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
}


def _tagging(
    task: Task, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]
) -> dict[str, float]:
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    # seqeval knows the inner tags of a chunk as I, also where a file calls them M.
    tags = (*task.labels, *task.unlearnt)
    names = [f"I-{tag[2:]}" if tag.startswith("M-") else tag for tag in tags]
    found = [[names[tag] for tag in sentence] for sentence in predictions]
    wanted = [[names[tag] for tag in sentence] for sentence in references]
    measures = {
        "chunk_f1": f1_score,
        "chunk_precision": precision_score,
        "chunk_recall": recall_score,
    }
    with warnings.catch_warnings():
        # Tags such as "B-" or "DOC" make it warn at every evaluation.
        warnings.simplefilter("ignore")
        values = {
            name: float(measure(wanted, found, zero_division=0))
            for name, measure in measures.items()
        }
        values["accuracy"] = float(accuracy_score(wanted, found))
    return {name: values[name] for name in task.metrics}
