"""Models in archives that are cut over several packages."""

import io
import json
import zipfile
from pathlib import Path

import pytest

from minimoe_dist.errors import UserError
from minimoe_dist.model_paths import resolve_model_path

CONFIG = {"model_type": "mpnet", "hidden_size": 8}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages, and a cache of its own."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def archive(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        for name, content in members.items():
            target.writestr(name, content)
    return stream.getvalue()


def spread(site: Path, content: bytes, count: int, name: str = "big-model") -> list[Path]:
    """Cuts an archive into parts, each in a package of its own, in a folder called input."""
    size = -(-len(content) // count)
    paths = []
    for number in range(1, count + 1):
        folder = site / f"{name}-part_{number:03d}" / "input"
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "__init__.py").touch()
        path = folder / f"{name}.zip.{number:03d}"
        path.write_bytes(content[(number - 1) * size : number * size])
        paths.append(path)
    return paths


def members(weights: bytes = b"weights" * 1000) -> dict[str, bytes]:
    return {
        "model/config.json": json.dumps(CONFIG).encode(),
        "model/model.safetensors": weights,
        "model/1_Pooling/config.json": b"{}",
    }


@pytest.mark.parametrize("count", [1, 2, 5])
def test_parts_are_joined_into_the_cache_once(site, count, tmp_path) -> None:
    spread(site, archive(members()), count)
    folder = Path(resolve_model_path("package:big-model-part_001"))
    assert folder == tmp_path / "cache/minimoe_dist/models/big-model/model"
    assert (folder / "model.safetensors").read_bytes() == b"weights" * 1000
    written = (folder / "config.json").stat().st_mtime_ns
    assert resolve_model_path("package:big-model-part_001") == str(folder)
    assert (folder / "config.json").stat().st_mtime_ns == written


def test_another_archive_of_the_name_replaces_what_was_unpacked(site) -> None:
    spread(site, archive(members()), 2)
    resolve_model_path("package:big-model-part_001")
    spread(site, archive(members(b"new")), 2)
    folder = Path(resolve_model_path("package:big-model-part_001"))
    assert (folder / "model.safetensors").read_bytes() == b"new"


def test_a_missing_part_is_named(site) -> None:
    spread(site, archive(members()), 4)[2].unlink()
    with pytest.raises(UserError, match=r"part big-model.zip.003 of 4 is not installed; pip"):
        resolve_model_path("package:big-model-part_001", "teacher")


def test_a_damaged_or_short_archive_is_refused_and_leaves_nothing(site, tmp_path) -> None:
    paths = spread(site, archive(members(bytes(range(256)) * 64)), 3)
    paths[2].unlink()  # the last, which nothing tells of
    with pytest.raises(UserError, match=r"the 2 parts of big-model.zip are no whole archive"):
        resolve_model_path("package:big-model-part_001")
    paths[2].write_bytes(b"x")
    with pytest.raises(UserError, match="no whole archive"):
        resolve_model_path("package:big-model-part_001")
    assert not list((tmp_path / "cache").rglob("config.json"))


@pytest.mark.parametrize("name", ["../evil", "model/../../evil", "/evil", "..\\evil", "C:/evil"])
def test_no_file_leaves_its_folder(name, site, tmp_path) -> None:
    spread(site, archive({**members(), name: b"evil"}), 2)
    with pytest.raises(UserError, match="would leave its folder"):
        resolve_model_path("package:big-model-part_001")
    assert not [path for path in tmp_path.rglob("*evil*") if path.is_file()]
