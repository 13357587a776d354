"""How far a run is saved, told from its files alone."""

import os
from pathlib import Path

from minimoe_dist.runs.checkpoints import FINISHED, progress_of
from minimoe_dist.runs.starts import describe_progress

AT_TEN = {".": 10}


def checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


def test_progress_is_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    for step in (5, 10):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "step_00000020.partial").mkdir()
    (tmp_path / "checkpoints" / "step_00000030").mkdir()
    assert progress_of(tmp_path) == AT_TEN


def test_progress_of_stages_is_that_of_their_folders(tmp_path: Path) -> None:
    checkpoint(tmp_path / "first", 10)
    (tmp_path / "first" / "summary.json").touch()
    checkpoint(tmp_path / "second", 4)
    found = progress_of(tmp_path)
    assert found == {"first": FINISHED, "second": 4}
    assert describe_progress(found) == "first finished, second step 4"


def test_summary_of_an_earlier_run_finishes_nothing(tmp_path: Path) -> None:
    (tmp_path / "summary.json").touch()
    os.utime(tmp_path / "summary.json", (1, 1))
    checkpoint(tmp_path, 10)
    assert progress_of(tmp_path) == AT_TEN


def test_progress_of_a_grid_is_that_of_its_cells(tmp_path: Path) -> None:
    checkpoint(tmp_path / "cells" / "seed1", 3)
    (tmp_path / "cells" / "seed2").mkdir()
    (tmp_path / "cells" / "seed2" / "result.json").touch()
    found = progress_of(tmp_path)
    assert found == {"cells/seed1": 3, "cells/seed2": FINISHED}
