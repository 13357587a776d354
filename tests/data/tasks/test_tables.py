"""Anyone's own tables."""

import json
from pathlib import Path

import pytest

from minimoe_dist.data.tasks import Table, open_table
from tests.data.tasks.files import write_table


def _csv(folder: Path, text: str) -> Table:
    (folder / "train.csv").write_text(text)
    return Table(str(folder / "train.csv"), ("text",), "stars")


def test_csv_values_may_be_quoted_and_span_lines(tmp_path: Path) -> None:
    table = _csv(tmp_path, 'text,stars\n"good, really\n""good""",b\nbad,a\n')
    data = open_table(table, "train")
    assert data.texts == [('good, really\n"good"',), ("bad",)]
    assert (data.task.labels, data.labels) == (("a", "b"), [1, 0])


def test_a_csv_row_of_other_columns_is_counted_with_its_line(tmp_path: Path) -> None:
    data = open_table(_csv(tmp_path, "text,stars\na,1\nb\n"), "train")
    assert data.bad.first == f"{tmp_path / 'train.csv'}:3: has 1 column, not 2"


@pytest.mark.parametrize(
    ("row", "words"), [("c\rd,1", "new-line"), (f'"{"x" * 140_000}",1', "131072")]
)
def test_a_row_that_is_no_csv_is_counted_and_the_next_one_read(
    tmp_path: Path, row: str, words: str
) -> None:
    data = open_table(_csv(tmp_path, f"text,stars\na,1\n{row}\nb,2\n"), "train")
    assert data.texts == [("a",), ("b",)]
    assert data.bad.count == 1
    first = data.bad.first or ""
    assert (
        first.startswith(f"{tmp_path / 'train.csv'}:3: is no row of a CSV file") and words in first
    )


@pytest.mark.parametrize("lines", [True, False])
def test_json_is_read_as_lines_and_as_one_array(tmp_path: Path, lines: bool) -> None:
    records = [{"a": "x", "b": "y", "class": 1}, {"a": "z", "b": "w", "class": 0}]
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records, indent=1)
    (tmp_path / "train.json").write_text(text)
    data = open_table(Table(str(tmp_path), ("a", "b"), "class"), "train")
    assert (data.texts, data.labels) == ([("x", "y"), ("z", "w")], [1, 0])


def test_the_dev_file_has_the_training_files_labels(tmp_path: Path) -> None:
    write_table(tmp_path / "train.tsv", [["t", "l"], ["a", "no"], ["b", "yes"]])
    write_table(tmp_path / "dev.tsv", [["t", "l"], ["b", "yes"], ["c", "maybe"]])
    data = open_table(Table(str(tmp_path), ("t",), "l"), "dev")
    assert (data.labels, data.bad.count) == ([1], 1)


def test_regression_refuses_what_is_no_number(tmp_path: Path) -> None:
    write_table(tmp_path / "train.tsv", [["t", "l"], ["a", "0.5"], ["b", "nan"], ["c", "x"]])
    data = open_table(Table(str(tmp_path), ("t",), "l", kind="regression"), "train")
    assert (data.labels, data.bad.count, data.task.metrics[0]) == ([0.5], 2, "spearman")


def test_a_misspelt_column_is_told_with_the_nearest(tmp_path: Path) -> None:
    write_table(tmp_path / "train.tsv", [["review", "stars"], ["a", "1"]])
    with pytest.raises(
        ValueError, match="'reviews', which text_columns wants; did you mean review"
    ):
        open_table(Table(str(tmp_path), ("reviews",), "stars"), "train")


def test_one_file_needs_a_dev_file_besides(tmp_path: Path) -> None:
    write_table(tmp_path / "all.tsv", [["t", "l"], ["a", "1"]])
    with pytest.raises(ValueError, match="a dev file is wanted too; give --dev FILE"):
        open_table(Table(str(tmp_path / "all.tsv"), ("t",), "l"), "dev")


def test_a_table_that_is_no_utf8_is_refused_with_the_remedy(tmp_path: Path) -> None:
    rows = "".join(f"书{number},a\n" for number in range(20))
    (tmp_path / "train.csv").write_bytes(("text,stars\nbook,b\n" + rows).encode("gb18030"))
    table = Table(str(tmp_path / "train.csv"), ("text",), "stars")
    with pytest.raises(ValueError, match=r"csv:3: is not UTF-8; 20 of 21 rows .* iconv"):
        open_table(table, "train")


@pytest.mark.parametrize("coding", ["gb18030", "utf-16"])
def test_a_header_that_is_no_utf8_is_refused(tmp_path: Path, coding: str) -> None:
    (tmp_path / "train.csv").write_bytes("文本,星\n书,1\n".encode(coding))
    table = Table(str(tmp_path / "train.csv"), ("文本",), "星")
    with pytest.raises(ValueError, match=r"train.csv:1: is not UTF-8; save the file as UTF-8"):
        open_table(table, "train")


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train.csv:1: is empty"):
        open_table(_csv(tmp_path, ""), "train")


def test_a_file_of_a_split_has_its_folders_name(tmp_path: Path) -> None:
    assert Table(str(tmp_path / "reviews" / "train.csv"), ("t",), "l").task.name == "reviews"
    assert Table(str(tmp_path / "reviews" / "books.csv"), ("t",), "l").task.name == "books"
