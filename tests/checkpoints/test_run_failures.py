"""Saves that are killed or fail at any point: what was committed serves, nobody waits for ever."""

import errno
import itertools
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from minimoe_dist.checkpoints import run, writing
from minimoe_dist.checkpoints.run import is_whole, newest_whole_checkpoint
from minimoe_dist.runs.checkpoints import list_checkpoints
from tests.checkpoints.states import (
    MemoryState,
    alone,
    names,
    newest_step,
    save,
    save_for_ever,
    save_with_ranks,
)


class KilledError(BaseException):
    """Not an Exception: nothing may tidy up behind it, as behind SIGKILL."""


# What a save does to the disk, by the names that it calls.
OPERATIONS = [
    *((writing, n) for n in ("save_tensors", "make_empty", "write_json", "write_text")),
    *((writing, n) for n in ("replace_folder", "flush_folder")),
    *((os, n) for n in ("fsync", "rename", "mkdir", "unlink", "rmdir")),
    (shutil, "rmtree"),
]


@pytest.fixture
def in_memory(tmp_path):
    """A folder whose flushes cost nothing, where there is one, for hundreds of saves."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def fails(folder, step, number, error, monkeypatch) -> bool:
    """Saves, raising before or after a disk operation; False when there are fewer of them."""
    count = 0

    def failing(original):
        def operation(*arguments, **options):
            nonlocal count
            count += 1
            if count == number:
                raise error
            result = original(*arguments, **options)
            count += 1
            if count == number:
                raise error
            return result

        return operation

    with monkeypatch.context() as patch:
        for place, name in OPERATIONS:
            patch.setattr(place, name, failing(getattr(place, name)))
        try:
            save(folder, step)
        except type(error) as caught:
            assert isinstance(caught, OSError) or caught is error
    return count >= number


def test_a_first_save_killed_anywhere_is_whole_or_not_there(in_memory, monkeypatch) -> None:
    for number in itertools.count(1):
        folder = in_memory / str(number)
        if not fails(folder, 3, number, KilledError(), monkeypatch):
            break
        assert newest_whole_checkpoint(folder) is None or newest_step(folder) == 3
        save(folder, 4)
        assert newest_step(folder) == 4
    assert number > 40 and newest_step(folder) == 3


@pytest.mark.parametrize("error", [KilledError(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_save_broken_anywhere_leaves_the_earlier_checkpoints(
    error, in_memory, monkeypatch
) -> None:
    serving = []
    for number in itertools.count(1):
        folder = in_memory / str(number)
        save(folder, 1)
        save(folder, 2)
        (folder / "step_00000009.partial").mkdir()
        if not fails(folder, 3, number, error, monkeypatch):
            break
        serving.append(newest_step(folder))
        # One that was about to go is there as a whole, or has another name.
        assert all(map(is_whole, list_checkpoints(folder).values()))
        assert serving[-1] == 3 or {"step_00000001", "step_00000002"} <= set(names(folder))
        save(folder, 3)
        assert newest_step(folder) == 3
        assert names(folder) == ["latest", "step_00000002", "step_00000003"]
    assert set(serving) == {2, 3} and len(serving) > 50


@pytest.mark.parametrize("error", [KilledError(), OSError(errno.ENOSPC, "No space left on device")])
def test_replacing_a_checkpoint_broken_anywhere_never_loses_its_step(
    error, in_memory, monkeypatch
) -> None:
    save(in_memory, 2)
    save(in_memory, 3)
    for number in itertools.count(1):
        if not fails(in_memory, 3, number, error, monkeypatch):
            break
        assert newest_step(in_memory) == 3
    assert number > 50
    assert names(in_memory) == ["latest", "step_00000002", "step_00000003"]


def test_what_a_killed_save_left_is_never_used_and_goes_with_the_next(
    tmp_path, monkeypatch
) -> None:
    def killed(*arguments):
        raise KilledError

    save(tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(writing, "replace_folder", killed)
        save(tmp_path, 2)
    assert names(tmp_path) == ["latest", "step_00000001", "step_00000002.partial"]
    assert newest_step(tmp_path) == 1
    save(tmp_path, 3)
    assert names(tmp_path) == ["latest", "step_00000001", "step_00000003"]


def test_a_process_killed_at_random_moments_loses_no_step_that_it_told(tmp_path) -> None:
    folder, told, newest = tmp_path / "checkpoints", mmap.mmap(-1, 8), 0
    moment = random.Random(776)
    for _ in range(12):
        child = os.fork()
        if child == 0:
            save_for_ever(folder, newest + 1, lambda step: struct.pack_into("q", told, 0, step))
            os._exit(1)
        start = time.monotonic()
        while struct.unpack("q", told)[0] < newest + 2 and time.monotonic() < start + 60:
            time.sleep(0.0005)
        time.sleep(moment.uniform(0, time.monotonic() - start))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        (last,) = struct.unpack("q", told)
        newest = newest_step(folder)
        assert newest in (last, last + 1)
    assert newest >= 2 * 12


def fail_one(name, rank, patch, error):
    """Makes one rank's writing fail."""
    original = getattr(writing, name)

    def failing(*arguments):
        if any(f"rank_{rank:05d}" in str(argument) for argument in arguments):
            raise error
        return original(*arguments)

    patch.setattr(writing, name, failing)


@pytest.mark.parametrize("name", ["save_tensors", "hash_file"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_that_cannot_write_stops_the_save_on_every_rank(
    rank, name, tmp_path, monkeypatch
) -> None:
    assert save_with_ranks(tmp_path, 1, 3, 1) == [None] * 3
    with monkeypatch.context() as patch:
        fail_one(name, rank, patch, OSError(errno.ENOSPC, "No space left on device"))
        raised = save_with_ranks(tmp_path, 2, 3, 1)
    assert [type(error) for error in raised] == [OSError] * 3
    assert raised[rank].errno == errno.ENOSPC
    assert names(tmp_path) == ["latest", "step_00000001"] and newest_step(tmp_path) == 1
    assert save_with_ranks(tmp_path, 2, 3, 1) == [None] * 3


def test_a_piece_that_rank_0_cannot_see_stops_the_save_on_every_rank(tmp_path, monkeypatch) -> None:
    whole = writing.hash_file

    def elsewhere(path):
        found = whole(path)
        if path.name == "rank_00001.safetensors":
            path.unlink()  # as on a disk that the nodes do not share
        return found

    with monkeypatch.context() as patch:
        patch.setattr(writing, "hash_file", elsewhere)
        raised = save_with_ranks(tmp_path, 2, 3, 1)
    assert all("the piece of rank 1 is not there: no shared disk?" in str(e) for e in raised)
    assert newest_whole_checkpoint(tmp_path) is None


def test_what_was_hashed_once_is_not_hashed_again(tmp_path, monkeypatch) -> None:
    hashed = []
    whole = run.hash_file

    def noting(path):
        hashed.append(path.parent.name)
        return whole(path)

    save(tmp_path, 1)
    monkeypatch.setattr(run, "hash_file", noting)
    writer, memory = writing.CheckpointWriter(tmp_path, alone()), writing.SnapshotMemory()
    for step in range(2, 6):
        writer.write(memory.take([MemoryState(step)], {"step": step}))
    assert set(hashed) == {"step_00000001"}  # of an earlier start
    assert names(tmp_path) == ["latest", "step_00000004", "step_00000005"]
    assert newest_step(tmp_path) == 5


def test_a_folder_that_rank_0_cannot_make_stops_the_save_on_every_rank(tmp_path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    raised = save_with_ranks(tmp_path / "checkpoints", 2, 2, 1)
    assert all(isinstance(error, OSError) for error in raised)


def test_a_full_disk_is_an_os_error_and_leaves_the_earlier_checkpoints(tmp_path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)]
    mounted = shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("may not mount a file system here")
    try:
        folder = disk / "checkpoints"
        save(folder, 1)
        save(folder, 2)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(b"\0" * (free - 4096))
        with pytest.raises(OSError):
            save(folder, 3)
        assert names(folder) == ["latest", "step_00000001", "step_00000002"]
        (disk / "filler").unlink()
        save(folder, 3)
        assert newest_step(folder) == 3
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_write_that_the_system_refuses_is_an_os_error(tmp_path) -> None:
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
    try:
        with pytest.raises(OSError):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert newest_step(tmp_path) == 1 and names(tmp_path) == ["latest", "step_00000001"]


def test_a_newest_checkpoint_that_is_set_aside_leaves_the_one_before(tmp_path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    assert run.set_aside_newest_checkpoint(tmp_path) == 1
    assert newest_step(tmp_path) == 1
    assert (tmp_path / "latest").read_text() == "step_00000001\n"
    assert run.set_aside_newest_checkpoint(tmp_path) is None
    assert newest_whole_checkpoint(tmp_path) is None
    save(tmp_path, 2)
    assert newest_step(tmp_path) == 2
