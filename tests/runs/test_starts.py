"""Starts of a run: records, and restarts that come no further."""

from pathlib import Path

import pytest

from minimoe_dist.runs.folder import RunFolder
from minimoe_dist.runs.starts import (
    Event,
    add_event,
    read_events,
    restarts_without_progress,
    run_id,
)

AT_TEN = {".": 10}


def start(restart: int, progress: dict[str, int], job: str = "7") -> Event:
    return Event(event="start", job=job, restart=restart, progress=progress)


def test_records_come_back_in_order_with_their_times(tmp_path: Path) -> None:
    for number in range(3):
        add_event(tmp_path, start(number, {}))
    found = read_events(tmp_path)
    assert [event.restart for event in found] == [0, 1, 2]
    assert all(event.time for event in found)


def test_a_record_cut_off_by_a_lost_node_swallows_no_other(tmp_path: Path) -> None:
    RunFolder(tmp_path).starts.write_text('{"event": "sta')
    add_event(tmp_path, Event(event="end"))
    assert [event.event for event in read_events(tmp_path)] == ["end"]


@pytest.mark.parametrize(
    "line", [b"\xff", b"[1]", b'{"event": "dance"}', b'{"event": "end", "job": 7}']
)
def test_lines_that_are_no_records_are_left_out(line: bytes, tmp_path: Path) -> None:
    RunFolder(tmp_path).starts.write_bytes(line + b"\n")
    add_event(tmp_path, Event(event="end"))
    assert len(read_events(tmp_path)) == 1


def test_run_id_stays(tmp_path: Path) -> None:
    first = run_id(tmp_path, [])
    assert first.startswith(f"{tmp_path.name}-")
    assert run_id(tmp_path, [Event(event="start", run_id=first)]) == first


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ([start(0, {})], 0),
        ([start(0, AT_TEN)], 0),  # the first start is no restart
        ([start(0, {}), start(1, AT_TEN)], 1),
        ([start(0, {}), start(1, AT_TEN), start(2, AT_TEN), start(3, AT_TEN)], 3),
        ([start(1, AT_TEN), start(2, {".": 5}), start(3, AT_TEN)], 1),  # a damaged one between
        ([start(1, AT_TEN), start(2, AT_TEN, job="8")], 1),  # another job's do not count
        ([start(1, AT_TEN), Event(event="end", job="7"), start(2, AT_TEN)], 2),
        ([start(1, AT_TEN), start(0, AT_TEN), start(1, AT_TEN)], 1),  # numbers begin anew
    ],
)
def test_restarts_without_progress_are_counted_in_a_row(events: list[Event], count: int) -> None:
    assert restarts_without_progress(events, "7", AT_TEN) == count
