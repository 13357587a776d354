"""Files and folders that are whole under their names."""

from pathlib import Path

import pytest

from minimoe_dist.durable import (
    beside,
    check_replaceable,
    replace_folder,
    replaced,
    sampled_hash,
    set_aside,
    write_text,
    written,
)
from minimoe_dist.errors import UserError


def folder_of(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")
    with written(path) as aside:
        aside.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_fails_leaves_nothing_but_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(OSError, match="disk full"), written(path) as aside:
        aside.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file.partial").mkdir()
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file", "text")


def test_what_is_set_aside_takes_the_first_free_number(tmp_path: Path) -> None:
    for number in (1, 2):
        assert set_aside(folder_of(tmp_path / "cells", "old")) == tmp_path / f"cells.{number}"


def test_a_folder_is_replaced_behind_a_call_that_was_killed_at_its_end(tmp_path: Path) -> None:
    final = folder_of(tmp_path / "export", "second")
    folder_of(tmp_path / "export.replaced", "first")
    replace_folder(folder_of(tmp_path / "new", "third"), final)
    assert (final / "file").read_text() == "third"
    assert list(tmp_path.iterdir()) == [final]


def test_what_fails_leaves_nothing_but_what_was_there(tmp_path: Path) -> None:
    final = tmp_path / "export"
    with replaced(final) as aside:
        (aside / "file").write_text("before")
    with pytest.raises(OSError, match="disk"), replaced(final) as aside:
        assert aside == beside(final, ".partial")
        (aside / "file").write_text("half")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == [final]
    assert (final / "file").read_text() == "before"


def test_only_what_python_leaves_inside_of_it_does_not_count(tmp_path: Path) -> None:
    final = tmp_path / "__pycache__" / "export"
    final.parent.mkdir()
    with replaced(final) as aside:
        (aside / "model").write_text("ours")
    folder_of(final / "__pycache__", "compiled")
    check_replaceable(final)
    folder_of(final / "below", "theirs")
    with pytest.raises(UserError, match="holds below/file"):
        check_replaceable(final)


def test_a_folder_that_was_written_so_is_replaced_again(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with replaced(tmp_path / "export") as aside:
            (aside / "below").mkdir()
            (aside / "below" / "file").write_text(content)
    assert (tmp_path / "export" / "below" / "file").read_text() == "second"


@pytest.mark.parametrize("whose", ["alone", "beside", "below", "link", "file"])
def test_what_somebody_else_has_put_there_is_never_replaced(whose: str, tmp_path: Path) -> None:
    final = tmp_path / "export"
    if whose in ("beside", "below"):
        with replaced(final) as aside:
            (aside / "model").write_text("ours")
    theirs = tmp_path / "notes"
    if whose == "link":
        folder_of(tmp_path / "elsewhere", "theirs")
        final.symlink_to(tmp_path / "elsewhere")
        theirs = final / "file"
    elif whose == "file":
        theirs = final
    else:
        theirs = final / ("below/notes" if whose == "below" else "notes")
        theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_text("theirs")
    with pytest.raises(UserError, match="export: "):
        check_replaceable(final)
    with pytest.raises(UserError, match="export: "), replaced(final) as aside:
        (aside / "model").write_text("new")
    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("size", [10, (1 << 20) + 100, 6 << 20])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_sampled_hash_sees_what_a_file_begins_and_ends_with_and_its_middle(
    tmp_path: Path, size: int, share: float
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(size))
    before = sampled_hash(path)
    with path.open("rb+") as file:
        # A retrained tensor, a tenth of the file.
        file.seek(int(share * 0.9 * size))
        file.write(b"\x01" * (size // 10))
    assert sampled_hash(path) != before
    assert sampled_hash(path) == sampled_hash(path)


def test_a_sampled_hash_sees_the_size(tmp_path: Path) -> None:
    hashes = set()
    for size in (0, 1, (1 << 20) + 1, 100 << 20, (100 << 20) + 1):
        with (tmp_path / "weights").open("wb") as file:
            file.truncate(size)
        hashes.add(sampled_hash(tmp_path / "weights"))
    assert len(hashes) == 5
