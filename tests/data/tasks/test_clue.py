"""CLUE's JSON lines."""

import re
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.data.tasks import open_task
from tests.data.tasks.files import write_records


def test_labels_of_tnews_are_numbered_as_its_labels_file_has_them(tmp_path: Path) -> None:
    folder = tmp_path / "tnews_public"
    write_records(folder / "labels.json", [{"label": "101"}, {"label": "100"}])
    write_records(folder / "dev.json", [{"label": "100", "sentence": "好", "keywords": ""}])
    data = open_task("tnews", tmp_path, "dev")
    assert (data.task.labels, data.labels) == (("101", "100"), [1])


def test_without_a_labels_file_the_training_files_labels_are_sorted_as_numbers(
    tmp_path: Path,
) -> None:
    records = [{"label": label, "sentence": "好"} for label in ("11", "2", "0")]
    write_records(tmp_path / "train.json", records)
    write_records(tmp_path / "dev.json", records[:1])
    assert open_task("iflytek", tmp_path, "dev").task.labels == ("0", "2", "11")


def test_ocnli_drops_pairs_without_agreement(tmp_path: Path) -> None:
    pair = {"sentence1": "一", "sentence2": "二"}
    records = [{**pair, "label": "neutral"}, {**pair, "label": "-"}]
    write_records(tmp_path / "train.50k.json", records)
    data = open_task("ocnli", tmp_path, "train")
    assert (data.texts, data.labels, data.bad.count) == ([("一", "二")], [1], 0)


def test_csl_pairs_keywords_with_the_abstract(tmp_path: Path) -> None:
    record = {"id": 1, "abst": "摘要", "keyword": ["甲", "乙"], "label": "1"}
    write_records(tmp_path / "dev.json", [record])
    assert open_task("csl", tmp_path, "dev").texts == [("甲 乙", "摘要")]


@pytest.mark.parametrize(
    ("name", "pronoun", "text"),
    [(0, 3, "_小明_说[他]好"), (3, 0, "[小明]说_他_好")],
)
def test_cluewsc_marks_both_spans(tmp_path: Path, name: int, pronoun: int, text: str) -> None:
    words = {0: "小明", 3: "他"}
    target = {
        "span1_index": name,
        "span1_text": words[name],
        "span2_index": pronoun,
        "span2_text": words[pronoun],
    }
    record = {"target": target, "label": "true", "text": "小明说他好"}
    write_records(tmp_path / "dev.json", [record])
    data = open_task("cluewsc2020", tmp_path, "dev")
    assert (data.texts, data.labels) == ([(text,)], [1])


def test_a_record_without_a_field_is_a_bad_row(tmp_path: Path) -> None:
    good = {"sentence1": "一", "sentence2": "二", "label": "0"}
    path = write_records(tmp_path / "dev.json", [good, {"sentence1": "一", "label": "0"}])
    data = open_task("afqmc", tmp_path, "dev")
    assert (len(data), data.bad.first) == (1, f"{path}:2: has no 'sentence2'")


def test_a_line_that_is_no_json_is_a_bad_row(tmp_path: Path) -> None:
    path = write_records(
        tmp_path / "dev.json", [{"sentence1": "", "sentence2": "二", "label": "0"}]
    )
    path.write_text(path.read_text() + "{broken\n")
    data = open_task("afqmc", tmp_path, "dev")
    assert data.bad.first is not None
    assert data.bad.first.startswith(f"{path}:2: is no JSON")


@pytest.mark.parametrize("keywords", ["甲;乙", "甲，乙", "甲 乙", ["甲", "乙"]])
def test_csl_keywords_may_be_one_string(keywords: object, tmp_path: Path) -> None:
    write_records(tmp_path / "dev.json", [{"abst": "摘要", "keyword": keywords, "label": "1"}])
    assert open_task("csl", tmp_path, "dev").texts == [("甲 乙", "摘要")]


def wsc_record(text: str, index: int) -> dict[str, object]:
    target = {"span1_index": index, "span1_text": "小明", "span2_index": 3, "span2_text": "他"}
    return {"target": target, "label": "true", "text": text}


def test_cluewsc_marks_a_span_where_its_text_is_and_not_what_is_at_its_index(
    tmp_path: Path,
) -> None:
    write_records(tmp_path / "dev.json", [wsc_record("小明说他好", 1)])
    assert open_task("cluewsc2020", tmp_path, "dev").texts == [("_小明_说[他]好",)]


@pytest.mark.parametrize(("text", "index"), [("小明说他像小明", 1), ("小红说他好", 0)])
def test_cluewsc_leaves_out_a_span_that_is_elsewhere_or_nowhere(
    text: str, index: int, tmp_path: Path
) -> None:
    path = write_records(
        tmp_path / "dev.json", [wsc_record(text, index), wsc_record("小明说他", 0)]
    )
    data = open_task("cluewsc2020", tmp_path, "dev")
    assert data.bad.first == f"{path}:1: the span '小明' is not at character {index} of the text"


TARGET = {"span1_index": 0, "span1_text": "小明", "span2_index": 3, "span2_text": "他"}
RECORDS: dict[str, dict[str, Any]] = {
    "tnews": {"label": "100", "sentence": "好"},
    "afqmc": {"label": "0", "sentence1": "一", "sentence2": "二"},
    "csl": {"label": "1", "abst": "摘要", "keyword": ["甲", "乙"]},
    "cluewsc2020": {"label": "true", "text": "小明说他好", "target": TARGET},
}


@pytest.mark.parametrize("wrong", [None, 3, [4], {}])
@pytest.mark.parametrize(
    ("task", "key"),
    [(task, key) for task, record in RECORDS.items() for key in record if key != "label"],
)
def test_what_is_no_text_is_a_bad_row(task: str, key: str, wrong: object, tmp_path: Path) -> None:
    good = RECORDS[task]
    write_records(tmp_path / "train.json", [good])
    path = write_records(tmp_path / "dev.json", [good, {**good, key: wrong}])
    data = open_task(task, tmp_path, "dev")
    assert (len(data), data.bad.count) == (1, 1)
    assert (data.bad.first or "").startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"100": "news_story"}', '1: has no \'label\'; give a line {"label": "100"}'),
        ('{"label": "100"}\n{"label_desc": "news"}', "2: has no 'label'; give"),
        ('["100", "101"]', "1: is no JSON object; give"),
    ],
)
def test_a_labels_file_without_labels_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(text)
    write_records(tmp_path / "dev.json", [RECORDS["tnews"]])
    with pytest.raises(ValueError, match=re.escape(f"labels.json:{words}")):
        open_task("tnews", tmp_path, "dev")


def test_a_label_that_is_there_twice_is_one(tmp_path: Path) -> None:
    write_records(tmp_path / "labels.json", [{"label": one} for one in ("100", "100", "101")])
    write_records(tmp_path / "dev.json", [RECORDS["tnews"]])
    assert open_task("tnews", tmp_path, "dev").task.labels == ("100", "101")
