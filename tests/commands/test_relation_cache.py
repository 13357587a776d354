"""Runs that read their teacher's signals from a cache: the same students, and nothing misread."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minimoe_dist.cli import main
from tests.commands import support
from tests.commands.support import Workshop
from tests.commands.test_full_disks import fill, small_disk


def cached(workshop: Workshop, output_dir: Path, dtype: str, **options: Any) -> Path:
    """A recipe with a cache in the folder that all runs of a test share."""
    folder = str(output_dir.parent / "cache")
    teacher = {
        "model_name_or_path": str(workshop.teacher), "dtype": "float32", "cache": dtype,
        "cache_dir": folder,
    }  # fmt: skip
    return workshop.recipe(output_dir, teacher=teacher, **options)


def blocks(folder: Path) -> list[Path]:
    """The blocks of all caches in a folder."""
    return sorted(folder.glob("*/block_*.safetensors"))


def losses(output_dir: Path) -> list[float]:
    return [row["student"]["loss"] for _, row in sorted(support.losses(output_dir).items())]


@pytest.fixture(scope="module")
def shared(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, "first", and the cache in int8 that it filled."""
    folder = tmp_path_factory.mktemp("cached")
    support.finish(cached(workshop, folder / "first", "int8"))
    return folder


def test_a_cache_in_float32_changes_nothing_within_its_epochs(
    workshop: Workshop, tmp_path: Path
) -> None:
    plain = {"model_name_or_path": str(workshop.teacher), "dtype": "float32"}
    few = {"training": {"max_steps": 6}}
    support.finish(workshop.recipe(tmp_path / "plain", teacher=plain, **few))
    said = support.finish(cached(workshop, tmp_path / "run", "float32", **few))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    assert re.search(r"^relation cache: step (\d+)/\1, 0:00:00 left$", said, re.MULTILINE)
    # What is kept exactly costs nothing but what sums in another order do.
    (divergence,) = re.findall(r"relations are off by a KL of (\S+) a row", said)
    assert abs(float(divergence)) < 1e-9


@pytest.mark.parametrize("epochs", [1, 2])
def test_pairs_come_again_after_the_epochs_that_are_kept(
    epochs: int, workshop: Workshop, tmp_path: Path
) -> None:
    corpus = support.make_corpus(tmp_path / "small", workshop.teacher, documents=12)
    recipe = cached(
        workshop, tmp_path / "run", "bfloat16", data={"record_path_or_regex": str(corpus)}
    )
    said = support.finish(recipe, f"--teacher_cache_epochs={epochs}")
    (pairs,) = re.findall(r"relation cache \S+: (\d+) pairs in bfloat16", said)
    rows = sum(len(load_file(block)["lengths"]) for block in blocks(tmp_path / "cache"))
    assert rows == int(pairs)
    # 30 steps of 8 pairs: several times all that there is.
    assert rows % epochs == 0 and 0 < rows < 240


def test_a_cache_in_8_bits_is_told_with_its_error_and_shared(
    shared: Path, workshop: Workshop
) -> None:
    before = {path: path.stat().st_mtime_ns for path in blocks(shared / "cache")}
    summary = json.loads((shared / "first" / "summary.json").read_text())["relation_cache"]
    assert summary["bytes"] == sum(path.stat().st_size for path in before)
    assert 0 < summary["divergence"] < 1e-3
    # Another student of the same teacher and pairs computes none of it again.
    again = cached(workshop, shared / "second", "int8", training={"max_steps": 3})
    assert "filling" not in support.finish(again, "--moe=1,1", "--expert_parallel_size=1")
    assert {path: path.stat().st_mtime_ns for path in blocks(shared / "cache")} == before


def test_a_killed_run_goes_on_bit_for_bit(shared: Path, workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(shared / "cache", tmp_path / "cache")
    recipe = cached(workshop, tmp_path / "run", "int8")
    with support.start(recipe) as ranks:
        ranks.until_step(14)
        ranks.until_saved()
        ranks.signal(signal.SIGKILL)
        ranks.wait()
    support.finish(recipe)
    assert losses(tmp_path / "run") == losses(shared / "first")
    support.assert_same_run(tmp_path / "run", shared / "first")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_a_cache_that_is_broken_off_is_filled_where_it_is_not_yet(
    number: signal.Signals, status: int, workshop: Workshop, tmp_path: Path
) -> None:
    corpus = support.make_corpus(tmp_path / "corpus", workshop.teacher, documents=2000)
    recipe = cached(
        workshop, tmp_path / "run", "int8",
        data={"record_path_or_regex": str(corpus)},
        training={"max_steps": 2, "per_device_train_batch_size": 1},
    )  # fmt: skip
    with support.start(recipe) as ranks:
        support.wait_for(lambda: len(blocks(tmp_path / "cache")) >= 4, ranks.said)
        ranks.signal(number)
        assert set(ranks.wait()) == {status}, ranks.said()
        said = ranks.said()
    kept = {path: path.stat().st_mtime_ns for path in blocks(tmp_path / "cache")}
    assert 4 <= len(kept) < 60
    if status == 75:
        assert f"stopped: {len(kept)} of " in said and support.losses(tmp_path / "run") == {}
    support.finish(recipe)
    now = {path: path.stat().st_mtime_ns for path in blocks(tmp_path / "cache")}
    assert len(now) > len(kept) and kept.items() <= now.items()
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_runs_that_fill_one_cache_at_a_time_share_the_work(
    workshop: Workshop, tmp_path: Path
) -> None:
    corpus = support.make_corpus(tmp_path / "corpus", workshop.teacher, documents=2000)
    recipes = [
        cached(
            workshop, tmp_path / name, "int8",
            data={"record_path_or_regex": str(corpus)},
            training={"max_steps": 3, "per_device_train_batch_size": 1},
        )
        for name in ("one", "two")
    ]  # fmt: skip
    with support.start(recipes[0]) as one, support.start(recipes[1]) as two:
        assert {*one.wait(), *two.wait()} == {0}, one.said() + two.said()
        both = one.said() + two.said()
    assert both.count("filling the relation cache") == 2
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_another_seed_teacher_corpus_or_length_has_a_cache_of_its_own(
    shared: Path, workshop: Workshop, tmp_path: Path
) -> None:
    shutil.copytree(shared / "cache", tmp_path / "cache")
    teacher = support.make_teacher(tmp_path / "teacher", words="word")
    weights = load_file(teacher / "model.safetensors")
    weights["encoder.layer.1.attention.self.key.bias"][3] += 0.5  # a number of 30,000
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    corpus = support.make_corpus(tmp_path / "corpus", workshop.teacher, seed=9)
    found = 1
    for number, change in enumerate(
        (
            "--seed=5", "--max_length=24", f"--record_path_or_regex={corpus}",
            f"--teacher_model_name_or_path={teacher}", "--relation_layer=1",
        )
    ):  # fmt: skip
        recipe = cached(workshop, tmp_path / f"run{number}", "int8", training={"max_steps": 1})
        support.finish(recipe, change)
        found += 1
        assert len(list((tmp_path / "cache").iterdir())) == found, change


def spoil_bytes(path: Path) -> None:
    """Flips a bit in the middle of a file, where its rows are."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def take_another_text(path: Path) -> None:
    """Changes what the teacher is said to have read, as a corpus that changed would."""
    with_metadata(path, lambda tensors, about: tensors["input_checksums"].add_(1))


def take_anothers(path: Path) -> None:
    with_metadata(path, lambda tensors, about: about.update(facts="{}"))


def with_metadata(path: Path, change: Any) -> None:
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, about)
    save_file(tensors, path, about)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_bytes, "is damaged; delete {block}, and the next start fills it again"),
        (take_another_text, "is of another text than the run reads; delete {folder}, and"),
        (take_anothers, "is of another cache; delete {block}, and the next start fills it again"),
    ],
)
def test_a_damaged_or_stale_cache_is_refused_and_filled_again(
    spoil: Any, words: str, shared: Path, workshop: Workshop, tmp_path: Path
) -> None:
    shutil.copytree(shared / "cache", tmp_path / "cache")
    recipe = cached(workshop, tmp_path / "run", "int8")
    for block in blocks(tmp_path / "cache"):
        spoil(block)
    statuses, said = support.run(recipe)
    assert statuses == [2, 2] and "Traceback" not in said
    last = said.splitlines()[-1]
    (name,) = set(re.findall(r"block_\d+\.safetensors(?=:)", last))
    (folder,) = (tmp_path / "cache").iterdir()
    assert words.format(block=name, folder=folder) in last
    assert support.losses(tmp_path / "run") == {}
    for block in blocks(tmp_path / "cache"):
        block.unlink()
    support.finish(recipe)
    assert losses(tmp_path / "run") == losses(shared / "first")


def test_a_disk_that_fills_up_meanwhile_is_named_and_the_next_start_goes_on(
    workshop: Workshop, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "cache", "64m"):
        recipe = cached(workshop, tmp_path / "run", "int8")
        corpus = support.make_corpus(tmp_path / "corpus", workshop.teacher, documents=2000)
        options = [f"--record_path_or_regex={corpus}", "--per_device_train_batch_size=1"]
        with support.start(recipe, *options, "--max_steps=2") as ranks:
            support.wait_for(lambda: len(blocks(tmp_path / "cache")) >= 2, ranks.said)
            with contextlib.suppress(OSError):  # the ranks take what is left too
                fill(tmp_path / "cache")
            statuses = ranks.wait()
            said = ranks.said()
        assert 74 in statuses and "No space left on device" in said
        assert "Traceback" not in said.splitlines()[-1]
        (tmp_path / "cache" / "filler").unlink()
        support.finish(recipe, *options, "--max_steps=2")
        assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_cache_that_is_filled_may_be_for_reading_only(
    shared: Path, workshop: Workshop, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "cache", "64m"):
        shutil.copytree(shared / "cache", tmp_path / "cache", dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "cache")], check=True)
        support.finish(cached(workshop, tmp_path / "run", "int8", training={"max_steps": 3}))
        other = cached(workshop, tmp_path / "other", "int8")
        statuses, said = support.run(other, "--seed=9")
        assert statuses == [2, 2] and "Traceback" not in said
        assert "cannot be written (Read-only file system); give another" in said.splitlines()[-1]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_of_caches_that_cannot_be_one_is_refused_by_a_dry_run(
    kind: str, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    folder.write_text("") if kind == "file" else folder.symlink_to(tmp_path / "nothing")
    recipe = cached(workshop, tmp_path / "run", "int8")
    assert main(["distill", "--config", str(recipe), "--dry_run"]) == 2
    assert f"teacher.cache_dir: {folder}: " in "".join(capsys.readouterr())


def test_a_cache_that_was_moved_is_no_changed_option(
    shared: Path, workshop: Workshop, tmp_path: Path
) -> None:
    shutil.copytree(shared / "cache", tmp_path / "cache")
    recipe = cached(workshop, tmp_path / "run", "int8", training={"max_steps": 30})
    with support.start(recipe) as ranks:
        ranks.until_step(12)
        ranks.signal(signal.SIGTERM)
        ranks.wait()
    (tmp_path / "cache").rename(tmp_path / "moved")
    support.finish(recipe, f"--teacher_cache_dir={tmp_path / 'moved'}")
    assert losses(tmp_path / "run") == losses(shared / "first")


def test_a_disk_without_room_is_told_before_the_first_step(
    workshop: Workshop, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "cache", "64k"):
        statuses, said = support.run(cached(workshop, tmp_path / "run", "int8"))
        assert statuses == [2, 2] and "Traceback" not in said
        assert re.search(
            rf"teacher\.cache_dir: {tmp_path}/cache/\w+ has \S+ GB free, and the signals of \S+ "
            r"tokens take \S+ GB in int8: give another folder, fewer cache_epochs, or cache int8",
            said.splitlines()[-1],
        )
        assert not blocks(tmp_path / "cache")


def test_a_teacher_from_which_nothing_can_be_learnt_is_not_kept(
    workshop: Workshop, tmp_path: Path
) -> None:
    teacher = shutil.copytree(workshop.teacher, tmp_path / "teacher")
    weights = load_file(teacher / "model.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    save_file(zeros, teacher / "model.safetensors", {"format": "pt"})
    recipe = cached(workshop, tmp_path / "run", "int8")
    statuses, said = support.run(recipe, f"--teacher_model_name_or_path={teacher}")
    assert statuses == [2, 2]
    assert f"queries, keys, values of the teacher {teacher} do not depend on" in said
    assert not blocks(tmp_path / "cache")


@pytest.mark.parametrize("layout", ["zero3", "tensor"])
def test_a_teacher_that_ranks_share_out_fills_a_cache_too(
    layout: str, workshop: Workshop, tmp_path: Path
) -> None:
    recipe = cached(workshop, tmp_path / "run", "float32")
    support.finish(recipe, f"--teacher_layout={layout}")
    support.finish(cached(workshop, tmp_path / "whole", "float32"))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data_type=bert_mlm", "--mlm_weight=1"], "bert_mlm masks other tokens in every epoch"),
        (["--model_type=bert_mlm"], "teacher.cache: 'int8', but no relations are learnt"),
        (["--teacher_cache=none"], "teacher.cache_dir: "),
        (["--teacher_cache=int4"], "--teacher_cache: must be one of none, float32, bfloat16, int8"),
        (["--teacher_cache_epochs=0"], "--teacher_cache_epochs: must be at least 1"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    options: list[str], words: str, workshop: Workshop, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = cached(workshop, tmp_path / "run", "int8")
    assert main(["distill", "--config", str(recipe), "--dry_run", *options]) == 2
    assert words in capsys.readouterr().err
