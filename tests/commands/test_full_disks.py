"""Runs on disks that fill up: real ones, small, in memory."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.commands import support
from tests.commands.support import Workshop


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mounts a disk of a size at a folder, where this process may."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this process may not mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, but: int = 0) -> None:
    """Leaves some bytes free at most."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, ExitStack() as stack:
        stack.callback(lambda: file.truncate(max(0, file.tell() - but)))
        while file.write(bytes(1 << 16)):
            pass


def test_a_full_disk_of_tensorboards_ends_no_run(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    with small_disk(tmp_path / "run" / "tensorboard", "64k"):
        with pytest.raises(OSError, match="No space left"):
            fill(tmp_path / "run" / "tensorboard")
        said = support.finish(recipe)
    assert said.count("not written (No space left on device)") == 1
    support.assert_same_run(tmp_path / "run", unbroken)


def test_a_run_without_room_says_what_was_not_saved_and_goes_on_when_there_is_some(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    with small_disk(tmp_path / "run", "1m"):
        with pytest.raises(OSError, match="No space left"):
            fill(tmp_path / "run", 16 << 10)
        statuses, said = support.run(recipe)
        assert 74 in statuses and not {0, 2, 75} & set(statuses), said
        assert "step 10 was not saved" in said and "and saved" not in said
        assert "Traceback" not in said
        assert support.checkpoints(tmp_path / "run") == []
        (tmp_path / "run" / "filler").unlink()
        grow = ["mount", "-o", "remount,size=64m", str(tmp_path / "run")]
        subprocess.run(grow, check=True)
        support.finish(recipe)
        support.assert_same_run(tmp_path / "run", unbroken)


def test_a_run_may_end_at_its_first_failed_save(workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe(tmp_path / "run", training={"ends_at_failed_save": True})
    with small_disk(tmp_path / "run", "1m"):
        with pytest.raises(OSError, match="No space left"):
            fill(tmp_path / "run", 16 << 10)
        statuses, said = support.run(recipe)
        assert 74 in statuses and 0 not in statuses, said
        # It is tried again while steps go on, until the next one is due at most.
        assert 10 <= max(support.losses(tmp_path / "run")) <= 20
        assert "step 10 is not saved yet" in said
