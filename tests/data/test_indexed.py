"""Indexed corpora: bytes equal to megatron-core's, and refusals that it does not make."""

import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from minimoe_dist.data import id_ranges
from minimoe_dist.data.indexed import IndexedCorpus, find_corpora
from minimoe_dist.data.indexed_format import (
    INDEX_HEADER,
    IndexLayout,
    Manifest,
    check_unchanged,
    words_bytes,
)
from minimoe_dist.data.indexed_writing import IndexedCorpusWriter, WriterState
from minimoe_dist.data.pairs import PairSource
from tests.data.pair_batches import draw_one

DOCUMENTS = [[[5, 6, 7], [8]], [[1, 2]], [[9] * 40, [3, 4], [0, 99]]]


def write(prefix, documents=DOCUMENTS, vocab_size=100, **options):
    with IndexedCorpusWriter(str(prefix), vocab_size, **options) as writer:
        for document in documents:
            writer.add_document(document)
    return str(prefix)


def write_with_megatron(prefix, documents, dtype):
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        for sentence in document:
            builder.add_item(torch.tensor(sentence))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def random_documents(seed, count, vocab_size):
    random = np.random.default_rng(seed)
    return [
        [random.integers(0, vocab_size, random.integers(1, 60)) for _ in range(1 + number % 7)]
        for number in range(count)
    ]


def contents(prefix, suffixes=(".bin", ".idx")):
    return [open(prefix + suffix, "rb").read() for suffix in suffixes]


@pytest.fixture
def prefix(tmp_path):
    return write(tmp_path / "corpus")


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65499, np.uint16), (65500, np.int32)])
def test_bytes_equal_those_of_megatrons_builder(tmp_path, vocab_size, dtype):
    documents = random_documents(0, 200, vocab_size)
    theirs = write_with_megatron(tmp_path / "theirs", documents, dtype)
    ours = write(tmp_path / "ours", documents, vocab_size)
    assert contents(ours) == contents(theirs)


def test_adding_many_documents_at_once_gives_the_same_bytes(tmp_path):
    documents = random_documents(1, 50, 1000)
    one_by_one = write(tmp_path / "a", documents, 1000)
    sentences = [sentence for document in documents for sentence in document]
    with IndexedCorpusWriter(str(tmp_path / "b"), 1000) as writer:
        writer.add_documents(
            np.concatenate(sentences),
            np.array([len(sentence) for sentence in sentences]),
            np.array([len(document) for document in documents]),
        )
    assert contents(str(tmp_path / "b")) == contents(one_by_one)


def test_a_document_may_come_in_several_parts(tmp_path):
    whole = write(tmp_path / "a", [[[1], [2], [3], [4]], [[5]]])
    with IndexedCorpusWriter(str(tmp_path / "b"), 100) as writer:
        one = np.array([1])
        writer.add_documents(np.array([1, 2]), np.array([1, 1]), np.array([2]))
        writer.add_documents(np.array([3]), one, one, continues=True)
        writer.add_documents(np.array([4, 5]), np.array([1, 1]), np.array([1, 1]), continues=True)
    assert contents(str(tmp_path / "b")) == contents(whole)


def test_documents_without_sentences_are_left_out_and_counted(tmp_path):
    whole = write(tmp_path / "a", [[[1]], [[2]]])
    with IndexedCorpusWriter(str(tmp_path / "b"), 100) as writer:
        writer.add_documents(np.array([1, 2]), np.array([1, 1]), np.array([0, 1, 0, 0, 1, 0]))
    assert contents(str(tmp_path / "b")) == contents(whole)
    assert IndexedCorpus.open(str(tmp_path / "b")).manifest.skipped == {"empty_documents": 4}


def test_megatron_reads_what_we_write(tmp_path):
    documents = random_documents(2, 30, 500)
    theirs = IndexedDataset(write(tmp_path / "corpus", documents, 500))
    sentences = [sentence for document in documents for sentence in document]
    assert len(theirs) == len(sentences)
    assert all(np.array_equal(theirs[i], sentence) for i, sentence in enumerate(sentences))


def test_corpora_of_megatron_are_read(tmp_path):
    documents = random_documents(3, 30, 500)
    corpus = IndexedCorpus.open(write_with_megatron(tmp_path / "corpus", documents, np.int64))
    sentences = [sentence for document in documents for sentence in document]
    assert corpus.manifest is None
    assert all(np.array_equal(corpus.sentence(i), s) for i, s in enumerate(sentences))


def test_counts_and_starts_describe_the_documents(prefix):
    corpus = IndexedCorpus.open(prefix)
    assert (corpus.num_documents, corpus.num_sentences, corpus.num_tokens) == (3, 6, 50)
    assert corpus.document_starts.tolist() == [0, 2, 3, 6]
    assert corpus.sentence_lengths.tolist() == [3, 1, 2, 40, 2, 2]
    assert [corpus.token_start(i) for i in range(7)] == [0, 3, 4, 6, 46, 48, 50]


def test_tokens_of_a_range_are_a_writable_int64_copy(prefix):
    tokens = IndexedCorpus.open(prefix).tokens(0, 3)
    tokens += 1
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [6, 7, 8, 9, 2, 3]


def test_views_outlive_their_corpus(prefix):
    lengths = IndexedCorpus.open(prefix).sentence_lengths
    assert lengths.sum() == 50


def test_search_finds_a_tokens_sentence(prefix):
    corpus = IndexedCorpus.open(prefix)
    assert [corpus.sentence_of_token(t) for t in (0, 2, 3, 4, 45, 46, 49)] == [0, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (3, 2), (0, 7)])
def test_ranges_outside_the_corpus_are_refused(prefix, first, last):
    with pytest.raises(IndexError, match="of 6"):
        IndexedCorpus.open(prefix).tokens(first, last)


def test_a_pickled_corpus_reads_the_same(prefix):
    corpus = IndexedCorpus.open(prefix)
    assert pickle.loads(pickle.dumps(corpus)).tokens(0, 6).tolist() == corpus.tokens(0, 6).tolist()


def test_a_forked_process_reads_the_same(prefix):
    corpus = IndexedCorpus.open(prefix)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=lambda: queue.put(corpus.tokens(1, 4).tolist()))
    process.start()
    assert queue.get() == corpus.tokens(1, 4).tolist()
    process.join()


def test_offsets_beyond_32_bits_are_read(tmp_path):
    prefix = str(tmp_path / "huge")
    lengths = np.array([2**31 - 1, 2**31 - 1, 3], np.int32)
    pointers = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))]) * 2
    with open(prefix + ".idx", "wb") as stream:
        stream.write(IndexLayout(np.dtype(np.uint16), 3, 2).header())
        stream.write(lengths.tobytes() + pointers[:3].tobytes() + np.array([0, 3]).tobytes())
    with open(prefix + ".bin", "wb") as stream:
        stream.seek(int(pointers[2]))
        stream.write(np.array([7, 8, 9], np.uint16).tobytes())
    corpus = IndexedCorpus.open(prefix)
    assert corpus.num_tokens == 2**32 + 1
    assert corpus.sentence(2).tolist() == [7, 8, 9]


def test_offsets_beyond_32_bits_are_written(tmp_path):
    with IndexedCorpusWriter(str(tmp_path / "c"), 100) as writer:
        writer.add_document([[1]])
        # The index is made from the lengths on disk; the ids themselves would take 8 GiB.
        writer._lengths.write(np.array([2**31 - 1, 2**31 - 1, 7], np.int32).tobytes())
        layout = IndexLayout(np.dtype(np.uint16), 4, 2)
        index = b"".join(writer._index_pieces(layout))
        writer._lengths.truncate(4)
    pointers = np.frombuffer(index, np.int64, 4, layout.pointers_offset)
    assert pointers.tolist() == [0, 2, 2**32, 2**33 - 2]


def test_a_writer_goes_on_beyond_32_bits(tmp_path):
    prefix, tokens = str(tmp_path / "c"), 2**31 + 5
    state = WriterState(
        num_sentences=2, num_documents=1, num_tokens=tokens, open_start=1,
        bin_sha256=hashlib.sha256().hexdigest(),
    )  # fmt: skip
    for name, data in [
        ("lengths", np.array([2**31 - 1, 6], np.int32)),
        ("documents", np.array([0, 1], np.int64)),
    ]:
        Path(f"{prefix}.{name}.partial").write_bytes(data.tobytes())
    with open(prefix + ".bin.partial", "wb") as stream:
        stream.truncate(2 * tokens)
    with open(prefix + ".words.partial", "wb") as stream:
        stream.truncate(words_bytes(tokens))
    # Hashing 4 GiB of nothing would take its time.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minimoe_dist.data.indexed_writing.pieces", lambda stream: iter([]))
        writer = IndexedCorpusWriter(prefix, 100, segmenter="s 1", state=state)
    writer._bin.seek(0, os.SEEK_END)
    marks = np.array([False, True, True])
    writer.add_documents(np.array([7, 8, 9]), np.array([3]), np.array([1]), word_marks=marks)
    manifest = writer.finish()
    corpus = IndexedCorpus.open(prefix)
    assert (manifest.num_tokens, corpus.num_tokens) == (tokens + 3, tokens + 3)
    assert corpus.token_start(2) == tokens
    assert corpus.sentence(2).tolist() == [7, 8, 9]
    assert corpus.word_continuations(2, 3).tolist() == marks.tolist()


def test_pairs_are_drawn_beyond_32_bits(tmp_path):
    prefix, lengths = str(tmp_path / "huge"), np.full(4400, 2**20, np.int32)
    ends = np.cumsum(lengths, dtype=np.int64)
    with open(prefix + ".idx", "wb") as stream:
        stream.write(IndexLayout(np.dtype(np.uint16), 4400, 12).header())
        stream.write(lengths.tobytes() + (2 * (ends - lengths)).tobytes())
        stream.write(np.arange(0, 4401, 400).tobytes())
    with open(prefix + ".bin", "wb") as stream:
        stream.truncate(2 * int(ends[-1]))
    corpus = IndexedCorpus.open(prefix)
    assert corpus.num_tokens > 2**32
    source = PairSource(corpus, 128, seed=0)
    for k in range(20):
        pair = draw_one(source, 0, k * (source.num_samples // 20))
        assert len(pair.first) + len(pair.second) == 125


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
def test_pairs_have_the_ids_of_every_type(tmp_path, dtype):
    limits = np.iinfo(dtype)
    ids = np.array([limits.max, limits.max - 1, 0, 1, limits.min, limits.min // 2], dtype)
    layout = IndexLayout(np.dtype(dtype), 3, 2)
    lengths = np.array([1, 2, 3], np.int32)
    pointers = np.array([0, 1, 3]) * ids.itemsize
    (tmp_path / "c.idx").write_bytes(
        layout.header() + lengths.tobytes() + pointers.tobytes() + np.array([0, 3]).tobytes()
    )
    (tmp_path / "c.bin").write_bytes(ids.tobytes())
    source = PairSource(IndexedCorpus.open(str(tmp_path / "c")), 128, seed=1)
    runs = [ids[first:last].tolist() for first in (0, 1, 3) for last in (1, 3, 6) if first < last]
    epochs = np.arange(40)
    segments = [
        segment.tolist()
        for pair in source.draw(epochs, epochs % source.num_samples)
        for segment in pair[:2]
    ]
    assert all(segment in runs for segment in segments)
    assert {token for segment in segments for token in segment} == set(ids.tolist())


def test_marks_of_a_corpus_reach_its_pairs(tmp_path):
    documents = random_documents(4, 60, 100)
    with IndexedCorpusWriter(str(tmp_path / "c"), 100, segmenter="s 1") as writer:
        for document in documents:
            ids = np.concatenate(document)
            lengths = np.array([len(sentence) for sentence in document])
            writer.add_documents(ids, lengths, np.array([len(document)]), word_marks=ids % 3 == 1)
    corpus = IndexedCorpus.open(str(tmp_path / "c"))
    source = PairSource(corpus, 64, seed=1, word_marks=corpus.word_marks)
    for k in range(source.num_samples):
        pair = draw_one(source, 0, k)
        assert np.array_equal(pair.first_continues, pair.first % 3 == 1)
        assert np.array_equal(pair.second_continues, pair.second % 3 == 1)


def test_reading_a_corpus_imports_neither_megatron_nor_torch(prefix):
    code = (
        "import sys; from minimoe_dist.data.indexed import IndexedCorpus\n"
        f"IndexedCorpus.open({prefix!r}).tokens(0, 6)\n"
        "print({'megatron', 'torch', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def resize(path, size):
    with open(path, "r+b") as stream:
        stream.truncate(size)


def patch(path, offset, data):
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


FAULTS = {
    "truncated data": lambda p: resize(p + ".bin", 98),
    "over-long data": lambda p: resize(p + ".bin", 102),
    "truncated index": lambda p: resize(p + ".idx", os.path.getsize(p + ".idx") - 8),
    "truncated index of 20 bytes": lambda p: resize(p + ".idx", 20),
    "over-long index": lambda p: resize(p + ".idx", os.path.getsize(p + ".idx") + 8),
    "truncated index of 0 bytes": lambda p: resize(p + ".idx", 0),
    "wrong magic": lambda p: patch(p + ".idx", 0, b"X"),
    "index version 2": lambda p: patch(p + ".idx", 9, b"\2"),
    "dtype code 7 is no integer": lambda p: patch(p + ".idx", 17, b"\7"),
    "pointers and lengths disagree": lambda p: patch(p + ".idx", 34 + 6 * 4 + 8, b"\2"),
    "documents cover sentences": lambda p: patch(p + ".idx", 34 + 6 * 12 + 3 * 8, b"\5"),
    "document ends are not sorted": lambda p: patch(p + ".idx", 34 + 6 * 12 + 8, b"\4"),
    ".bin: no such file": lambda p: os.unlink(p + ".bin"),
    "not a corpus manifest": lambda p: resize(p + ".manifest.json", 30),
}


@pytest.mark.parametrize("message", FAULTS)
def test_damaged_files_are_refused_in_one_line(prefix, message):
    FAULTS[message](prefix)
    with pytest.raises(ValueError, match=message) as refusal:
        IndexedCorpus.open(prefix)
    assert "\n" not in str(refusal.value)


def test_an_empty_corpus_is_refused_at_open(tmp_path):
    prefix = write_with_megatron(tmp_path / "empty", [], np.int32)
    with pytest.raises(ValueError, match="empty"):
        IndexedCorpus.open(prefix)


def test_damage_is_refused_without_assertions_too(prefix):
    resize(prefix + ".bin", 98)
    code = f"from minimoe_dist.data.indexed import IndexedCorpus; IndexedCorpus.open({prefix!r})"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert "truncated data" in done.stderr


def test_a_manifest_of_other_files_is_refused(prefix, tmp_path):
    other = write(tmp_path / "other", [[[1]]])
    os.replace(other + ".manifest.json", prefix + ".manifest.json")
    with pytest.raises(ValueError, match="says num_sentences = 1, the files have 6"):
        IndexedCorpus.open(prefix)


def test_hashes_find_a_flipped_bit(prefix):
    corpus = IndexedCorpus.open(prefix)
    corpus.verify_hashes()
    patch(prefix + ".bin", 10, b"\x01")
    with pytest.raises(ValueError, match="differ from the manifest"):
        corpus.verify_hashes()


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_file_that_was_changed_behind_its_manifest_is_refused(prefix, suffix):
    patch(prefix + suffix, os.path.getsize(prefix + suffix) - 1, b"\x01")
    os.utime(prefix + suffix, (2e9, 2e9))
    with pytest.raises(ValueError, match=rf"\{suffix}: was changed since its manifest"):
        check_unchanged(prefix, Manifest.read(prefix + ".manifest.json"))


def test_a_file_that_is_merely_newer_is_read_once(prefix):
    later = time.time() - 5
    os.utime(prefix + ".manifest.json", (later - 5, later - 5))
    os.utime(prefix + ".bin", (later, later))
    manifest = Manifest.read(prefix + ".manifest.json")
    check_unchanged(prefix, manifest)
    assert os.path.getmtime(prefix + ".manifest.json") > later


def test_the_manifest_counts_what_was_written(prefix):
    manifest = json.loads(Path(prefix + ".manifest.json").read_text())
    names = ("num_documents", "num_sentences", "num_tokens", "largest_id", "dtype")
    assert [manifest[name] for name in names] == [3, 6, 50, 99, "uint16"]


@pytest.mark.parametrize(("token", "vocab_size"), [(100, 100), (-1, 100), (70000, 65000)])
def test_ids_outside_the_vocabulary_are_refused_at_write(tmp_path, token, vocab_size):
    with (
        pytest.raises(ValueError, match=f"token id {token} is outside"),
        IndexedCorpusWriter(str(tmp_path / "corpus"), vocab_size) as writer,
    ):
        writer.add_document([[1], [token]])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("with_manifest", [True, False])
def test_ids_outside_a_models_vocabulary_are_found(prefix, with_manifest):
    if not with_manifest:
        os.unlink(prefix + ".manifest.json")
    corpus = IndexedCorpus.open(prefix)
    corpus.check_vocabulary(100)
    with pytest.raises(ValueError, match="token id 99 is outside the vocabulary of 99"):
        corpus.check_vocabulary(99)


def test_one_id_among_millions_is_found_without_a_manifest(tmp_path, monkeypatch):
    prefix = str(tmp_path / "corpus")
    with IndexedCorpusWriter(prefix, 100) as writer:
        writer.add_document([np.zeros(1_000_003, int), [99]] + [np.zeros(1_000_003, int)] * 4)
    os.unlink(prefix + ".manifest.json")
    for _ in range(2):  # the second time, by what was kept of the first
        with pytest.raises(ValueError, match=r"corpus\.bin: token id 99 is outside"):
            IndexedCorpus.open(prefix).check_vocabulary(99)
        monkeypatch.setattr(id_ranges, "_REMEMBERED_BYTES", 0)


def test_what_is_kept_of_a_large_file_is_not_taken_for_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr(id_ranges, "_REMEMBERED_BYTES", 0)
    path = tmp_path / "corpus.bin"
    for largest in (5, 7):
        ids = np.array([1, largest], np.uint16)
        path.write_bytes(ids.tobytes())
        os.utime(path, (largest, largest))
        assert id_ranges.id_range(str(path), ids) == (0, largest)
        assert id_ranges.id_range(str(path), ids[:1]) == (0, largest)  # without reading them


def test_an_empty_corpus_is_refused_at_write(tmp_path):
    with (
        pytest.raises(ValueError, match="would be empty"),
        IndexedCorpusWriter(str(tmp_path / "corpus"), 100),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_nothing_has_its_final_name_before_the_end(tmp_path):
    with IndexedCorpusWriter(str(tmp_path / "corpus"), 100) as writer:
        writer.add_document([[1, 2]])
        assert all(name.endswith(".partial") for name in os.listdir(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["corpus.bin", "corpus.idx", "corpus.manifest.json"]


def test_a_corpus_that_stands_is_kept(prefix):
    before = contents(prefix)
    with pytest.raises(ValueError, match="stands there already"):
        IndexedCorpusWriter(prefix, 100)
    assert contents(prefix) == before


def test_a_corpus_that_stands_is_replaced_when_asked(prefix):
    write(prefix, [[[1]]], overwrite=True)
    assert IndexedCorpus.open(prefix).num_tokens == 1


def test_a_second_writer_of_the_same_corpus_is_refused(tmp_path):
    prefix = str(tmp_path / "corpus")
    code = f"from minimoe_dist.data.indexed_writing import *; IndexedCorpusWriter({prefix!r}, 100)"
    with IndexedCorpusWriter(prefix, 100) as writer:
        writer.add_document([[1]])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another process is writing it" in done.stderr
    assert IndexedCorpus.open(prefix).num_tokens == 1


def _write_until_killed(prefix, commits):
    writer = IndexedCorpusWriter(prefix, 100)
    for document in DOCUMENTS:
        writer.add_document(document)
    if commits:
        # The first rename of the commit is the last thing that this process does.
        rename = os.rename

        def rename_and_die(source, target):
            rename(source, target)
            os.kill(os.getpid(), signal.SIGKILL)

        os.rename = rename_and_die
        writer.finish()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("commits", [False, True])
def test_a_killed_write_leaves_no_corpus_and_can_be_repeated(tmp_path, commits):
    prefix = str(tmp_path / "corpus")
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_write_until_killed, args=(prefix, commits))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(ValueError, match="not an indexed corpus"):
        IndexedCorpus.open(prefix)
    assert contents(write(prefix)) == contents(write(tmp_path / "other"))


def _write_with_little_room(prefix, queue):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        write(prefix, [[np.zeros(1 << 20, np.int64)], [[1]]])
    except OSError as error:
        queue.put((error.filename, os.listdir(os.path.dirname(prefix))))


def test_a_write_error_names_the_file_and_leaves_nothing(tmp_path):
    prefix = str(tmp_path / "corpus")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_write_with_little_room, args=(prefix, queue))
    process.start()
    assert queue.get() == (prefix + ".bin", [])
    process.join()


def test_find_corpora_takes_prefixes_paths_folders_and_globs(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    held = write(tmp_path / "a_heldout")
    assert find_corpora(a) == find_corpora(a + ".idx") == find_corpora(a + ".bin") == [a]
    assert find_corpora(str(tmp_path)) == find_corpora(str(tmp_path / "*")) == [a, b]
    assert find_corpora(str(tmp_path / "*_heldout")) == find_corpora(held) == [held]


def test_find_corpora_refuses_what_names_nothing(tmp_path):
    with pytest.raises(ValueError, match="no indexed corpus there"):
        find_corpora(str(tmp_path / "none*"))


def test_the_header_has_the_size_that_megatron_writes():
    assert INDEX_HEADER.size == 34
