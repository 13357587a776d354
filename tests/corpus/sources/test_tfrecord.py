"""TFRecords of pairs: the published builder's own, damaged ones, other vocabularies."""

import shutil
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from minimoe_dist.corpus.blocks import Problems
from minimoe_dist.corpus.sources import TextSource, TFRecordSource, choose_source, find_inputs
from minimoe_dist.corpus.streams import InputStream

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "doc_00.format.tfrecord"
BERT = {"cls": 101, "sep": 102}


def varint(number):
    parts = []
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number, data):
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def integers(name, values, packed=True):
    if packed:
        numbers = field(1, b"".join(map(varint, values)))
    else:
        numbers = b"".join(b"\x08" + varint(value) for value in values)
    return field(1, field(1, name.encode()) + field(2, field(3, numbers)))


def checksum(data):
    value = google_crc32c.value(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(indices, segments, packed=True):
    lists = integers("indices", indices, packed) + integers("segments", segments, packed)
    message = field(1, lists)
    length = struct.pack("<Q", len(message))
    return length + checksum(length) + message + checksum(message)


PAIRS = [([7, 70_000, 300], [5]), ([9], [8, 8, 2**31 - 1]), ([1, 2], []), ([127, 128], [16_384])]


def record_of(first, second, packed=True):
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    return record([101, *first, 102, *second, 102], segments, packed)


RECORDS = [record_of(first, second) for first, second in PAIRS]


def documents_of(path, size=1 << 20, special_ids=BERT, strict=False):
    """The documents as lists of sentences, and the problems."""
    source, problems, documents = TFRecordSource(size), Problems(strict=strict), []
    for block in source.blocks(InputStream(str(path))):
        if problems.note_damage(block):
            continue
        pairs = source.pairs(block, special_ids, problems)
        ends = np.cumsum(pairs.sentence_lengths)[:-1]
        sentences = iter([ids.tolist() for ids in np.split(pairs.tokens, ends)])
        documents += [[next(sentences) for _ in range(n)] for n in pairs.document_lengths]
        assert next(sentences, None) in (None, [])
    return documents, problems


def written(tmp_path, records, index=None):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(b"".join(records))
    if index is not None:
        offsets = np.cumsum([0, *map(len, index)])
        lines = [f"{offset} {len(r)}\n" for offset, r in zip(offsets, index, strict=False)]
        (tmp_path / "x.tfrecord.index").write_text("".join(lines))
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_a_pair_is_a_document_of_two_sentences(tmp_path, packed):
    path = written(tmp_path, [record_of(*pair, packed) for pair in PAIRS])
    documents, problems = documents_of(path)
    assert documents == [[part for part in pair if part] for pair in PAIRS]
    assert not problems.counts


@pytest.mark.parametrize("size", [60, 100, 1000])
def test_blocks_of_any_size_give_the_same_pairs(tmp_path, size):
    path = written(tmp_path, RECORDS * 9, index=RECORDS * 9)
    assert documents_of(path, size)[0] == documents_of(path)[0]
    blocks = list(TFRecordSource(size).blocks(InputStream(str(path))))
    assert len(blocks) > 2
    assert sum(block.length for block in blocks) == path.stat().st_size


@pytest.mark.parametrize("with_index", [True, False])
def test_the_published_builders_file_is_read(tmp_path, with_index):
    shutil.copy(GOLDEN, tmp_path)
    if with_index:
        shutil.copy(f"{GOLDEN}.index", tmp_path)
    documents, problems = documents_of(tmp_path / GOLDEN.name)
    assert len(documents) == 16 and not problems.counts
    assert {len(document) for document in documents} == {2}
    assert documents[0][0][:5] == [1006, 2128, 1007, 14187, 3415]
    assert max(len(a) + len(b) + 3 for a, b in documents) == 128


def test_tfrecords_are_recognised(tmp_path):
    assert type(choose_source(InputStream(str(GOLDEN)))) is TFRecordSource
    assert type(choose_source(InputStream(str(written(tmp_path, [b"x" * 99]))))) is TextSource


def test_indexes_are_no_inputs(tmp_path):
    path = written(tmp_path, RECORDS, index=RECORDS)
    assert find_inputs(str(tmp_path), "x*") == [str(path)]


def test_another_format_is_not_taken_for_tfrecords(tmp_path):
    path = written(tmp_path, [b"plain text\n"])
    with pytest.raises(ValueError, match="does not begin as a tfrecord file"):
        choose_source(InputStream(str(path)), "tfrecord")


def changed(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path):
    path = written(tmp_path, [RECORDS[0], changed(RECORDS[1], 40), *RECORDS[2:]])
    documents, problems = documents_of(path)
    assert len(documents) == 3
    place = f"{path}:2: byte {len(RECORDS[0])}: "
    assert problems.messages == [place + "the checksum of the data is wrong"]
    with pytest.raises(ValueError, match=place):
        documents_of(path, strict=True)


@pytest.mark.parametrize(("with_index", "kept"), [(False, 1), (True, 3)])
def test_after_a_wrong_length_an_index_helps(tmp_path, with_index, kept):
    damaged = [RECORDS[0], changed(RECORDS[1], 3), *RECORDS[2:]]
    path = written(tmp_path, damaged, index=RECORDS if with_index else None)
    documents, problems = documents_of(path)
    assert len(documents) == kept
    assert problems.counts["bad_tfrecords"] == 1
    assert f"{path}:2: byte {len(RECORDS[0])}: " in problems.messages[-1]


def test_a_truncated_file_is_read_to_its_last_whole_record(tmp_path):
    path = written(tmp_path, [*RECORDS[:3], RECORDS[3][:-3]])
    documents, problems = documents_of(path)
    assert len(documents) == 3
    assert "the file ends inside a record" in problems.messages[0]


@pytest.mark.parametrize("index", [RECORDS[:3], [*RECORDS, b"x"], RECORDS[::-1]])
def test_an_index_that_differs_is_noted(tmp_path, index):
    documents, problems = documents_of(written(tmp_path, RECORDS, index=index))
    assert len(documents) == 4
    assert problems.counts == {"tfrecord_indexes_that_differ": 1}


def test_an_index_that_is_none_is_refused(tmp_path):
    path = written(tmp_path, RECORDS)
    (tmp_path / "x.tfrecord.index").write_text("no index")
    with pytest.raises(ValueError, match=r"x.tfrecord.index: does not have 'offset length'"):
        documents_of(path)


@pytest.mark.parametrize(
    ("indices", "segments"),
    [
        ([5, 7, 102, 8, 102], [0, 0, 0, 1, 1]),
        ([101, 7, 5, 8, 102], [0, 0, 0, 1, 1]),
        ([101, 7, 102, 8, 5], [0, 0, 0, 1, 1]),
        ([101, 7, 102, 8, 102], [0, 1, 0, 1, 1]),
        ([101, 7, 102, 8, 102], [0, 0, 0, 1]),
        ([101, 7, 102, 8, 102], [1, 1, 1, 1, 1]),
        ([], []),
    ],
)
def test_what_is_no_pair_is_noted(tmp_path, indices, segments):
    path = written(tmp_path, [RECORDS[0], record(indices, segments), *RECORDS[1:]])
    documents, problems = documents_of(path)
    assert len(documents) == 4
    assert problems.counts == {"bad_pairs": 1}
    assert problems.messages[0].startswith(f"{path}:2: ")


def test_a_message_of_another_kind_is_noted(tmp_path):
    length = struct.pack("<Q", 3)
    other = length + checksum(length) + b"abc" + checksum(b"abc")
    documents, problems = documents_of(written(tmp_path, [other, *RECORDS]))
    assert len(documents) == 4
    assert "no Example with lists" in problems.messages[0]


def test_another_vocabulary_is_refused(tmp_path):
    path = written(tmp_path, RECORDS)
    with pytest.raises(ValueError, match="give the tokenizer it was written with"):
        documents_of(path, special_ids={"cls": 2, "sep": 3})
    with pytest.raises(ValueError, match="give the tokenizer it was written with"):
        documents_of(path, special_ids={"unk": 0})


def test_reading_them_as_text_is_refused():
    source = TFRecordSource()
    with pytest.raises(ValueError, match="hold ids, not text"):
        list(source.documents(next(source.blocks(InputStream(str(GOLDEN)))), Problems()))
