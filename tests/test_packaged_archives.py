"""Models in archives that are cut over several packages."""

import contextlib
import io
import json
import shutil
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


def archive(members: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as target:
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


def test_another_archive_as_long_is_another_one(site) -> None:
    for weights in (b"first", b"other"):
        spread(site, archive(members(weights)), 2)
        folder = Path(resolve_model_path("package:big-model-part_001"))
        assert (folder / "model.safetensors").read_bytes() == weights


def test_a_package_has_pips_name_too(site) -> None:
    for path in spread(site, archive(members()), 2):
        package = path.parents[1].name
        facts = site / f"{package.replace('-', '_')}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Name: {package.replace('_', '-')}\nVersion: 1.0\n")
        (facts / "RECORD").write_text(f"{package}/__init__.py,,\n{facts.name}/METADATA,,\n")
    for name in ("big-model-part-001", "big_model_part_001"):
        folder = resolve_model_path(f"package:{name}")
        assert folder == resolve_model_path("package:big-model-part_001")
    with pytest.raises(UserError, match="no installed Python package 'big-model-part-003'; pip"):
        resolve_model_path("package:big-model-part-003")


def test_a_package_of_one_file_holds_no_model(site) -> None:
    (site / "single_file_package.py").touch()
    with pytest.raises(UserError, match="that package holds no Hugging Face config"):
        resolve_model_path("package:single_file_package")


def test_a_later_part_tells_of_the_first(site) -> None:
    spread(site, archive(members()), 2)
    with pytest.raises(
        UserError, match=r"holds big-model.zip.002; give the one that holds big-model.zip.001$"
    ):
        resolve_model_path("package:big-model-part_002", "teacher")


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


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_of_what_is_packed_is_refused_wherever_it_is(packing, site, tmp_path) -> None:
    content = archive(members(bytes(range(256)) * 64), packing)
    for place in range(0, len(content), 7):
        damaged = content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]
        spread(site, damaged, 2)
        with contextlib.suppress(UserError):  # of a date, nothing tells
            resolve_model_path("package:big-model-part_001")
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    head = content.index(b"model/model.safetensors") + 40
    spread(site, content[:head] + bytes(20) + content[head + 20 :], 2)
    with pytest.raises(UserError, match="no whole archive"):
        resolve_model_path("package:big-model-part_001")


def test_an_archive_that_wants_a_password_is_refused(site) -> None:
    content = bytearray(archive(members()))
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = 0
        while (start := content.find(mark, start)) >= 0:
            content[start + place] |= 1
            start += 4
    spread(site, bytes(content), 2)
    with pytest.raises(UserError, match=r"no whole archive \(.*password"):
        resolve_model_path("package:big-model-part_001")


@pytest.mark.parametrize("name", ["../evil", "model/../../evil", "/evil", "..\\evil", "C:/evil"])
def test_no_file_leaves_its_folder(name, site, tmp_path) -> None:
    spread(site, archive({**members(), name: b"evil"}), 2)
    with pytest.raises(UserError, match="would leave its folder"):
        resolve_model_path("package:big-model-part_001")
    assert not [path for path in tmp_path.rglob("*evil*") if path.is_file()]
