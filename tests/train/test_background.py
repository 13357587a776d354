"""Saves beside training: what they hold, who waits for them, and what becomes of their errors."""

import errno
import logging
import threading
import time
from contextlib import contextmanager

import pytest
import torch

from minimoe_dist.checkpoints import writing
from minimoe_dist.checkpoints.run import load_checkpoint, newest_whole_checkpoint, read_progress
from minimoe_dist.train import background
from minimoe_dist.train.resuming import Checkpoints
from tests.checkpoints.states import MemoryState, alone, loads_exactly, names, newest_step
from tests.distributed import run_distributed

FULL = OSError(errno.ENOSPC, "No space left on device")


class Work:
    """Work whose one student's state is a function of a step."""

    def __init__(self, step: int) -> None:
        self.engines = [MemoryState(step)]
        self.samples = [step]

    def progress(self):
        return {"samples": self.samples}

    def tensors(self):
        return {"sums": self.engines[0].tensors["dense.bias", "master"]}

    def resume(self, progress, tensors):
        self.samples = progress["samples"]


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """What is logged; and attempts follow each other at once."""
    monkeypatch.setattr(background, "_RETRY_SECONDS", (0.0, 0.0))
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("minimoe_dist.train")
    log.addHandler(handler)
    yield messages
    log.removeHandler(handler)


@pytest.fixture
def disk(monkeypatch):
    """A disk that writes pieces when it is let, and fails as often as it is told to."""

    class Disk:
        def __init__(self):
            self.ready, self.failures, self.attempts = threading.Event(), 0, 0
            self.ready.set()

        @contextmanager
        def stuck(self):
            self.ready.clear()
            yield
            self.ready.set()

    disk, whole = Disk(), writing.save_tensors

    def save_tensors(tensors, path):
        assert disk.ready.wait(20)
        disk.attempts += 1
        if disk.attempts <= disk.failures:
            raise FULL
        whole(tensors, path)

    monkeypatch.setattr(writing, "save_tensors", save_tensors)
    return disk


def test_a_save_is_of_its_step_although_the_work_goes_on_meanwhile(tmp_path, disk) -> None:
    checkpoints, work = Checkpoints(tmp_path, {}, alone()), Work(3)
    with disk.stuck():
        checkpoints.save(work, 3)
        for tensor in work.engines[0].tensors.values():
            tensor.zero_()
        work.engines[0].steps, work.samples[0] = 4, 4
        assert checkpoints.saved_step == 0 and newest_whole_checkpoint(tmp_path) is None
    checkpoints.finish()
    assert checkpoints.saved_step == newest_step(tmp_path) == 3
    checkpoint = newest_whole_checkpoint(tmp_path)
    assert read_progress(checkpoint)["samples"] == [3]
    resumed = Work(0)
    again = Checkpoints(tmp_path, {}, alone())
    state = MemoryState(3).tensors["dense.bias", "master"]
    assert torch.equal(writing_tensors(checkpoint), state)
    assert loads_exactly(checkpoint, 3) and resumed.samples == [0] and again.saved_step == 0


def writing_tensors(checkpoint):
    from minimoe_dist.checkpoints.run import read_tensors

    return read_tensors(checkpoint)["sums"]


def test_the_next_save_waits_for_the_one_before(tmp_path, disk) -> None:
    checkpoints = Checkpoints(tmp_path, {}, alone())
    disk.ready.clear()
    started = time.monotonic()
    checkpoints.save(Work(1), 1)
    threading.Timer(0.3, disk.ready.set).start()
    assert time.monotonic() - started < 0.25 and checkpoints.times.waited_seconds < 0.25
    checkpoints.save(Work(2), 2)
    assert checkpoints.saved_step == 1 and checkpoints.times.waited_seconds > 0.2
    checkpoints.finish()
    assert names(tmp_path) == ["latest", "step_00000001", "step_00000002"]
    assert loads_exactly(tmp_path / "step_00000001", 1) and newest_step(tmp_path) == 2
    assert checkpoints.times.saves == 2 and checkpoints.times.writing_seconds > 0.2


def test_an_error_that_passes_costs_nothing(tmp_path, disk, told) -> None:
    disk.failures = 2
    checkpoints = Checkpoints(tmp_path, {}, alone())
    checkpoints.save(Work(1), 1)
    checkpoints.finish(must_be_saved=True)
    assert newest_step(tmp_path) == 1
    assert [line.partition(":")[0] for line in told] == [
        "step 1 is not saved yet ([Errno 28] No space left on device)"
    ] * 2


def test_a_save_that_fails_is_told_once_and_the_next_one_is_written(tmp_path, disk, told) -> None:
    disk.failures = 3
    checkpoints = Checkpoints(tmp_path, {}, alone())
    checkpoints.save(Work(1), 1)
    checkpoints.finish()
    assert told[-1].startswith("step 1 was not saved (") and told[-1].endswith("the run goes on")
    assert not checkpoints.asks_for_end and checkpoints.saved_step == 0
    assert names(tmp_path) == []
    checkpoints.save(Work(2), 2)
    checkpoints.finish()
    assert len(told) == 3 and newest_step(tmp_path) == checkpoints.saved_step == 2


def test_a_save_of_a_stop_that_fails_is_raised(tmp_path, disk, told) -> None:
    disk.failures = 3
    checkpoints = Checkpoints(tmp_path, {}, alone())
    checkpoints.save(Work(1), 1, goes_on=False)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.finish(must_be_saved=True)
    assert not any("goes on" in line for line in told)


def test_a_failed_save_that_is_insisted_on_asks_for_the_end(tmp_path, disk) -> None:
    disk.failures = 3
    checkpoints = Checkpoints(tmp_path, {}, alone(), ends_at_failed_save=True)
    checkpoints.save(Work(1), 1)
    deadline = time.monotonic() + 20
    while not checkpoints.asks_for_end and time.monotonic() < deadline:
        time.sleep(0.01)
    assert checkpoints.asks_for_end
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(Work(2), 2, goes_on=False)
    assert not checkpoints.asks_for_end


def test_a_fault_of_ours_in_the_writing_thread_is_never_forgiven(tmp_path, monkeypatch) -> None:
    def broken(*arguments):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(writing, "save_tensors", broken)
    checkpoints = Checkpoints(tmp_path, {}, alone())
    checkpoints.save(Work(1), 1)
    with pytest.raises(ZeroDivisionError, match="planted"):
        checkpoints.finish()
    checkpoints.wait()  # of it nothing is left to be told


def _save_on_two(folder, failing_rank):
    ranks = background.saving_ranks(20)
    background._RETRY_SECONDS = (0.0,)
    if ranks.rank == failing_rank:
        writing.save_tensors = _fails
    writer = writing.CheckpointWriter(folder, ranks)
    behind = background.BackgroundWriter(writer, background.SavingTimes(), (0.0,))
    state = MemoryState(2, ranks.rank, 2)
    behind.start(writing.SnapshotMemory().take([state], {"step": 2}), goes_on=True)
    # Collectives of the main thread in the meantime, as those of steps.
    for _ in range(50):
        torch.distributed.all_reduce(torch.ones(1))
    return str(behind.wait()), behind.saved_step


def _fails(*arguments):
    raise FULL


@pytest.mark.parametrize("failing_rank", [None, 0, 1])
def test_ranks_write_together_beside_their_collectives(failing_rank, tmp_path) -> None:
    results = run_distributed(_save_on_two, 2, tmp_path, failing_rank)
    if failing_rank is None:
        assert results == [("None", 2)] * 2
        state = MemoryState()
        load_checkpoint(newest_whole_checkpoint(tmp_path), [state])
        assert state == MemoryState(2)
        return
    failed, other = results[failing_rank][0], results[1 - failing_rank][0]
    assert failed == str(FULL) and other == f"rank {failing_rank}: {FULL}"
    assert names(tmp_path) == []
