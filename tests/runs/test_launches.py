"""Starts of a run by any launcher, and their ends."""

from pathlib import Path

import pytest

from minimoe_dist.runs import launches
from minimoe_dist.runs.launches import LOST, read_starts
from minimoe_dist.runs.starts import Event, add_event, read_events


@pytest.fixture(autouse=True)
def nothing_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIMOE_LAUNCH", raising=False)


def begin(folder: Path) -> None:
    launches.begin(folder, command=["distill", "run.yaml"], host="n1", launcher="alone")


def test_a_start_has_its_end(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    launches.note_hosts(["n1", "n1", "n2"])
    launches.leave("stopped by\nSIGTERM", 75)
    launches.leave("status 75", 75)  # the first word counts
    (start,) = read_starts(tmp_path / "run")
    assert start.launch.command == ["distill", "run.yaml"]
    assert list(start.hosts) == ["n1", "n2"]
    assert start.leave is not None
    assert (start.leave.reason, start.leave.status) == ("stopped by SIGTERM", 75)


def test_the_next_start_says_that_one_was_lost_and_where_it_was(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "students": {}}\n{"step": 8, "stu')
    for _ in range(2):
        begin(tmp_path)
    ends = [
        start.leave and (start.leave.reason, start.leave.step) for start in read_starts(tmp_path)
    ]
    assert ends == [(LOST, 7), (LOST, 7), None]


def test_who_noted_no_start_notes_no_end(tmp_path: Path) -> None:
    launches.leave("finished", 0)
    launches.note_hosts(["n1"])
    assert list(tmp_path.iterdir()) == []


def test_records_of_jobs_stand_beside_them(tmp_path: Path) -> None:
    add_event(tmp_path, Event(event="start", job="7"))
    begin(tmp_path)
    add_event(tmp_path, Event(event="end", job="7"))
    assert [event.event for event in read_events(tmp_path)] == ["start", "end"]
    assert len(read_starts(tmp_path)) == 1
