"""JSON that is no records: strings are read, all else is refused with what it is."""

import json
import pickle

import pytest

from minimoe_dist.corpus.sources import (
    JsonLinesSource,
    JsonSource,
    SourceOptions,
    TextSource,
    choose_source,
)
from minimoe_dist.corpus.sources.json_shapes import JsonStringsSource
from minimoe_dist.corpus.streams import InputStream
from tests.corpus.sources.documents import read

TEXTS = [f'Text {n} is "quoted" \\ 今天 here.\nIts second line, [of] {{two}}.' for n in range(40)]
RECORDS = [{"text": text} for text in TEXTS]


def written(tmp_path, text):
    path = tmp_path / "input"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


STRINGS = {
    "array": json.dumps(TEXTS),
    "indented array": json.dumps(TEXTS, indent=1, ensure_ascii=False),
    "lines": "\n".join(map(json.dumps, TEXTS)) + "\n",
    "long": json.dumps([TEXTS[0] * 9000, *TEXTS[1:]]),
}


@pytest.mark.parametrize("layout", STRINGS)
def test_strings_are_documents(tmp_path, layout):
    path = written(tmp_path, STRINGS[layout])
    source = choose_source(InputStream(path))
    assert type(source) is JsonStringsSource
    documents, problems = read(source, path)
    texts = json.loads(STRINGS[layout]) if layout != "lines" else TEXTS
    found = ["".join("".join(document.lines).split()) for document in documents]
    assert found == ["".join(text.split()) for text in texts]
    assert not problems.counts


def test_what_is_no_string_is_noted_and_so_is_an_array_that_is_not_closed(tmp_path):
    path = written(tmp_path, json.dumps([*TEXTS, 12])[:-1])
    documents, problems = read(JsonStringsSource(), path)
    assert len(documents) == 40
    assert problems.counts == {"records_without_text": 1, "damaged_files": 1}


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("\n".join(json.dumps([1, text]) for text in TEXTS), "JSON arrays that hold no records"),
        (json.dumps([RECORDS]), "records inside arrays"),
        ("".join(f"\x1e{json.dumps(record)}\n" for record in RECORDS), "text sequence.*tr -d"),
        (f"callback({json.dumps(RECORDS)});", "JSONP"),
        (f"// made by hand\n{json.dumps(RECORDS)}", "comments.*remove"),
        (f"/* made\nby hand */ {json.dumps(RECORDS[0])}", "comments.*remove"),
        ("\n".join(repr([1, text]) for text in TEXTS), "Python's lists"),
        ("\n".join(repr((text, 1)) for text in TEXTS), "Python's lists or tuples"),
        (repr(TEXTS), "Python's lists"),
        (pickle.dumps(RECORDS, 0), "pickle"),
        (pickle.dumps(TEXTS, 1), "pickle|binary"),
        (pickle.dumps({"texts": TEXTS}, 0), "pickle"),
    ],
)
def test_other_shapes_are_refused_with_a_remedy_and_read_by_force(tmp_path, data, what):
    path = written(tmp_path, data)
    with pytest.raises(ValueError, match=f"looks like.*({what})"):
        choose_source(InputStream(path))
    if "pickle" not in what:
        assert choose_source(InputStream(path), options=SourceOptions(force=True))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[ ] Buy the milk.\n[ ] And the bread.\n", TextSource),
        ('["Sic!] he said. Nobody answered.\n', TextSource),
        ("[link](x) leads there. It is short.\n", TextSource),
        ("('Tis a note), and it is long. It ends.\n", TextSource),
        ('"One," he said. "Two."\n\n"Three." And four.\n', TextSource),
        ("# A heading\n[1] See there. And here.\n", TextSource),
        (json.dumps([None, *RECORDS]), JsonSource),
        ("\n".join(json.dumps(record) * 2 for record in RECORDS), JsonSource),
        (",\n".join(map(json.dumps, RECORDS)), JsonSource),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}\n", JsonLinesSource),
    ],
)
def test_what_resembles_them_is_read_as_what_it_is(tmp_path, text, kind):
    assert type(choose_source(InputStream(written(tmp_path, text)))) is kind
