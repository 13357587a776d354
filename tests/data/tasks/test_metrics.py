"""Metrics against values worked out by hand."""

import math
from dataclasses import replace

import pytest

from minimoe_dist.data.tasks import Task, score, task_of

_WANTED, _FOUND = [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1, 0, 1]  # 3 hits, 1 false, 1 missed


def test_f1_is_of_the_class_with_number_one() -> None:
    assert score(task_of("mrpc"), _FOUND, _WANTED) == {"f1": 0.75, "accuracy": 0.75}


def test_f1_is_of_the_same_class_in_a_models_own_order() -> None:
    task = replace(task_of("mrpc"), labels=("1", "0"))
    # 3 hits, 1 false, 1 missed of class "1"; of class "0" these would be 2, 1 and 1.
    wanted, found = ([1 - number for number in numbers] for numbers in (_WANTED, _FOUND))
    wanted, found = [*wanted[:-1], 1], [*found[:-1], 1]
    assert score(task, found, wanted)["f1"] == pytest.approx(2 / 3)


def test_f1_of_a_class_that_neither_model_nor_file_has_is_zero() -> None:
    assert score(replace(task_of("mrpc"), labels=("0", "2")), [0, 1], [0, 1])["f1"] == 0


def test_matthews_correlation() -> None:
    # (TP·TN − FP·FN) / √((TP+FP)(TP+FN)(TN+FP)(TN+FN))
    wanted = (3 * 3 - 1 * 1) / math.sqrt(4 * 4 * 4 * 4)
    assert score(task_of("cola"), _FOUND, _WANTED)["matthews"] == pytest.approx(wanted)


def test_correlations_of_values() -> None:
    scores = score(task_of("stsb"), [1.0, 4.0, 9.0, 8.0], [1.0, 2.0, 3.0, 4.0])
    # Ranks 1 2 4 3 against 1 2 3 4: 1 − 6·(1 + 1) / (4·15).
    assert scores["spearman"] == pytest.approx(0.8)
    # Deviations −4.5 −1.5 3.5 2.5 and −1.5 −0.5 0.5 1.5: 13 / √(41 · 5).
    assert scores["pearson"] == pytest.approx(13 / math.sqrt(41 * 5))


def test_a_constant_prediction_has_no_correlation() -> None:
    assert score(task_of("stsb"), [1.0, 1.0], [1.0, 2.0]) == {"spearman": 0.0, "pearson": 0.0}


def test_macro_f1_averages_over_classes() -> None:
    task = Task("t", "classification", ("macro_f1",), ("a", "b", "c"))
    # Class F1s: 1, 2/3 and 0.
    assert score(task, [0, 1, 1], [0, 1, 2])["macro_f1"] == pytest.approx((1 + 2 / 3) / 3)


def test_chunks_count_only_when_whole() -> None:
    task = Task("ner", "tagging", ("chunk_f1", "chunk_precision", "chunk_recall", "accuracy"),
                ("O", "B-A", "I-A", "B-B"))  # fmt: skip
    wanted, found = [[1, 2, 0, 3], [0, 1]], [[1, 0, 0, 3], [0, 1]]
    # Chunks: A of two words (missed: cut short), B and A found.
    values = score(task, found, wanted)
    assert values["chunk_precision"] == values["chunk_recall"] == pytest.approx(2 / 3)
    assert values["accuracy"] == pytest.approx(5 / 6)


def test_inner_tags_called_m_belong_to_their_chunk() -> None:
    task = Task("ner", "tagging", ("chunk_f1",), ("O", "B-L", "M-L", "E-L", "S-L"))
    assert score(task, [[1, 2, 3, 4]], [[1, 2, 3, 4]]) == {"chunk_f1": 1.0}
    # One chunk of three characters against two chunks: nothing agrees but the single one.
    assert score(task, [[1, 3, 4, 4]], [[1, 2, 3, 4]])["chunk_f1"] == pytest.approx(2 / 5)


# Two chunks, of which the first is found: precision 1, recall 1/2.
@pytest.mark.parametrize(
    ("tags", "wanted", "found"),
    [
        ("O U-PER", [1, 1, 0], [1, 0, 0]),
        ("O W-PER", [1, 1, 0], [1, 0, 0]),
        ("O B-PER I-PER L-PER U-PER", [1, 2, 3, 4], [1, 2, 3, 0]),
        ("O PER-B PER-I", [1, 2, 1, 2], [1, 2, 0, 0]),
        ("O PER_B PER_I", [1, 2, 1, 2], [1, 2, 0, 0]),
        ("O B_PER I_PER", [1, 2, 1, 2], [1, 2, 0, 0]),
        ("o b-per i-per", [1, 2, 1, 2], [1, 2, 0, 0]),
        ("O B M E S", [1, 2, 3, 4], [1, 2, 3, 0]),
        ("O LOC DOC", [1, 1, 2], [1, 1, 0]),
        ("O B-PER I-PER sent1", [1, 2, 1, 2], [1, 2, 0, 0]),
    ],
)
def test_chunks_are_those_of_the_tags_form(tags: str, wanted: list[int], found: list[int]) -> None:
    task = Task("ner", "tagging", ("chunk_f1", "chunk_precision"), tuple(tags.split()))
    values = score(task, [found], [wanted])
    assert values == {"chunk_f1": pytest.approx(2 / 3), "chunk_precision": 1.0}


def test_types_of_like_names_are_two() -> None:
    task = Task("ner", "tagging", ("chunk_f1",), ("O", "LOC", "DOC"))
    assert score(task, [[1, 0, 2]], [[2, 0, 2]])["chunk_f1"] == pytest.approx(1 / 2)


def test_a_word_that_was_not_seen_has_no_tag_where_a_task_has_none_for_others() -> None:
    task = Task("ner", "tagging", ("chunk_f1", "accuracy"), ("B", "E", "S"))
    values = score(task, [[2, 0, 1, -1]], [[2, 0, 1, 2]])
    assert values == {"chunk_f1": pytest.approx(0.8), "accuracy": 0.75}
