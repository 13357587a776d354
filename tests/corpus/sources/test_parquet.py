"""Parquet: row groups, kinds of columns, rows without text, damage."""

import pytest

from minimoe_dist.corpus.reading import Inputs, ReadingOptions
from tests.corpus.sources.test_archives import sentences

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TEXTS = [f"Text {n} of the table.\nIts second line." for n in range(50)]
EXPECTED = [[f"Text {n} of the table.", "Its second line."] for n in range(50)]


def written(tmp_path, columns, **options):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path, **options)
    return path


COLUMNS = {
    "string": lambda: pa.array(TEXTS),
    "large_string": lambda: pa.array(TEXTS, pa.large_string()),
    "bytes": lambda: pa.array([text.encode() for text in TEXTS]),
    "dictionary": lambda: pa.array(TEXTS).dictionary_encode(),
    "lines": lambda: pa.array([text.split("\n") for text in TEXTS]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_text_may_be_of_any_kind(tmp_path, kind):
    path = written(tmp_path, {"id": list(range(50)), "text": COLUMNS[kind]()})
    assert sentences(path) == (EXPECTED, {}, {})


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_all_row_groups_are_read(tmp_path, compression):
    path = written(tmp_path, {"text": TEXTS}, row_group_size=7, compression=compression)
    assert sentences(path)[0] == EXPECTED


def test_a_field_inside_a_structure_is_named_with_a_dot(tmp_path):
    path = written(tmp_path, {"page": [{"body": text, "n": 1} for text in TEXTS]})
    assert sentences(path, text_key="page.body")[0] == EXPECTED


def test_titles_are_read_and_not_repeated(tmp_path):
    path = written(tmp_path, {"title": ["A"], "text": ["A\nA text of the table."]})
    assert sentences(path)[0] == [["A text of the table."]]


def test_rows_without_text_are_counted(tmp_path):
    path = written(tmp_path, {"text": [None, TEXTS[0], None, ""]})
    documents, counts, _ = sentences(path)
    assert [document for document in documents if document] == EXPECTED[:1]
    assert counts == {"records_without_text": 2}


def test_a_table_without_a_column_of_text_is_refused_with_its_columns(tmp_path):
    path = written(tmp_path, {"n": [1], "body": ["x"], "page": [{"raw": "y"}]})
    with pytest.raises(ValueError, match=r"give --text_column \(.*: body, page\.raw\)"):
        sentences(path)
    with pytest.raises(ValueError, match="no column of text named 'n'"):
        sentences(path, text_key="n")


def test_a_damaged_table_is_refused_or_noted(tmp_path):
    path = written(tmp_path, {"text": TEXTS * 90}, row_group_size=500, compression="zstd")
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-20])
    with pytest.raises(ValueError, match="damaged Parquet file"):
        sentences(path)
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(data)
    documents, counts, _ = sentences(path)
    assert counts == {"damaged_files": 1} and 0 < len(documents) < 4500


@pytest.mark.parametrize(
    ("intact", "damaged"),
    [(b"text", b"\xf4ext"), (None, b"\xff" * 40)],
    ids=["a name that is no UTF-8", "a footer that is none"],
)
def test_a_table_whose_description_is_damaged_is_refused(tmp_path, intact, damaged):
    path = written(tmp_path, {"text": TEXTS})
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    if intact is None:
        data = data[:-footer] + damaged + data[len(damaged) - footer :]
    path.write_bytes(data.replace(intact, damaged) if intact else data)
    with pytest.raises(ValueError, match=r"x\.parquet: a damaged Parquet file"):
        sentences(path)


def test_long_rows_are_cut_and_give_what_their_sentences_give(tmp_path):
    text = " ".join(f"Sentence {n} of a text that is long." for n in range(90_000))
    path = written(tmp_path, {"text": [text, TEXTS[0]]})
    works = list(Inputs([str(path)], ReadingOptions()).work())
    assert max(len(work.block.read()) for work in works) < 1.2 * (1 << 20)
    documents, counts, _ = sentences(path)
    assert ([len(document) for document in documents], counts) == ([90_000, 2], {})


WESTERN = "Les élèves sont très fatigués à la fin de l'été."


def test_bytes_are_decoded_as_declared_and_refused_where_nothing_is(tmp_path):
    path = written(tmp_path, {"text": [WESTERN.encode("cp1252")] * 9})
    with pytest.raises(ValueError, match=r"not in UTF-8; give --encoding \(its beginning looks"):
        sentences(path)
    assert sentences(path, encoding="cp1252") == ([[WESTERN]] * 9, {}, {})


def _strings(*values):
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


@pytest.mark.parametrize(
    "column",
    [
        pa.array([WESTERN.encode()] * 9 + [b"One\xff bad."]),
        _strings(*[WESTERN.encode()] * 9, b"One\xff bad."),
        pa.ListArray.from_arrays(
            pa.array(range(11), pa.int32()), _strings(*[WESTERN.encode()] * 9, b"One\xff bad.")
        ),
    ],
    ids=["bytes", "strings", "lines"],
)
def test_damaged_characters_are_counted(tmp_path, column):
    documents, counts, lost = sentences(written(tmp_path, {"text": column}))
    assert documents == [[WESTERN]] * 9 + [["One\ufffd bad."]]
    assert counts == lost == {"invalid_utf8_lines": 1}


def test_a_rows_first_column_that_has_text_counts(tmp_path):
    columns = {"text": [None, "", "One text."], "content": ["A text.", "A text.", "Another."]}
    assert sentences(written(tmp_path, columns))[0] == [["A text."], ["A text."], ["One text."]]


def test_lists_of_lists_are_no_text(tmp_path):
    path = written(tmp_path, {"text": [[["A text."]]], "body": ["A text."]})
    with pytest.raises(ValueError, match=r"columns of text: body\)"):
        sentences(path)
