"""Observers' files on a disk that is full for a while, and with a clock that was set back."""

import logging
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minimoe_dist.train.journal import EventFile, Journal


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file of this process grows beyond a size: a write that would is cut off there."""
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_record_that_has_no_room_is_left_out_whole_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "run" / "lines")
    assert journal.append(b"first\n")
    with full_at(8):
        assert not journal.append(b"second\n")
        assert not journal.append(b"third\n")
    assert journal.append(b"fourth\n")
    assert (tmp_path / "run" / "lines").read_bytes() == b"first\nfourth\n"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "lines: not written (File too large)" in caplog.text


def test_scalars_are_read_again_where_some_had_no_room(tmp_path: Path) -> None:
    board = EventFile(tmp_path, 1)
    with full_at(20):
        board.add(1, {"loss": 1.0})
    board.add(2, {"loss": 2.0})
    with full_at(os.path.getsize(next(tmp_path.iterdir())) + 20):
        board.add(3, {"loss": 3.0})
    board.add(4, {"loss": 4.0, "rate": float("nan")})
    assert scalars(tmp_path, "loss") == [(2, 2.0), (4, 4.0)]


def test_a_resumed_run_replaces_later_scalars_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = EventFile(tmp_path, 1)
    for step in range(1, 6):
        board.add(step, {"loss": 1.0})
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    EventFile(tmp_path, 4).add(4, {"loss": 2.0})
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert not Journal(tmp_path / "taken" / "lines").append(b"first\n")
    EventFile(tmp_path / "taken", 1).add(1, {"loss": 1.0})
