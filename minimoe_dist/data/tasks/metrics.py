"""Scores predictions by scikit-learn, SciPy and seqeval.

All are shares of one: accuracy 0.93, F1 0.88, Matthews' correlation 0.52.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .task import Task


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
    return {name: _METRICS[name](predictions, references) for name in task.metrics}


_Metric = Callable[[Sequence[Any], Sequence[Any]], float]


def _classification(name: str, **options: Any) -> _Metric:
    def measure(predictions: Sequence[Any], references: Sequence[Any]) -> float:
        from sklearn import metrics

        return float(getattr(metrics, name)(references, predictions, **options))

    return measure


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
    # GLUE's is that of the class with number 1; a file may have labels that are neither 0 nor 1.
    "f1": _classification("f1_score", labels=[1], average="macro", zero_division=0),
    "macro_f1": _classification("f1_score", average="macro", zero_division=0),
    "matthews": _classification("matthews_corrcoef"),
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
    predicted = [[names[tag] for tag in sentence] for sentence in predictions]
    expected = [[names[tag] for tag in sentence] for sentence in references]
    measures = {
        "chunk_f1": f1_score,
        "chunk_precision": precision_score,
        "chunk_recall": recall_score,
    }
    with warnings.catch_warnings():
        # Tags such as "B-" or "DOC" make it warn at every evaluation.
        warnings.simplefilter("ignore")
        values = {
            name: float(measure(expected, predicted, zero_division=0))
            for name, measure in measures.items()
        }
        values["accuracy"] = float(accuracy_score(expected, predicted))
    return {name: values[name] for name in task.metrics}
