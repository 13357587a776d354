"""GLUE's files with their quirks."""

from pathlib import Path

import pytest

from minimoe_dist.data.tasks import open_task, score
from tests.data.tasks.files import write_table

_MNLI = ["index", "promptID", "pairID", "genre", "p1", "p2", "s1", "s2", "sentence1", "sentence2"]


def test_cola_has_no_header_and_its_label_in_the_second_column(tmp_path: Path) -> None:
    write_table(tmp_path / "CoLA" / "dev.tsv", [["gj04", "1", "", "One."], ["gj04", "0", "*", "B"]])
    data = open_task("cola", tmp_path, "dev")
    assert (data.texts, data.labels) == ([("One.",), ("B",)], [1, 0])


def test_quotes_are_text(tmp_path: Path) -> None:
    write_table(tmp_path / "train.tsv", [["sentence", "label"], ['"so good', "1"], ['b" c', "0"]])
    assert open_task("sst2", tmp_path, "train").texts == [('"so good',), ('b" c',)]


def test_sts_b_finds_its_columns_by_name(tmp_path: Path) -> None:
    header = ["index", "genre", "filename", "year", "old_index", "source1", "source2"]
    rows = [[*header, "sentence1", "sentence2", "score"], [*"0123456", "a b", "c", "3.800"]]
    write_table(tmp_path / "STS-B" / "train.tsv", rows)
    data = open_task("stsb", tmp_path, "train")
    assert (data.texts, data.labels, data.task.labels) == ([("a b", "c")], [3.8], ())


def test_qqp_leaves_out_and_counts_rows_with_too_few_columns(tmp_path: Path) -> None:
    header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    path = write_table(tmp_path / "train.tsv", [header, [*"123", "a", "b", "1"], ["4", "5 c"]])
    data = open_task("qqp", tmp_path, "train")
    assert (data.texts, data.labels) == ([("a", "b")], [1])
    assert (data.bad.count, data.bad.first) == (1, f"{path}:3: has 2 columns, not 6")


def test_a_bad_row_ends_strict_reading_with_its_line(tmp_path: Path) -> None:
    path = write_table(tmp_path / "train.tsv", [["sentence", "label"], ["a", "1"], ["b", "2"]])
    with pytest.raises(ValueError, match=f"{path}:3: the label '2' is none of 0, 1"):
        open_task("sst2", tmp_path, "train", strict=True)


@pytest.mark.parametrize(
    ("task", "part"), [("mnli", "dev_matched.tsv"), ("mnlimm", "dev_mismatched.tsv")]
)
def test_mnli_reads_the_gold_label_of_its_part_and_drops_pairs_without(
    tmp_path: Path, task: str, part: str
) -> None:
    header = [*_MNLI, "label1", "gold_label"]
    row = [*"01234567", "p", "h", "neutral"]
    rows = [header, [*row, "contradiction"], [*row, "-"]]
    write_table(tmp_path / "MNLI" / part, rows)
    data = open_task(task, tmp_path, "dev")
    assert (data.texts, data.labels, data.bad.count) == ([("p", "h")], [2], 0)


def test_mrpc_reads_the_corpus_as_published_with_dev_ids(tmp_path: Path) -> None:
    header = ["\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    rows = [header, ["1", "10", "11", "a", "b"], ["0", "20", "21", 'c "d', "e"]]
    write_table(tmp_path / "msr_paraphrase_train.txt", rows)
    write_table(tmp_path / "dev_ids.tsv", [["20", "21"]])
    train, dev = (open_task("mrpc", tmp_path, split) for split in ("train", "dev"))
    assert (train.texts, train.labels) == ([("a", "b")], [1])
    assert (dev.texts, dev.labels) == ([('c "d', "e")], [0])


def test_labels_in_another_order_are_numbered_in_it(tmp_path: Path) -> None:
    header = ["index", "sentence1", "sentence2", "label"]
    write_table(tmp_path / "dev.tsv", [header, ["0", "a", "b", "entailment"]])
    data = open_task("rte", tmp_path, "dev", labels=("not_entailment", "entailment"))
    assert data.labels == [1]


def test_a_missing_column_is_told_with_the_nearest(tmp_path: Path) -> None:
    path = write_table(tmp_path / "dev.tsv", [["sentence", "labels"], ["a", "1"]])
    with pytest.raises(ValueError, match=f"{path}:1: has no column 'label'.*did you mean labels"):
        open_task("sst2", tmp_path, "dev")


def test_a_missing_file_is_told_with_its_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no dev_matched.tsv \(mnli's dev file\) in it.*MNLI"):
        open_task("mnli", tmp_path, "dev")


def test_a_file_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "dev.tsv", [["sentence", "label"], ["a", "good"]])
    with pytest.raises(ValueError, match=f"{path}: 'good' .1 row. is none of 0, 1; 0 of 1 rows"):
        open_task("sst2", tmp_path, "dev")


def test_lines_that_are_no_text_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes(b"sentence\tlabel\r\ngood\t1\r\n\xff\t0\r\nnul \0\t0\r\nbad\t0\r\n")
    data = open_task("sst2", tmp_path, "dev")
    assert (data.texts, data.bad.count) == ([("good",), ("bad",)], 2)
    assert data.bad.first == f"{path}:3: is not UTF-8"


def test_f1_counts_a_label_that_is_neither_of_the_two(tmp_path: Path) -> None:
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    rows = [[label, "1", "2", "a", "b"] for label in ("1", "0", "2", "1")]
    write_table(tmp_path / "dev.tsv", [header, *rows])
    data = open_task("mrpc", tmp_path, "dev")
    # Of class 1: two found, one of them wrongly, none missed but one.
    assert score(data.task, [1, 0, 1, 0], data.labels) == {"f1": 0.5, "accuracy": 0.5}
