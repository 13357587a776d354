"""The watch over the other ranks: killed, stopped, failing and leaving ones."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from minimoe_dist.last_words import LastWords
from minimoe_dist.runtime import Launch, start_logging
from minimoe_dist.train.peers import PeerWatch, _Peer
from tests.distributed import _context

TIMEOUT_SECONDS = 2.0
STUCK_SECONDS = 30.0  # as a collective of NCCL would be


def _watched(rank: int, port: int, folder: Path, body: str) -> None:
    for descriptor, name in ((1, "moment"), (2, "log")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    launch = Launch(rank, 3, rank, 3, "127.0.0.1", port, "torchrun")
    start_logging(launch)
    store = dist.TCPStore("127.0.0.1", port, 3, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3)
    try:
        with PeerWatch(launch, TIMEOUT_SECONDS):
            globals()[body](rank)
    except ValueError as error:
        LastWords(launch).say(error)
        os._exit(1)
    os._exit(0)


def _run(body: str, folder: Path, awaited: int = 0) -> tuple[list[int | None], str, float]:
    """Exit statuses of three ranks (None: still there), what they said, seconds after `_now`.

    One rank is waited for, and then the others for a second.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        _context().Process(target=_watched, args=(rank, port, folder, body)) for rank in range(3)
    ]
    for process in processes:
        process.start()
    processes[awaited].join(STUCK_SECONDS - 5)
    for process in processes:
        process.join(1)
    end = time.monotonic()
    statuses = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    moment = (folder / "moment").read_text()
    return statuses, (folder / "log").read_text(), end - float(moment or end)


def _now() -> None:
    print(time.monotonic(), flush=True)


def _last_is_killed(rank: int) -> None:
    if rank == 2:
        _now()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(STUCK_SECONDS)


def _last_is_stopped(rank: int) -> None:
    if rank == 2:
        _now()
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(STUCK_SECONDS)


def _last_fails(rank: int) -> None:
    if rank == 2:
        _now()
        raise ValueError("corpus.bin: too\nshort")
    time.sleep(STUCK_SECONDS)


def _last_fails_and_first_is_stopped(rank: int) -> None:
    if rank == 0:
        _now()
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.5 if rank == 2 else STUCK_SECONDS)
    raise ValueError("corpus.bin: too\nshort")


def _first_fails(rank: int) -> None:
    if rank == 0:
        raise ValueError("corpus.bin: too\nshort")
    time.sleep(STUCK_SECONDS)


def _first_is_late(rank: int) -> None:
    time.sleep(0.0 if rank else 1.5)


def _all_fail(rank: int) -> None:
    raise ValueError("refused")


@pytest.mark.parametrize(
    ("body", "status", "words", "limit"),
    [
        ("_last_is_killed", -9, "rank 2 has died", 2.0),
        ("_last_is_stopped", None, "rank 2 has given no sign of life for 2 s", 6.0),
        ("_last_fails", 1, "rank 2 failed: ValueError: corpus.bin: too short", 2.0),
    ],
)
def test_a_lost_rank_ends_ranks_whose_main_thread_is_stuck(
    body: str, status: int | None, words: str, limit: float, tmp_path: Path
) -> None:
    statuses, said, seconds = _run(body, tmp_path)
    assert statuses == [1, 1, status]
    assert said.count(words) == 1
    assert seconds < limit


def test_what_a_rank_fails_by_it_says_itself_where_rank_0_cannot(tmp_path: Path) -> None:
    statuses, said, _ = _run("_last_fails_and_first_is_stopped", tmp_path, awaited=2)
    assert (statuses[0], statuses[2]) == (None, 1)
    assert said.count("corpus.bin: too short") == 1
    assert f"rank 2 on {socket.gethostname()}: corpus.bin: too short" in said


def test_what_rank_0_fails_by_no_other_repeats(tmp_path: Path) -> None:
    statuses, said, _ = _run("_first_fails", tmp_path)
    assert statuses == [1, 1, 1]
    assert said == f"minimoe-dist: rank 0 on {socket.gethostname()}: corpus.bin: too short\n"


def test_a_rank_that_leaves_in_order_is_not_lost(tmp_path: Path) -> None:
    assert _run("_first_is_late", tmp_path)[:2] == ([0, 0, 0], "")


def test_ranks_that_fail_alike_leave_by_their_own_error(tmp_path: Path) -> None:
    statuses, said, _ = _run("_all_fail", tmp_path)
    assert statuses == [1, 1, 1]
    assert said.count("refused") == said.count("\n") == 1
    assert "train.peers" not in said


def test_the_last_word_arrives_though_messages_stand_unread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        leaving = _Peer(0, socket.create_connection(server.getsockname()), "here")
        staying = _Peer(1, server.accept()[0], "here")
    for _ in range(20):  # until the kernel waits for an answer before it acknowledges
        staying.send("beat")
        leaving.receive()
        leaving.send("beat")
        staying.receive()
    staying.send("beat")
    leaving.send("beat")  # is on its way, and holds the next one back
    leaving.send("bye")
    parting = threading.Thread(target=leaving.close, args=(time.monotonic() + 10,))
    parting.start()
    heard = []
    while (messages := staying.receive()) is not None:
        heard += messages
    staying.connection.close()
    parting.join()
    assert heard[-1] == "bye"
