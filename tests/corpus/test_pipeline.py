"""Mapping in several processes: order, memory, errors, deaths."""

import itertools
import multiprocessing
import os
import random
import signal
import threading
import time

import pytest

from minimoe_dist.corpus.pipeline import ordered_map


def _slow_for_even(number):
    time.sleep(0.02 * (number % 2 == 0))
    return number * number


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_the_order_of_the_items(processes):
    assert list(ordered_map(_slow_for_even, range(20), processes)) == [n * n for n in range(20)]


@pytest.mark.parametrize("processes", [1, 2])
def test_items_are_taken_only_a_few_ahead(processes):
    taken = itertools.count()
    results = ordered_map(abs, (next(taken) for _ in range(1000)), processes)
    next(results)
    results.close()
    assert next(taken) < 20


def test_the_function_need_not_be_picklable():
    assert list(ordered_map(lambda number: number + 1, [1, 2], 2)) == [2, 3]


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_reach_the_caller(processes):
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda number: 1 // number, [1, 0, 1], processes))


def test_a_worker_that_dies_is_an_error():
    with pytest.raises(RuntimeError, match="a worker process died"):
        list(ordered_map(lambda _: os.kill(os.getpid(), signal.SIGKILL), [1, 2, 3], 2))


def _die_while_sending(number):
    if number == 1:
        end = threading.Timer(0.25, os.kill, (os.getpid(), signal.SIGKILL))
        end.start()
    return bytes(1 << 28)


@pytest.mark.timeout(60)
def test_a_worker_that_dies_in_the_middle_of_a_result_is_an_error():
    with pytest.raises(RuntimeError, match="a worker process died"):
        for _ in ordered_map(_die_while_sending, range(4), 2):
            pass


@pytest.mark.timeout(60)
def test_a_worker_may_die_at_any_moment():
    moment = random.Random(5)
    for _ in range(10):
        before = set(multiprocessing.active_children())
        results = ordered_map(lambda number: bytes(1 << 20), itertools.count(), 3)
        next(results)
        worker = sorted(set(multiprocessing.active_children()) - before, key=id)[0]
        end = threading.Timer(moment.uniform(0, 0.1), worker.kill)
        end.start()
        with pytest.raises(RuntimeError, match="a worker process died"):
            for _ in results:
                pass
    assert set(multiprocessing.active_children()) <= before


def test_large_items_and_results_pass_each_other():
    blocks = [bytes([number]) * (3 << 20) for number in range(30)]
    assert list(ordered_map(lambda block: block + b"!", blocks, 3)) == [b + b"!" for b in blocks]


def test_a_result_that_cannot_be_sent_is_an_error():
    with pytest.raises(Exception, match=r"pickle"):
        list(ordered_map(lambda number: lambda: number, [1, 2], 2))


def _map_and_die(queue):
    results = ordered_map(lambda _: os.getpid(), range(100), 2)
    queue.put({next(results), next(results)})
    os.kill(os.getpid(), signal.SIGKILL)


def _lives(process_id):
    try:
        with open(f"/proc/{process_id}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_leave_when_their_parent_is_killed():
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    parent = context.Process(target=_map_and_die, args=(queue,))
    parent.start()
    workers = queue.get()
    parent.join()
    deadline = time.monotonic() + 5
    while any(map(_lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_lives, workers))
