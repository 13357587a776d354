"""Records that would take far more memory than text: left out and counted, by what they say."""

import struct
import tracemalloc
from pathlib import Path

import pytest

from minimoe_dist.corpus.blocks import Block
from minimoe_dist.corpus.reading import Inputs, ReadingOptions
from minimoe_dist.corpus.sources import json_records
from minimoe_dist.corpus.sources.tfrecord import _masked_checksum, _read_index
from minimoe_dist.errors import UserError

MEGABYTE = 1 << 20


def blocks_of(path: Path) -> list[Block]:
    inputs = Inputs([str(path)], ReadingOptions(show_progress=False))
    return [work.block for work in inputs.work()]


@pytest.mark.parametrize("length", [48 * MEGABYTE, 1 << 40, 2**64 - 1])
def test_a_false_length_under_a_right_checksum_reads_no_more(length: int, tmp_path: Path) -> None:
    head = struct.pack("<Q", length)
    with (tmp_path / "x").open("wb") as file:
        file.write(head + struct.pack("<I", _masked_checksum(head)))
        file.truncate(32 * MEGABYTE)
    tracemalloc.start()
    (block,) = blocks_of(tmp_path / "x")
    assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    tracemalloc.stop()
    assert block.damage is not None
    assert block.damage.kind == "bad_tfrecords"


@pytest.mark.parametrize("number", ["9223372036854775808", "1" * 5000, "-x", "1e5"])
def test_an_index_of_numbers_that_no_file_has_is_refused(number: str, tmp_path: Path) -> None:
    (tmp_path / "x.index").write_text(f"0 10\n{number} 10\n")
    with pytest.raises(UserError, match="does not have 'offset length' on each line"):
        _read_index(str(tmp_path / "x"))


def test_an_index_that_is_a_line_of_megabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(b"1 " * 2 * MEGABYTE)
    with pytest.raises(UserError, match="does not have 'offset length' on each line"):
        _read_index(str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [("x.jsonl", '{"n": [', ']}\n{"text": "A sound text."}\n'), ("x.json", '[{"n": [', "]}]")],
)
def test_a_record_of_numbers_alone_is_left_out_before_it_is_parsed(
    name: str, before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_records, "_MOST_RECORD_BYTES", 2 * MEGABYTE)
    path = tmp_path / name
    path.write_text('{"text": "A first one."}\n' * (name == "x.jsonl") + before)
    with path.open("a") as file:
        for _ in range(5):
            file.write("1," * (MEGABYTE // 2))
        file.write("1" + after)
    damages = [block.damage for block in blocks_of(path) if block.damage is not None]
    assert any("too long to be one of text" in damage.message for damage in damages)
