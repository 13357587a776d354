"""Why a launch ends is said once a node, by whichever rank finds it, and in torchrun's report."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.errors import UserError
from minimoe_dist.last_words import LastWords
from minimoe_dist.runtime import Launch
from tests.commands import support
from tests.distributed import _context

HOST = socket.gethostname()
REFUSED = ("distill", "--no_such_flag")
WORDS = "--no_such_flag is not an option of distill"


def launch(rank: int, port: int = 1) -> Launch:
    return Launch(rank, 3, rank, 3, "127.0.0.1", port, "torchrun")


def variables(rank: int, **more: str) -> dict[str, str]:
    environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    return environment | {"MASTER_PORT": "1", **more}


def _speak(rank: int, messages: list[str], everyone: Any, log: Path) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    words = LastWords(launch(rank))
    everyone.wait()
    words.say(UserError(messages[rank]))
    everyone.wait()
    words.close()


def spoken(messages: list[str], log: Path) -> list[str]:
    """The lines that ranks print who live at the same time."""
    context = _context()
    everyone = context.Barrier(len(messages))
    processes = [
        context.Process(target=_speak, args=(rank, messages, everyone, log))
        for rank in range(len(messages))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return sorted(log.read_text().splitlines())


def test_what_all_ranks_find_is_said_once(tmp_path: Path) -> None:
    (line,) = spoken(["a.bin: too\nshort"] * 3, tmp_path / "log")
    assert line in [f"minimoe-dist: rank {rank} on {HOST}: a.bin: too short" for rank in range(3)]


def test_what_one_rank_alone_finds_is_said_with_rank_and_host(tmp_path: Path) -> None:
    lines = spoken(["a.bin: too short", "a.bin: too short", "disk full"], tmp_path / "log")
    assert len(lines) == 2
    assert lines[1] == f"minimoe-dist: rank 2 on {HOST}: disk full"


def test_a_later_start_says_it_again(tmp_path: Path) -> None:
    assert [len(spoken(["refused"] * 3, tmp_path / name)) for name in ("1", "2")] == [1, 1]


def test_launches_do_not_silence_each_other() -> None:
    one, other = LastWords(launch(0)), LastWords(launch(0, port=2))
    assert one.claims("refused") and other.claims("refused")
    one.close()
    other.close()


def test_ranks_speak_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    assert LastWords(launch(0)).claims("refused") and LastWords(launch(1)).claims("refused")


def test_a_rank_that_comes_when_another_is_gone_says_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for rank, is_first in ((0, True), (1, False), (2, False)):
        words = LastWords(launch(rank))
        assert words.claims("refused") == is_first
        words.close()
    words = LastWords(launch(0))
    assert words.claims("refused")  # started again by hand
    words.close()
    (file,) = tmp_path.iterdir()
    os.utime(file, (1, 1))
    words = LastWords(launch(2, port=2))
    assert not file.exists()
    words.close()
    assert not list(tmp_path.iterdir())


def test_ranks_that_have_nothing_to_say_leave_no_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "minimoe_dist", "--version"]
    done = support.execute(command, **variables(1), TMPDIR=str(tmp_path))
    assert (done.returncode, list(tmp_path.iterdir())) == (0, [])
    command = [sys.executable, "-m", "minimoe_dist", *REFUSED]
    done = support.execute(command, **variables(1), TMPDIR=str(tmp_path))
    words, note = sorted(tmp_path.iterdir(), key=lambda path: ".roll." in path.name)
    assert done.returncode == 2 and words.stat().st_size
    assert ".roll." in note.name  # for ranks that begin later
    assert done.stderr.startswith(f"minimoe-dist: rank 1 on {HOST}: {WORDS}")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_torchruns_report_ends_with_our_line() -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node=2", "-m", "minimoe_dist", *REFUSED]
    done = subprocess.run(
        command, env=support.clean_environment(), capture_output=True, text=True, timeout=240
    )
    *_, last, border = done.stderr.strip().splitlines()
    assert set(border) == {"="}, done.stderr
    assert WORDS in last
