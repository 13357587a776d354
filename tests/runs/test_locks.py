"""The lock of a run's folder: held by one process, though its file be deleted or taken."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from minimoe_dist.errors import UserError
from minimoe_dist.runs.locks import check_free, locked
from tests.distributed import _context

SECONDS = 60.0  # of what takes two on a quiet machine


def _hold(folder: Path, ready: Any) -> None:
    os.dup2(os.open(folder.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    with locked(folder):
        ready.set()
        time.sleep(2 * SECONDS)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Any]:
    """A process that holds the lock."""
    folder.mkdir()
    ready = _context().Event()
    process = _context().Process(target=_hold, args=(folder, ready))
    process.start()
    assert ready.wait(SECONDS)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def assert_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="is used by another run"):
        check_free(folder)
    with pytest.raises(UserError, match="is used by another run"), locked(folder):
        pass


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder):
        assert_refused(folder)
    check_free(folder)
    with locked(folder):
        pass
    check_free(folder)


def test_a_deleted_lock_lets_nobody_in_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder) as holder:
        (folder / "run.lock").unlink()
        assert_refused(folder)
        wait_until((folder / "run.lock").exists)
        assert_refused(folder)
        assert holder.is_alive()


def test_a_holder_whose_lock_another_host_took_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder) as holder:
        (folder / "run.lock").write_text("n7 4711 0123456789abcdef\n")
        holder.join(SECONDS)
        assert holder.exitcode == 1
    said = (tmp_path / "log").read_text()
    assert f"{folder} was taken by another run, process 4711 on n7" in said


def test_who_only_tries_the_lock_disturbs_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder) as holder:
        with pytest.raises(Timeout):
            FileLock(folder / "run.lock").acquire(timeout=0)
        holder.join(3)
        assert holder.is_alive()
        assert_refused(folder)


def test_looking_makes_nothing(tmp_path: Path) -> None:
    check_free(tmp_path)
    check_free(tmp_path / "not there")
    assert list(tmp_path.iterdir()) == []
