"""Anyone's own tables."""

import json
from pathlib import Path

import pytest

from minimoe_dist.data.tasks import (
    Table,
    TaskData,
    open_table,
    score,
    similar_labels,
    unknown_in_words,
    unlearnt_rows,
)
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


@pytest.mark.parametrize("last", [True, False])
def test_a_quote_that_is_open_at_the_end_refuses_the_file(tmp_path: Path, last: bool) -> None:
    rows = [f"a{number},b" for number in range(120)]
    rows.insert(2, '"5 inch screen,b' if last else 'b,"5 inch screen')
    table = _csv(tmp_path, "\n".join(["text,stars" if last else "stars,text", *rows, ""]))
    with pytest.raises(
        ValueError, match=r"train.csv:4: opens a quote that is never closed, in front of 119 lines"
    ):
        open_table(table, "train")


def test_text_behind_a_closing_quote_spoils_its_row_whose_lines_are_counted(tmp_path: Path) -> None:
    rows = ['"5 inch,a', *["x,b"] * 3, '6" screen,a', *["y,a", "z,b"] * 9]
    data = open_table(_csv(tmp_path, "\n".join(["text,stars", *rows, ""])), "train")
    assert (len(data), data.bad.count) == (18, 5)
    first = f"{tmp_path / 'train.csv'}:2: is no row of a CSV file up to line 6 ("
    assert (data.bad.first or "").startswith(first)


@pytest.mark.parametrize(
    ("header", "first", "between", "last"),
    [
        ("label,text", 'neg,"5 inch', "pos,x", 'pos,7"'),
        ("text,label", '"5 inch,neg', "x,pos", '7",pos'),
        ("id,text,label", '1,"5 inch,neg', "2,x,pos", '3,7",pos'),
    ],
)
@pytest.mark.parametrize("count", [0, 2])
def test_rows_that_two_stray_quotes_join_are_left_out_and_counted(
    header: str, first: str, between: str, last: str, count: int, tmp_path: Path
) -> None:
    good = [between, between.replace("pos", "neg")] * 5
    rows = [header, *good, first, "", *[between] * count, last, *good, ""]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    data = open_table(Table(str(tmp_path), ("text",), "label"), "train")
    assert (len(data), data.bad.count) == (20, count + 2)
    assert data.bad.first == (
        f"{tmp_path / 'train.csv'}:12: has {count + 2} rows in one pair of quotes; are two quotes "
        "meant as text?"
    )


@pytest.mark.parametrize(
    ("header", "good", "long"),
    [
        ("label,text", ["pos,x", "neg,y"], 'pos,"well, yes\nas I said, fine\nsee a,b"'),
        ("text,label", ["x,pos", "y,neg"], '"well, yes\n""good"", fine\nand so, on",pos'),
    ],
)
def test_a_text_of_several_lines_with_a_comma_each_stays(
    header: str, good: list[str], long: str, tmp_path: Path
) -> None:
    (tmp_path / "train.csv").write_text("\n".join([header, *good, long, *good, ""]))
    data = open_table(Table(str(tmp_path), ("text",), "label"), "train")
    assert (len(data), data.bad.count, data.texts[2][0].count("\n")) == (5, 0, 2)


def test_numbers_that_two_stray_quotes_join_are_left_out(tmp_path: Path) -> None:
    rows = ["text,value", "a,0.25", '"5 inch,1.5', "b,2.75", '6",4.125', "c,3", "d,4", "e,5", ""]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    data = open_table(Table(str(tmp_path), ("text",), "value", kind="regression"), "train")
    assert (data.labels, data.bad.count) == ([0.25, 3.0, 4.0, 5.0], 3)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_whose_lines_end_in_carriage_returns_is_refused(
    tmp_path: Path, suffix: str
) -> None:
    text = "text,stars\ra,1\rb,2\r".replace(",", "\t" if suffix == "tsv" else ",")
    (tmp_path / f"train.{suffix}").write_bytes(text.encode())
    with pytest.raises(ValueError, match=rf"train.{suffix}:1: has carriage returns inside"):
        open_table(Table(str(tmp_path), ("text",), "stars"), "train")


@pytest.mark.parametrize(
    ("split", "names"), [("train", ["train.tsv", "train.csv"]), ("dev", ["dev.tsv", "valid.csv"])]
)
def test_two_files_of_one_split_are_refused(split: str, names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("text,stars\na,1\n")
    with pytest.raises(ValueError, match=f"{names[0]}, {names[1]} all look like its {split} file"):
        open_table(Table(str(tmp_path), ("text",), "stars"), split)


GOOD = ['{"t": "a", "l": "yes"}', '{"t": "b", "l": "no"}']


def _json(folder: Path, *rows: str) -> TaskData:
    (folder / "train.jsonl").write_text("\n".join([*GOOD, *rows]))
    return open_table(Table(str(folder), ("t",), "l"), "train")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"t": "c", "l": ["yes", "no"]}', "its label ['yes', 'no'] is neither text nor a number"),
        ('{"t": "c", "l": {"yes": 1}}', "its label {'yes': 1} is neither text nor a number"),
        ('{"t": "c", "l": NaN}', "its label nan is neither text nor a number"),
        (r'{"t": "c \ud83d", "l": "yes"}', "has one half of a character (a lone surrogate)"),
        (r'{"t": "c", "l": "\ud83d"}', "has one half of a character (a lone surrogate)"),
        ("[" * 100_000, "is no JSON (maximum recursion depth exceeded"),
    ],
    ids=["list", "object", "nan", "text", "label", "depth"],
)
def test_json_that_holds_no_label_or_no_text_is_a_bad_row(
    row: str, words: str, tmp_path: Path
) -> None:
    data = _json(tmp_path, row)
    assert (data.labels, data.task.labels) == ([1, 0], ("no", "yes"))
    assert (data.bad.first or "").startswith(f"{tmp_path / 'train.jsonl'}:3: {words}")


def test_an_array_of_json_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"train.json: is no JSON \(maximum recursion"):
        open_table(Table(str(tmp_path), ("t",), "l"), "train")


def test_composed_and_combined_accents_are_one_label(tmp_path: Path) -> None:
    rows = [["t", "l"], ["a", "caf\u00e9"], ["b", "cafe\u0301"], ["c", "bar"]]
    write_table(tmp_path / "train.tsv", rows)
    data = open_table(Table(str(tmp_path), ("t",), "l"), "train")
    assert (data.task.labels, data.labels) == (("bar", "caf\u00e9"), [1, 1, 0])


def test_labels_that_look_alike_are_told() -> None:
    labels = ["1", "1.0", "true", "01", "neg", "neg\u200b", "Pos", "pos", "2", "other"]
    assert similar_labels(labels) == [
        ("1", "1.0", "true", "01"), ("neg", "neg\u200b"), ("Pos", "pos"),
    ]  # fmt: skip


def test_labels_of_one_number_have_one_order(tmp_path: Path) -> None:
    rows = [["a", label] for label in ("1", "01", "001", "0", "10", "2")]
    write_table(tmp_path / "train.tsv", [["t", "l"], *rows])
    data = open_table(Table(str(tmp_path), ("t",), "l"), "train")
    assert data.task.labels == ("0", "001", "01", "1", "2", "10")


def test_a_label_of_more_digits_than_a_number_has_is_a_name(tmp_path: Path) -> None:
    rows = [["a", label] for label in ("9" * 5000, "10", "9")]
    write_table(tmp_path / "train.tsv", [["t", "l"], *rows])
    data = open_table(Table(str(tmp_path), ("t",), "l"), "train")
    assert data.task.labels == ("10", "9", "9" * 5000)


@pytest.mark.parametrize("lines", [True, False])
def test_json_is_read_as_lines_and_as_one_array(tmp_path: Path, lines: bool) -> None:
    records = [{"a": "x", "b": "y", "class": 1}, {"a": "z", "b": "w", "class": 0}]
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records, indent=1)
    (tmp_path / "train.json").write_text(text)
    data = open_table(Table(str(tmp_path), ("a", "b"), "class"), "train")
    assert (data.texts, data.labels) == ([("x", "y"), ("z", "w")], [1, 0])


def test_dev_rows_whose_label_the_training_file_lacks_count_as_wrong(tmp_path: Path) -> None:
    write_table(tmp_path / "train.tsv", [["t", "l"], ["a", "no"], ["b", "yes"]])
    write_table(tmp_path / "dev.tsv", [["t", "l"], ["b", "yes"], ["c", "yess"], ["d", "no"]])
    data = open_table(Table(str(tmp_path), ("t",), "l"), "dev")
    assert (data.labels, data.task.unlearnt, unlearnt_rows(data)) == ([1, 2, 0], ("yess",), 1)
    assert unknown_in_words(data).endswith(
        "dev.tsv: 'yess' (1 row; did you mean 'yes'?) is none of no, yes"
    )
    # Of the two known rows one is right; the class "yess" has an F1 of 0.
    assert score(data.task, [1, 1, 1], data.labels) == {
        "accuracy": pytest.approx(1 / 3), "macro_f1": pytest.approx(0.5 / 3)
    }  # fmt: skip


def test_a_strict_run_stops_at_a_label_that_the_training_file_lacks(tmp_path: Path) -> None:
    write_table(tmp_path / "train.tsv", [["t", "l"], ["a", "no"], ["b", "yes"]])
    path = write_table(tmp_path / "dev.tsv", [["t", "l"], ["b", "yes"], ["c", "maybe"]])
    with pytest.raises(ValueError, match=f"{path}:3: the label 'maybe' is none of no, yes"):
        open_table(Table(str(tmp_path), ("t",), "l"), "dev", strict=True)


def test_a_dev_file_of_other_labels_is_refused_with_their_counts(tmp_path: Path) -> None:
    write_table(tmp_path / "train.tsv", [["t", "l"], ["a", "0"], ["b", "1"]])
    write_table(tmp_path / "dev.tsv", [["t", "l"], *[["b", "pos"], ["c", "neg"]] * 5])
    with pytest.raises(ValueError, match=r"'pos' \(5 rows\), 'neg' \(5 rows\) are none of 0, 1; 0"):
        open_table(Table(str(tmp_path), ("t",), "l"), "dev")


def test_blanks_around_a_label_and_the_case_of_jsons_truth_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"t": "a", "l": "true "}\n{"t": "b", "l": false}\n')
    data = open_table(Table(str(tmp_path), ("t",), "l"), "train")
    assert (data.task.labels, data.labels) == (("false", "true"), [1, 0])


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 2 columns 'text', which text_columns wants"):
        open_table(_csv(tmp_path, "text,stars,text\na,1,b\n"), "train")


def test_empty_cells_are_counted_and_a_pairs_other_text_is_used(tmp_path: Path) -> None:
    rows = [["a", "b", "l"], ["x", "", "1"], ["", "y", "0"], ["", " ", "0"], ["x", "y", " "]]
    write_table(tmp_path / "train.tsv", rows)
    data = open_table(Table(str(tmp_path), ("a", "b"), "l"), "train")
    assert (data.texts, data.labels, data.bad.count) == ([("x", ""), ("", "y")], [1, 0], 2)


def test_a_line_that_is_no_text_spoils_its_whole_row_of_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(b'text,stars\n"one\n\xff\ntwo",1\nthree,0\nfour,1\n')
    data = open_table(Table(str(path), ("text",), "stars"), "train")
    assert (data.texts, data.bad.count) == ([("three",), ("four",)], 1)


@pytest.mark.parametrize("written", ['"1_0"', "true", "[1]", "1" + "0" * 400, "null"])
def test_json_that_is_no_number_is_a_bad_row(written: str, tmp_path: Path) -> None:
    rows = ['{"t": "a", "l": 1}', '{"t": "b", "l": "2.5"}', f'{{"t": "c", "l": {written}}}']
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    data = open_table(Table(str(tmp_path), ("t",), "l", kind="regression"), "train")
    assert (data.labels, data.bad.count) == ([1.0, 2.5], 1)


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
    with pytest.raises(ValueError, match=r"UTF-8 in 20 of the 20 lines .* GB18030: .* iconv"):
        open_table(table, "train")


@pytest.mark.parametrize("coding", ["gb18030", "utf-16"])
def test_a_header_that_is_no_utf8_is_refused(tmp_path: Path, coding: str) -> None:
    (tmp_path / "train.csv").write_bytes("文本,星\n书,1\n".encode(coding))
    table = Table(str(tmp_path / "train.csv"), ("文本",), "星")
    with pytest.raises(ValueError, match=r"csv:1: is not UTF-8; it looks like (GB18030|UTF-16)"):
        open_table(table, "train")


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train.csv:1: is empty"):
        open_table(_csv(tmp_path, ""), "train")


def test_a_file_of_a_split_has_its_folders_name(tmp_path: Path) -> None:
    assert Table(str(tmp_path / "reviews" / "train.csv"), ("t",), "l").task.name == "reviews"
    assert Table(str(tmp_path / "reviews" / "books.csv"), ("t",), "l").task.name == "books"
