"""Word marks beside a corpus: any cut, any continuation gives the same bits."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from minimoe_dist.data.indexed import IndexedCorpus
from minimoe_dist.data.indexed_format import WORDS_HEADER, WordMarks, WordMarksWriter, words_bytes
from minimoe_dist.data.indexed_writing import IndexedCorpusWriter


def test_marks_survive_any_sequence_of_additions_checkpoints_and_kills(tmp_path):
    random = np.random.default_rng(0)
    path = str(tmp_path / "c.words")
    stream = open(path, "w+b")  # noqa: SIM115
    writer, marks, safe = WordMarksWriter(stream), np.zeros(0, bool), 0
    for _ in range(300):
        more = random.random(random.integers(0, 3000)) < 0.5
        writer.add(more)
        marks = np.concatenate([marks, more])
        if random.random() < 0.4:
            writer.flush()
            stream.flush()
            safe = marks.size
        if random.random() < 0.3:
            # What a kill leaves: the bytes that have reached the system, and no more.
            shutil.copy(path, path + ".killed")
            stream.close()
            os.replace(path + ".killed", path)
            stream = open(path, "r+b")  # noqa: SIM115
            writer, marks = WordMarksWriter(stream, safe), marks[:safe]
    writer.flush()
    stream.close()
    found = WordMarks(str(tmp_path / "c"), marks.size)
    assert np.array_equal(found.read(0, marks.size), marks)
    assert np.array_equal(found.read(13, 77), marks[13:77])


def write(prefix, **options):
    with IndexedCorpusWriter(str(prefix), 100, segmenter="test 1", **options) as writer:
        writer.add_documents(
            np.arange(11), np.array([4, 7]), np.array([2]), word_marks=np.arange(11) % 3 > 0
        )
    return str(prefix)


def test_a_corpus_gives_the_marks_of_its_sentences(tmp_path):
    corpus = IndexedCorpus.open(write(tmp_path / "c"))
    assert corpus.has_word_marks
    assert corpus.manifest.segmenter == "test 1"
    assert corpus.word_continuations(1, 2).tolist() == (np.arange(4, 11) % 3 > 0).tolist()
    corpus.verify_hashes()


def test_a_corpus_without_marks_says_so(tmp_path):
    with IndexedCorpusWriter(str(tmp_path / "c"), 100) as writer:
        writer.add_document([[1]])
    with pytest.raises(ValueError, match="--whole_words"):
        IndexedCorpus.open(str(tmp_path / "c")).word_continuations(0, 1)


FAULTS = {
    "no such file": os.unlink,
    "truncated file": lambda path: os.truncate(path, 5),
    "which take": lambda path: os.truncate(path, words_bytes(11) - 1),
    "wrong magic": lambda path: Path(path).write_bytes(b"X" + Path(path).read_bytes()[1:]),
}


@pytest.mark.parametrize("message", FAULTS)
def test_damaged_marks_are_refused(tmp_path, message):
    prefix = write(tmp_path / "c")
    FAULTS[message](prefix + ".words")
    with pytest.raises(ValueError, match=message):
        IndexedCorpus.open(prefix)


def test_hashes_find_a_flipped_mark(tmp_path):
    prefix = write(tmp_path / "c")
    with open(prefix + ".words", "r+b") as stream:
        stream.seek(WORDS_HEADER.size)
        stream.write(b"\xff")
    with pytest.raises(ValueError, match=r"\.words: contents differ"):
        IndexedCorpus.open(prefix).verify_hashes()


def test_marks_of_a_replaced_corpus_do_not_stay(tmp_path):
    prefix = write(tmp_path / "c")
    with IndexedCorpusWriter(prefix, 100, overwrite=True) as writer:
        writer.add_document([[1]])
    assert not IndexedCorpus.open(prefix).has_word_marks


def test_marks_beyond_32_bits_are_read(tmp_path):
    count = 2**32 + 11
    with open(tmp_path / "c.words", "wb") as stream:
        stream.write(WORDS_HEADER.pack(b"MMWORDS\0", 1, 0, count))
        stream.seek(words_bytes(count) - 1)
        stream.write(b"\4")
    marks = WordMarks(str(tmp_path / "c"), count)
    assert np.flatnonzero(marks.read(2**32 - 5, count)).tolist() == [5 + 10]
