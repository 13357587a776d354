"""Words in columns."""

from pathlib import Path

import pytest

from minimoe_dist.data.tasks import TaskData, WordColumns, open_task, score, unlearnt_rows
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


def test_sentences_with_a_tag_that_the_training_file_lacks_are_scored(tmp_path: Path) -> None:
    write_columns(tmp_path / "train.txt", [["a B-X", "b O"]])
    dev = [["a B-X", "b O"], ["a B-Y", "b O"], ["b O", "a B-X"]]
    write_columns(tmp_path / "dev.txt", dev)
    data = open_task("ner", tmp_path, "dev")
    assert (len(data), data.task.unlearnt, unlearnt_rows(data)) == (3, ("B-Y",), 1)
    # The best that can be predicted: X where X or Y is. Two of three chunks agree.
    predicted = [[1, 0], [1, 0], [0, 1]]
    scores = score(data.task, predicted, data.labels)
    assert scores["chunk_f1"] == scores["chunk_recall"] == pytest.approx(2 / 3)
    assert scores["accuracy"] == pytest.approx(5 / 6)


def test_a_sentence_with_a_line_that_is_no_text_goes_whole(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(
        "a O\nBelgi\u00eb B-L\nc O\n\nd\u00e9 O\n".encode() + b"\ne O\nf\xeb O\n\ng O\n"
    )
    data = open_task("ner", tmp_path, "train")
    assert data.texts == [("a", "Belgi\u00eb", "c"), ("d\u00e9",), ("g",)]
    assert (data.bad.count, data.bad.first) == (1, f"{path}:8: is not UTF-8")


@pytest.mark.parametrize(
    ("encoding", "word"),
    [
        ("CP1252", "Belgi\u00eb"),
        ("GB18030", "\u5317\u4eac"),
        ("CP1251", "\u041c\u043e\u0441\u043a\u0432\u0430"),
    ],
)
def test_a_file_in_another_encoding_is_refused_by_its_name(
    encoding: str, word: str, tmp_path: Path
) -> None:
    sentences = [["Jan B-PER", f"{word} B-LOC"], *[["de O", "trein O"]] * 9]
    text = "\n".join("\n".join(lines) + "\n" for lines in sentences * 3)
    (tmp_path / "train.txt").write_bytes(text.encode(encoding))
    message = (
        f"is not UTF-8 in 3 of the 3 lines .* it looks like {encoding}: .* iconv -f {encoding}"
    )
    with pytest.raises(ValueError, match=message):
        open_task("ner", tmp_path, "train")


NUMBERED = [
    ["1 Anna B-PER O", "2 in O O", "3 Bonn B-LOC B-X"],
    ["1 Uni B-ORG O", "2 Bonn I-ORG B-X"],
]


@pytest.mark.parametrize("first", [0, 1])
def test_a_column_that_numbers_the_words_is_refused(first: int, tmp_path: Path) -> None:
    renumbered = [
        [f"{first + place} {line.partition(' ')[2]}" for place, line in enumerate(sentence)]
        for sentence in NUMBERED
    ]
    write_columns(tmp_path / "train.tsv", renumbered, "\t")
    with pytest.raises(
        ValueError, match=r"column 1 numbers the words .* --word_column 2 --tag_col"
    ):
        open_task("ner", tmp_path, "train")


def test_words_of_more_digits_than_a_number_has_are_no_numbers(tmp_path: Path) -> None:
    long = "1" * 5000
    write_columns(tmp_path / "train.tsv", [[f"{long} O", f"{long} B-LOC"]], "\t")
    assert open_task("ner", tmp_path, "train").texts == [(long, long)]


def test_the_columns_of_words_and_tags_may_be_named(tmp_path: Path) -> None:
    write_columns(tmp_path / "train.tsv", NUMBERED, "\t")
    data = open_task("ner", tmp_path, "train", columns=WordColumns(2, 3))
    assert data.texts == [("Anna", "in", "Bonn"), ("Uni", "Bonn")]
    assert data.task.labels == ("O", "B-LOC", "B-ORG", "B-PER", "I-ORG")


def test_a_comment_before_a_sentence_is_none_of_its_words(tmp_path: Path) -> None:
    commented = [["#\thttp://de.example.org/a [2009-10-17]", *lines] for lines in NUMBERED]
    write_columns(tmp_path / "train.tsv", commented, "\t")
    data = open_task("ner", tmp_path, "train", columns=WordColumns(2, 3))
    assert (len(data), data.bad.count) == (2, 0)


def test_tags_in_the_place_of_words_are_refused(tmp_path: Path) -> None:
    write_columns(tmp_path / "train.bio", [["O show", "O me", "B-TITLE jaws"]], "\t")
    with pytest.raises(ValueError, match=r"and no words; .* --word_column 2 --tag_column 1"):
        open_task("ner", tmp_path, "train")


def test_numbers_among_words_are_words(tmp_path: Path) -> None:
    write_columns(tmp_path / "train.txt", [["1 O", "2 O"], ["page O", "3 O"], ["a O", "b O"]])
    assert len(open_task("ner", tmp_path, "train")) == 3


@pytest.mark.parametrize(("task", "folder"), [("ner", "NER"), ("conll2003", "CoNLL-2003")])
def test_a_folder_of_the_tasks_name_is_looked_into(task: str, folder: str, tmp_path: Path) -> None:
    write_columns(tmp_path / folder / "train.txt", [["a O"]])
    (tmp_path / "SST-2").mkdir()
    assert open_task(task, tmp_path, "train").path == tmp_path / folder / "train.txt"


PAIR = ["John B-PER", "Smith I-PER", "lives O"]
ONE = ["Ann B-PER", "reads O"]


def _read(folder: Path, text: str, blank: str = " ") -> TaskData:
    (folder / "train.txt").write_text(text.replace(" ", blank))
    return open_task("ner", folder, "train")


@pytest.mark.parametrize("blank", [" ", "\t"])
@pytest.mark.parametrize(
    "above",
    [
        ["# sent1"],
        ["# sent_id = 1", "# text = John Smith lives"],
        ["#sent1"],
        ["# newdoc", "# a comment of many words"],
    ],
)
def test_comments_above_a_sentence_are_none_of_its_words(
    above: list[str], blank: str, tmp_path: Path
) -> None:
    lines = [*above, *(line.replace(" ", blank) for line in PAIR), "", *above]
    lines += [line.replace(" ", blank) for line in ONE]
    data = _read(tmp_path, "\n".join(lines))
    assert data.texts == [("John", "Smith", "lives"), ("Ann", "reads")]
    assert (data.task.labels, data.bad.count) == (("O", "B-PER", "I-PER"), 0)


def test_a_word_may_begin_with_a_number_sign(tmp_path: Path) -> None:
    data = _read(tmp_path, "# O\n#tag B-PER\n\n#1 O\nAnn B-PER\n")
    assert data.texts == [("#", "#tag"), ("#1", "Ann")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("# note", "has 'note' where nearly all lines mark chunks"),
        ("lives\t", "has no tag"),
        ("lives", "has 1 column, not 2"),
        ("New York", "has 1 column, not 2"),
    ],
)
def test_a_line_inside_a_sentence_that_has_no_tag_spoils_it(
    line: str, words: str, tmp_path: Path
) -> None:
    good = "\n".join(line.replace(" ", "\t") for line in PAIR) + "\n"
    line = line.replace("# ", "#\t")
    data = _read(tmp_path, f"{good}\n" * 9 + f"{good}{line}\n{good}\n{good}")
    assert (len(data), data.task.labels) == (10, ("O", "B-PER", "I-PER"))
    assert data.bad.first == f"{tmp_path / 'train.txt'}:40: {words}"


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("word tag", PAIR),
        ("token pos chunk ner", ["John NNP B-NP B-PER", "lives VBZ B-VP O"]),
        ("Word Tag", ["The DT", "word NN"]),
    ],
)
@pytest.mark.parametrize("between", ["", "\n"])
def test_a_line_that_names_the_columns_is_no_word(
    header: str, lines: list[str], between: str, tmp_path: Path
) -> None:
    data = _read(tmp_path, f"{header}\n{between}" + "\n".join(lines))
    assert data.texts == [tuple(line.split()[0] for line in lines)]
    assert data.bad.count == 0 and not {"tag", "ner", "Tag"} & {*data.task.labels}


def test_a_last_column_of_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its last column has numbers such as 0.98, and no tags"):
        _read(tmp_path, "John B-PER 0.98\nlives O 0.5\n")


def test_a_column_with_a_value_for_nearly_every_word_is_refused(tmp_path: Path) -> None:
    words = "\n".join(f"word{number} stem{number}" for number in range(60))
    with pytest.raises(ValueError, match=r"has 60 different values for 60 words, so it is no col"):
        _read(tmp_path, words)


def test_columns_whose_lines_end_in_carriage_returns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"a O\rb O\r\rc O\r")
    with pytest.raises(ValueError, match=r"train.txt:1: has carriage returns inside"):
        open_task("ner", tmp_path, "train")
