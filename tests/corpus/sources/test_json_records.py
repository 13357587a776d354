"""JSON lines and arrays: documents, blocks of any size, broken records, long texts, memory."""

import gzip
import json
import resource
from multiprocessing import get_context

import pytest

from minimoe_dist.corpus.blocks import Document, Problems
from minimoe_dist.corpus.sources import JsonLinesSource, JsonSource, RecordReader
from minimoe_dist.corpus.streams import InputStream
from tests.corpus.sources.documents import read, sentences

TEXT = 'He said: "{{\\"a\\": [1]}}" to \\n them. 他说：“好。” Bye 😀.\nA line of document {}.'
RECORDS = [
    {"id": n, "dataType": "x", "title": f"T{n}", "content": TEXT.format(n) + " More text." * n}
    for n in range(40)
]
LINES = [json.dumps(record, ensure_ascii=n % 2 == 0) for n, record in enumerate(RECORDS)]
DOCUMENTS = [Document(r["title"], r["content"].split("\n")) for r in RECORDS]
LAYOUTS = {
    "array": (JsonSource, json.dumps(RECORDS, ensure_ascii=False)),
    "escaped array": (JsonSource, json.dumps(RECORDS)),
    "array of lines": (JsonSource, "[\n" + ",\n".join(LINES) + "\n]\n"),
    "array with a byte order mark": (JsonSource, "\ufeff" + json.dumps(RECORDS)),
    "records": (JsonSource, json.dumps({"RECORDS": RECORDS}, ensure_ascii=False)),
    "records, indented": (JsonSource, json.dumps({"n": 1, "RECORDS": RECORDS, "m": [2]}, indent=1)),
    "two arrays": (JsonSource, json.dumps(RECORDS[:9]) + "\n" + json.dumps(RECORDS[9:])),
    "objects": (JsonSource, "\n".join(json.dumps(record, indent=2) for record in RECORDS)),
    "lines": (JsonLinesSource, "\n".join(LINES)),
    "lines with line ends of Windows": (JsonLinesSource, "\r\n".join(LINES) + "\r\n"),
}


def written(tmp_path, text):
    path = tmp_path / "input"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_are_documents(tmp_path, layout):
    kind, text = LAYOUTS[layout]
    documents, problems = read(kind(), written(tmp_path, text))
    assert documents == DOCUMENTS
    assert not problems.counts


@pytest.mark.parametrize("size", [100, 333, 1000, 4096])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_of_any_size_give_the_same_sentences(tmp_path, layout, size):
    kind, text = LAYOUTS[layout]
    path = written(tmp_path, text)
    source = kind(block_bytes=size, longest_sentence=6)
    assert len(list(source.blocks(InputStream(str(path))))) > 3
    joined = ["".join("".join(found).split()) for found in sentences(source, path)]
    assert joined == ["".join("".join(d.lines).split()) for d in DOCUMENTS]


@pytest.mark.parametrize("layout", ["array", "records, indented", "lines"])
def test_compressed_files_give_the_same_documents(tmp_path, layout):
    kind, text = LAYOUTS[layout]
    path = written(tmp_path, gzip.compress(text.encode()))
    assert read(kind(block_bytes=1 << 14), path)[0] == DOCUMENTS


@pytest.mark.parametrize("kind", [JsonSource, JsonLinesSource])
@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("separator", [" ", "\n"])
def test_a_text_longer_than_a_block_gives_what_its_lines_give(tmp_path, kind, escaped, separator):
    parts = [f'Sentence {n} of \\ 3.14 "quoted" words 😀. 他说：“第{n}句。”' for n in range(40_000)]
    record = {"html": "<p>" * 900_000, "text": separator.join(parts), "title": "T", "n": [1, {}]}
    text = json.dumps([record, RECORDS[0]], ensure_ascii=escaped)
    if kind is JsonLinesSource:
        text = json.dumps(record, ensure_ascii=escaped) + "\n" + LINES[0]
    path = written(tmp_path, text)
    assert max(len(block.read()) for block in kind().blocks(InputStream(str(path)))) < 1.1 * (
        1 << 20
    )
    first, second = sentences(kind(), path)
    assert first == [
        s for part in parts for s in (part[: part.index("他")].strip(), part[part.index("他") :])
    ]
    assert len(second) == 4


@pytest.mark.parametrize(
    ("broken", "kept", "counts"),
    [
        (LINES[9].replace('"title"', '"title'), 39, "bad_json_records"),
        (LINES[9].replace('"content": ', '"content": "'), 39, "bad_json_records"),
        (LINES[9][:-30], 39, "bad_json_records"),
        ('{"id": 9,, "content": "x"}', 39, "bad_json_records"),
        ("null", 39, "bad_json_records"),
        ('{"id": 9, "title": "T"}', 39, "records_without_text"),
        ('{"id": 9, "content": null}', 39, "records_without_text"),
    ],
)
def test_a_broken_record_of_an_array_is_noted_by_its_place(tmp_path, broken, kept, counts):
    data = ("[\n" + ",\n".join([*LINES[:9], broken, *LINES[10:]]) + "]").encode()
    path = written(tmp_path, data)
    for size in (512, 1 << 20):
        documents, problems = read(JsonSource(block_bytes=size, longest_sentence=6), path)
        assert len(documents) == kept
        assert problems.counts == {counts: 1}
        offset = data.index(broken.encode())
        assert problems.messages[0].startswith(f"{path}:11: byte {offset}: ")
    with pytest.raises(ValueError, match=f"{path}:11: byte {offset}: "):
        read(JsonSource(), path, strict=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" + ",\n".join(LINES)[:-20], "the file ends inside the record"),
        ("[" + ",\n".join(LINES), "the file ends inside the array"),
        ("[" + ",\n".join(LINES) + "] text", "text after the end of the array"),
        ("[" + ",\n".join(LINES) + "}]", "no text may stand"),
        ("\n".join(LINES) + "]", "a bracket that nothing has opened"),
    ],
)
def test_what_does_not_belong_at_an_arrays_end_is_noted(tmp_path, text, message):
    documents, problems = read(JsonSource(), written(tmp_path, text))
    assert documents[:39] == DOCUMENTS[:39]
    assert len(problems.messages) == 1 and message in problems.messages[0]


def test_broken_lines_are_noted_by_their_number(tmp_path):
    lines = [*LINES[:4], LINES[4][:-9], "[1]", "", '{"a": 1}', *LINES[5:]]
    documents, problems = read(JsonLinesSource(), written(tmp_path, "\n".join(lines)))
    assert len(documents) == 39
    assert problems.counts == {"bad_json_records": 1, "records_without_text": 2}
    assert [message.split(":")[1] for message in problems.messages] == ["5", "6", "8"]


def test_a_broken_line_longer_than_a_block_is_skipped(tmp_path):
    text = f'{{"text": "x" {"y. " * 1_000_000}\n{LINES[0]}\n'
    documents, problems = read(JsonLinesSource(), written(tmp_path, text))
    assert documents == DOCUMENTS[:1]
    assert problems.counts == {"bad_json_records": 1}


@pytest.mark.parametrize("layout", ["array of lines", "lines"])
@pytest.mark.parametrize(
    ("right", "wrong", "shown", "count"),
    [
        (b"T7", b"T\xff", "T\ufffd", "invalid_utf8_lines"),
        (b"T7", b"T\0" + b"7", "T7", "nul_byte_lines"),
        (b"T7", b"T\\u00007", "T7", "nul_byte_lines"),
        (b"T7", b"T\\ud83d", "T\ufffd", "lone_surrogates"),
    ],
)
def test_bad_characters_are_repaired_and_noted(tmp_path, layout, right, wrong, shown, count):
    kind, text = LAYOUTS[layout]
    path = written(tmp_path, text.encode().replace(b'"' + right + b'"', b'"' + wrong + b'"'))
    documents, problems = read(kind(), path)
    assert [document.title for document in documents][6:9] == ["T6", shown, "T8"]
    assert problems.counts == {count: 1}
    assert problems.messages[0].startswith(f"{path}:{8 + (kind is JsonSource)}:")


def test_nesting_too_deep_for_the_parser_is_a_broken_record(tmp_path):
    text = "\n".join([LINES[0], '{"a": ' + "[" * 5000 + "]" * 5000 + "}", LINES[1]])
    documents, problems = read(JsonLinesSource(), written(tmp_path, text))
    assert (len(documents), dict(problems.counts)) == (2, {"bad_json_records": 1})


def test_keys_can_be_chosen(tmp_path):
    record = {"text": "no", "title": "no", "body": ["One.", "Two.\nThree."], "head": "H"}
    source = JsonLinesSource(RecordReader(text_key="body", title_key="head"))
    documents, _ = read(source, written(tmp_path, json.dumps(record)))
    assert documents == [Document("H", ["One.", "Two.", "Three."])]


def test_a_title_that_opens_the_text_is_left_out_of_it(tmp_path):
    record = {"title": "Head", "text": "Head\n\nA text."}
    documents, _ = read(JsonLinesSource(), written(tmp_path, json.dumps(record)))
    assert documents == [Document("Head", ["A text."])]


def test_wikiextractors_records_are_unescaped(tmp_path):
    url = "https://x.org/wiki?curid=1"
    record = {"id": "1", "url": url, "title": "A &amp; B", "text": "a &lt; b\n\n&amp;"}
    documents, _ = read(JsonLinesSource(), written(tmp_path, json.dumps(record)))
    assert documents == [Document("A & B", ["a < b", "&"])]


@pytest.mark.parametrize("kind", ["array", "one record"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind):
    path = tmp_path / "input"
    with open(path, "w", encoding="utf-8") as stream:
        piece = "今天天气很好。 A sentence of some words. " * 2500
        if kind == "array":
            record = json.dumps({"id": 1, "title": "T", "content": piece}, ensure_ascii=False)
            stream.write("[" + ",".join([record] * 900) + "]")
        else:
            stream.write('[{"content": "')
            stream.writelines(piece for _ in range(900))
            stream.write('"}]')
    assert path.stat().st_size > 100e6

    def peak(queue):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        source = JsonSource()
        count = size = 0
        for block in source.blocks(InputStream(str(path))):
            count, size = count + 1, max(size, len(block.read()))
        queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, count, size))

    context = get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=peak, args=(queue,))
    process.start()
    grown, count, size = queue.get()
    process.join()
    assert count > 90 and size < 1.1 * (1 << 20)
    assert grown < 24 * 1024


@pytest.mark.parametrize(
    ("text", "kept", "lost"),
    [
        (json.dumps(RECORDS[:9]) + "\n" + "\n".join(LINES[9:]), 40, 0),
        (json.dumps(RECORDS[:9]) + " 中文 " + "\n".join(LINES[9:]), 40, 3),
        (json.dumps(RECORDS[:9]) + " 中文", 9, 2),
        (json.dumps({"RECORDS": RECORDS[:9], "n": [{}]}) + "中文", 9, 12),
        (json.dumps({"RECORDS": RECORDS[:9]}) + json.dumps({"RECORDS": RECORDS[9:]}), 40, 0),
        (json.dumps({"RECORDS": RECORDS[:9], "more": RECORDS[9:]}), 40, 11),
        ("\ufeff" + json.dumps(RECORDS[:9]) + "\ufeff" + json.dumps(RECORDS[9:]), 40, 0),
    ],
)
def test_what_follows_an_array_is_read_or_lost_by_its_length(tmp_path, text, kept, lost):
    source, problems = JsonSource(), Problems()
    blocks = list(source.blocks(InputStream(str(written(tmp_path, text)))))
    documents = [document for block in blocks for document in source.documents(block, problems)]
    assert documents == DOCUMENTS[:kept]
    assert sum(block.damage.lost for block in blocks if block.damage) == lost


@pytest.mark.parametrize(
    "record",
    [
        {"text": "", "content": "A text."},
        {"text": None, "content": "A text."},
        {"text": [" "], "content": "A text."},
        {"text": 3, "content": "A text."},
        {"text": "A text.", "content": "Another."},
    ],
)
def test_the_first_key_that_has_text_counts(tmp_path, record):
    documents, _ = read(JsonLinesSource(), written(tmp_path, json.dumps(record)))
    assert documents == [Document(None, ["A text."])]


def test_a_byte_order_mark_before_a_later_line_does_no_harm(tmp_path):
    text = f"{LINES[0]}\n\ufeff{LINES[1]}\n"
    documents, problems = read(JsonLinesSource(), written(tmp_path, text))
    assert (documents, dict(problems.counts)) == (DOCUMENTS[:2], {})
