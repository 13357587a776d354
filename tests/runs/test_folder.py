"""Names of a run's folder that something else has taken."""

import os
from pathlib import Path

import pytest

from minimoe_dist.errors import UserError
from minimoe_dist.runs.folder import RunFolder

FILES = (
    *("run.lock", "metrics.jsonl", "summary.json", "results.json", "curves.png", "starts.jsonl"),
    *("evaluation.json", "evaluation_student.json", "cells/one/result.json"),
)
FOLDERS = (
    *("checkpoints", "export", "tensorboard", "cells", "submissions"),
    *("cells/one/model", "cells/one/checkpoints"),
)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        RunFolder(folder).check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_a_files_place_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir(parents=True)
    assert f"{tmp_path / name} is no file: move it away" in refusal(tmp_path)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_in_a_folders_place_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    assert f"{tmp_path / name} is no folder: move it away" in refusal(tmp_path)


def test_a_pipe_that_would_never_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert "metrics.jsonl is no file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "checkpoints"])
def test_links_that_lead_nowhere_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to("nothing")
    assert f"{name} is a link to nothing: remove it" in refusal(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(name)
    assert f"{name}: Too many levels of symbolic links" in refusal(tmp_path)


def test_a_run_is_left_alone_and_so_are_links_to_the_right_kind(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new").check()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").symlink_to("elsewhere")
    (tmp_path / "summary.json").touch()
    RunFolder(tmp_path).check()
