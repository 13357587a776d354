"""Words in columns."""

from pathlib import Path

import pytest

from minimoe_dist.data.tasks import open_task
from tests.data.tasks.files import write_columns


def test_conll_2003_has_four_columns_and_document_starts(tmp_path: Path) -> None:
    sentences = [["-DOCSTART- -X- -X- O"], ["EU NNP B-NP B-ORG", "rejects VBZ B-VP O"]]
    write_columns(tmp_path / "eng.train", sentences)
    data = open_task("conll2003", tmp_path, "train")
    assert data.task.labels == ("O", "B-ORG")
    assert (data.texts, data.labels) == ([("EU", "rejects")], [[1, 0]])


@pytest.mark.parametrize("blank", ["\t", " ", "   "])
def test_columns_are_separated_by_a_tab_or_any_blanks(tmp_path: Path, blank: str) -> None:
    write_columns(tmp_path / "train.char.bmes", [["北 B-LOC", "京 E-LOC", "大 O"]], blank)
    data = open_task("ner", tmp_path, "train")
    assert data.texts == [("北", "京", "大")]
    assert data.labels == [[1, 2, 0]]


def test_a_dev_files_tags_are_numbered_as_the_training_files(tmp_path: Path) -> None:
    write_columns(tmp_path / "train.txt", [["a B-X", "b B-A", "c O"]])
    write_columns(tmp_path / "valid.txt", [["a B-X"]])
    assert open_task("ner", tmp_path, "dev").labels == [[2]]


def test_a_sentence_with_a_line_of_other_columns_is_left_out(tmp_path: Path) -> None:
    path = write_columns(tmp_path / "train.txt", [["a O"], ["b O", "c"], ["d O"]])
    data = open_task("ner", tmp_path, "train")
    assert data.texts == [("a",), ("d",)]
    assert data.bad.first == f"{path}:4: has 1 column, not 2"


def test_a_file_of_one_column_is_refused(tmp_path: Path) -> None:
    path = write_columns(tmp_path / "train.txt", [["a", "b"]])
    with pytest.raises(ValueError, match=f"{path}:1: has 1 column, not a word and its tag"):
        open_task("ner", tmp_path, "train")


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train.txt", "train.bio"):
        write_columns(tmp_path / name, [["a O"]])
    with pytest.raises(ValueError, match=r"train.bio, train.txt all look like its train file"):
        open_task("ner", tmp_path, "train")


def test_wikianns_languages_are_taken_off_its_words(tmp_path: Path) -> None:
    write_columns(tmp_path / "train", [["en:Paris B-LOC", "en:: O"], ["en:a O"]], "\t")
    assert open_task("ner", tmp_path, "train").texts == [("Paris", ":"), ("a",)]


def test_a_word_with_a_colon_stays_where_others_have_none(tmp_path: Path) -> None:
    write_columns(tmp_path / "train.txt", [["to:do O", "b O"], ["to:day O"]])
    assert open_task("ner", tmp_path, "train").texts == [("to:do", "b"), ("to:day",)]


@pytest.mark.parametrize("blank", ["\t", " "])
def test_a_wide_blank_is_a_word(tmp_path: Path, blank: str) -> None:
    write_columns(tmp_path / "train.txt", [["好 O", "\u3000 O"], ["\u3000"], ["书 O"]], blank)
    assert open_task("ner", tmp_path, "train").texts == [("好", "\u3000"), ("书",)]
