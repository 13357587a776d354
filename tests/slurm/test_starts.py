"""Starts of a run: records, progress, restarts that come no further."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.slurm import starts

AT_TEN = {".": 10}


def start(restart: int, progress: dict[str, int], job: str = "7") -> dict[str, Any]:
    return {"event": "start", "job": job, "restart": restart, "progress": progress}


def checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


def test_records_come_back_in_order_with_their_times(tmp_path: Path) -> None:
    for number in range(3):
        starts.add_record(tmp_path, {"event": "start", "restart": number})
    found = starts.read_records(tmp_path)
    assert [one["restart"] for one in found] == [0, 1, 2]
    assert all("time" in one for one in found)


def test_a_record_cut_off_by_a_lost_node_swallows_no_other(tmp_path: Path) -> None:
    starts.starts_file(tmp_path).write_text('{"event": "sta')
    starts.add_record(tmp_path, {"event": "end"})
    assert [one["event"] for one in starts.read_records(tmp_path)] == ["end"]


def test_run_id_stays(tmp_path: Path) -> None:
    first = starts.run_id(tmp_path, [])
    assert first.startswith(f"{tmp_path.name}-")
    assert starts.run_id(tmp_path, [{"event": "start", "run_id": first}]) == first


def test_progress_is_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    for step in (5, 10):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "step_00000020.partial").mkdir()
    (tmp_path / "checkpoints" / "step_00000030").mkdir()
    assert starts.progress_of(tmp_path) == AT_TEN


def test_progress_of_stages_is_that_of_their_folders(tmp_path: Path) -> None:
    checkpoint(tmp_path / "first", 10)
    (tmp_path / "first" / "summary.json").touch()
    checkpoint(tmp_path / "second", 4)
    found = starts.progress_of(tmp_path)
    assert found == {"first": starts.FINISHED, "second": 4}
    assert starts.shown(found) == "first finished, second step 4"


def test_summary_of_an_earlier_run_finishes_nothing(tmp_path: Path) -> None:
    (tmp_path / "summary.json").touch()
    os.utime(tmp_path / "summary.json", (1, 1))
    checkpoint(tmp_path, 10)
    assert starts.progress_of(tmp_path) == AT_TEN


def test_progress_of_a_sparsification_is_its_counted_batches(tmp_path: Path) -> None:
    progress = json.dumps({"step": 12}).encode()
    entry = {"dtype": "U8", "shape": [len(progress)], "data_offsets": [0, len(progress)]}
    header = json.dumps({"progress": entry}).encode()
    content = struct.pack("<Q", len(header)) + header + progress
    (tmp_path / "importances.safetensors").write_bytes(content)
    assert starts.progress_of(tmp_path) == {".": 12}


@pytest.mark.parametrize("content", [b"", b"\xff" * 4, struct.pack("<Q", 2) + b"{}"])
def test_a_broken_state_is_no_progress(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "importances.safetensors").write_bytes(content)
    assert starts.progress_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("records", "count"),
    [
        ([start(0, {})], 0),
        ([start(0, AT_TEN)], 0),  # the first start is no restart
        ([start(0, {}), start(1, AT_TEN)], 1),
        ([start(0, {}), start(1, AT_TEN), start(2, AT_TEN), start(3, AT_TEN)], 3),
        ([start(1, AT_TEN), start(2, {".": 5}), start(3, AT_TEN)], 1),  # a damaged one between
        ([start(1, AT_TEN), start(2, AT_TEN, job="8")], 1),  # another job's do not count
        ([start(1, AT_TEN), {"event": "end", "job": "7"}, start(2, AT_TEN)], 2),
        ([start(1, AT_TEN), start(0, AT_TEN), start(1, AT_TEN)], 1),  # numbers begin anew
    ],
)
def test_restarts_without_progress_are_counted_in_a_row(
    records: list[dict[str, Any]], count: int
) -> None:
    assert starts.restarts_without_progress(records, "7", AT_TEN) == count


def test_progress_of_a_grid_is_that_of_its_cells(tmp_path: Path) -> None:
    checkpoint(tmp_path / "cells" / "seed1", 3)
    (tmp_path / "cells" / "seed2").mkdir()
    (tmp_path / "cells" / "seed2" / "result.json").touch()
    found = starts.progress_of(tmp_path)
    assert found == {"cells/seed1": 3, "cells/seed2": starts.FINISHED}
