"""Merging: bytes equal to megatron-core's own merge, and what does not belong together refused."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from minimoe_dist.data.indexed import IndexedCorpus
from minimoe_dist.data.indexed_format import IndexArrays, IndexLayout, TokenizerRecord
from minimoe_dist.data.indexed_merging import _index_pieces, _Input, merge_corpora
from minimoe_dist.data.indexed_writing import IndexedCorpusWriter

RECORD = TokenizerRecord("name", "a" * 64, 100, {"cls": 1}, True)
OTHER = TokenizerRecord("other", "b" * 64, 100, {"cls": 1}, True)


def documents(seed, count=20):
    random = np.random.default_rng(seed)
    return [
        [random.integers(0, 100, random.integers(1, 30)) for _ in range(random.integers(1, 5))]
        for _ in range(count)
    ]


def write(prefix, seed, tokenizer=RECORD, **options):
    with IndexedCorpusWriter(str(prefix), 100, tokenizer=tokenizer, **options) as writer:
        writer.skipped["short_sentences"] = seed
        for document in documents(seed):
            lengths = np.array([len(sentence) for sentence in document])
            tokens = np.concatenate(document)
            marks = tokens % 3 == 0 if options.get("segmenter") else None
            writer.add_documents(tokens, lengths, np.array([len(document)]), word_marks=marks)
    return str(prefix)


def write_with_megatron(prefix, seed, dtype=np.int32, empties=False):
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents(seed):
        for sentence in document:
            builder.add_item(torch.tensor(sentence))
        if empties:
            builder.end_document()
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def contents(prefix, suffixes=(".bin", ".idx")):
    return [open(prefix + suffix, "rb").read() for suffix in suffixes]


@pytest.mark.parametrize("empties", [False, True])
def test_megatrons_corpora_merge_as_megatron_does_it(tmp_path, empties):
    inputs = [write_with_megatron(tmp_path / str(n), n, np.int64, empties) for n in range(3)]
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int64)
    for prefix in inputs:
        builder.add_index(prefix)
    builder.finalize(str(tmp_path / "theirs.idx"))
    merge_corpora(inputs, str(tmp_path / "ours"))
    assert contents(str(tmp_path / "ours")) == contents(str(tmp_path / "theirs"))
    IndexedCorpus.open(str(tmp_path / "ours")).verify_hashes()


def test_our_corpora_merge_to_what_one_writer_gives(tmp_path):
    inputs = [write(tmp_path / str(n), n, segmenter="s 1") for n in range(3)]
    manifest = merge_corpora(inputs, str(tmp_path / "merged"))
    with IndexedCorpusWriter(
        str(tmp_path / "one"), 100, tokenizer=RECORD, segmenter="s 1"
    ) as writer:
        for document in (document for seed in range(3) for document in documents(seed)):
            tokens = np.concatenate(document)
            lengths = np.array([len(sentence) for sentence in document])
            writer.add_documents(
                tokens, lengths, np.array([len(document)]), word_marks=tokens % 3 == 0
            )
    suffixes = (".bin", ".idx", ".words")
    one, merged = str(tmp_path / "one"), str(tmp_path / "merged")
    assert contents(merged, suffixes) == contents(one, suffixes)
    assert manifest.skipped == {"short_sentences": 3}
    assert manifest.tokenizer == RECORD


REFUSED = {
    "has int64 ids": lambda p: [
        write_with_megatron(p / "a", 0), write_with_megatron(p / "b", 1, np.int64)
    ],
    "was built with other": lambda p: [write(p / "a", 0), write(p / "b", 1, OTHER)],
    "a tokenizer that it does not name": lambda p: [write(p / "a", 0), write(p / "b", 1, None)],
    "accents stripped: True": lambda p: [
        write(p / name, 0, replace(RECORD, strips_accents=strips))
        for name, strips in (("a", False), ("b", True))
    ],
    "has word marks of None": lambda p: [write(p / "a", 0, segmenter="s 1"), write(p / "b", 1)],
    "part 1 of 2 is missing": lambda p: [write(p / "a", 0, part=(0, 2))],
    "is the same part as": lambda p: [write(p / n, 0, part=(0, 2)) for n in "ab"],
    "was not built from the same inputs": lambda p: [
        write(p / "a", 0, part=(0, 2)), write(p / "b", 1, part=(1, 2), job="x")
    ],
    "is whole,": lambda p: [write(p / "a", 0, part=(0, 2)), write(p / "b", 1)],
    "nothing to merge": lambda p: [],
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_belong_together_is_refused(tmp_path, message):
    inputs = REFUSED[message](tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=message) as refusal:
        merge_corpora(inputs, str(tmp_path / "out"))
    assert "\n" not in str(refusal.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_corpus_that_does_not_know_of_accents_goes_with_any(tmp_path):
    inputs = [write(tmp_path / "a", 0, replace(RECORD, strips_accents=True))]
    inputs.append(write(tmp_path / "b", 1))
    assert merge_corpora(inputs, str(tmp_path / "out")).num_documents == 40


def test_parts_come_in_their_own_order(tmp_path):
    first, second = write(tmp_path / "a", 0, part=(0, 2)), write(tmp_path / "b", 1, part=(1, 2))
    merge_corpora([second, first], str(tmp_path / "x"))
    merge_corpora([first, second], str(tmp_path / "y"))
    assert contents(str(tmp_path / "x")) == contents(str(tmp_path / "y"))
    assert IndexedCorpus.open(str(tmp_path / "x")).manifest.part is None


def test_a_damaged_part_leaves_nothing(tmp_path):
    prefix = write(tmp_path / "in" / "a", 0)
    with open(prefix + ".bin", "r+b") as stream:
        stream.write(b"\1\1")
    with pytest.raises(ValueError, match=r"a\.bin: contents differ"):
        merge_corpora([prefix], str(tmp_path / "out" / "c"))
    assert os.listdir(tmp_path / "out") == []


def test_a_corpus_that_stands_is_kept_unless_asked(tmp_path):
    inputs = [write(tmp_path / str(n), n) for n in range(2)]
    with pytest.raises(ValueError, match="stands there already"):
        merge_corpora(inputs[:1], inputs[1])
    merge_corpora(inputs[:1], inputs[1], overwrite=True)
    assert contents(inputs[0]) == contents(inputs[1])


def test_offsets_beyond_32_bits_are_joined():
    layout = IndexLayout(np.dtype(np.uint16), 2, 2)
    lengths = np.array([2**31 - 1, 2**31 - 1], np.int32)
    arrays = IndexArrays(lengths, np.zeros(2, np.int64), np.array([0, 2]))
    inputs = [_Input("x", layout, arrays, None, 2**32 - 2)] * 2
    joined = b"".join(_index_pieces(IndexLayout(layout.dtype, 4, 3), inputs))
    pointers = np.frombuffer(joined, np.int64, 4, 34 + 16)
    assert pointers.tolist() == [n * 2 * (2**31 - 1) for n in range(4)]
    assert np.frombuffer(joined, np.int64, 3, 34 + 48).tolist() == [0, 2, 4]
