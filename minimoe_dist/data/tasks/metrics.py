"""Scores predictions by scikit-learn, SciPy and seqeval.

All are shares of one: accuracy 0.93, F1 0.88, Matthews' correlation 0.52.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .tags import chunk_tags
from .task import Task

_POSITIVE = "1"  # of GLUE's tasks of two classes


def score(task: Task, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """Computes a task's metrics by name, the one that decides first.

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
    measures = {**_METRICS, "f1": _f1_of_positives(task)}
    return {name: measures[name](predictions, references) for name in task.metrics}


_Metric = Callable[[Sequence[Any], Sequence[Any]], float]


def _classification(name: str, **options: Any) -> _Metric:
    def measure(predictions: Sequence[Any], references: Sequence[Any]) -> float:
        from sklearn import metrics

        return float(getattr(metrics, name)(references, predictions, **options))

    return measure


def _f1_of_positives(task: Task) -> _Metric:
    """Measures the F1 of one class, as GLUE does, whatever its number is in the model's order."""
    labels = (*task.labels, *task.unlearnt)
    number = labels.index(_POSITIVE) if _POSITIVE in labels else -1
    # A file may have labels that are neither this one nor the other.
    return _classification("f1_score", labels=[number], average="macro", zero_division=0)


def _correlation(name: str) -> _Metric:
    def measure(predictions: Sequence[Any], references: Sequence[Any]) -> float:
        from scipy import stats

        if len(set(predictions)) < 2 or len(set(references)) < 2:
            return 0.0
        value = getattr(stats, name)(np.asarray(predictions, float), np.asarray(references, float))
        return float(value.statistic) if math.isfinite(value.statistic) else 0.0

    return measure


_METRICS = {
    "accuracy": _classification("accuracy_score"),
    "macro_f1": _classification("f1_score", average="macro", zero_division=0),
    "matthews": _classification("matthews_corrcoef"),
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
}


def _tagging(
    task: Task, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]
) -> dict[str, float]:
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    # The last one is for words that were not seen, where a task has no tag for others.
    names = [*chunk_tags((*task.labels, *task.unlearnt)), "O"]
    predicted = [[names[tag] for tag in sentence] for sentence in predictions]
    expected = [[names[tag] for tag in sentence] for sentence in references]
    measures = {
        "chunk_f1": f1_score,
        "chunk_precision": precision_score,
        "chunk_recall": recall_score,
    }
    values = {
        name: float(measure(expected, predicted, zero_division=0))
        for name, measure in measures.items()
    }
    # Tags of one meaning are still two.
    values["accuracy"] = float(accuracy_score(list(references), list(predictions)))
    return {name: values[name] for name in task.metrics}
