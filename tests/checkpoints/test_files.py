"""Folders that are whole under their names."""

from pathlib import Path

import pytest

from minimoe_dist.checkpoints.files import beside, replace_folder, replaced


def folder_of(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_a_folder_is_replaced_behind_a_call_that_was_killed_at_its_end(tmp_path: Path) -> None:
    final = folder_of(tmp_path / "export", "second")
    folder_of(tmp_path / "export.replaced", "first")
    replace_folder(folder_of(tmp_path / "new", "third"), final)
    assert (final / "file").read_text() == "third"
    assert list(tmp_path.iterdir()) == [final]


def test_what_fails_leaves_nothing_but_what_was_there(tmp_path: Path) -> None:
    final = folder_of(tmp_path / "export", "before")
    with pytest.raises(OSError, match="disk"), replaced(final) as aside:
        assert aside == beside(final, ".partial")
        (aside / "file").write_text("half")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == [final]
    assert (final / "file").read_text() == "before"
