"""Compiled functions between processes: kept, renewed with their sources, never needed."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from minimoe_dist.data.compiled import compiling

SOURCE = """
from numba import types
from minimoe_dist.data.compiled.compiling import entry

@entry(types.int64, types.int64)
def double(number):
    return 2 * number

assert double(21) == 42
print(sum(double.stats.cache_hits.values()), sum(double.stats.cache_misses.values()))
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "module" / "doubles.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


def start(module: Path, **variables: str) -> "subprocess.Popen[str]":
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), **variables}
    return subprocess.Popen(
        [sys.executable, str(module)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Hits and misses of the cache, and what was warned of."""
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return out.strip(), error


def test_a_second_start_compiles_nothing(module: Path) -> None:
    assert [finish(start(module)) for _ in range(2)] == [("0 1", ""), ("1 0", "")]


def test_of_starts_at_the_same_time_one_compiles(module: Path, tmp_path: Path) -> None:
    processes = [start(module, TMPDIR=str(tmp_path)) for _ in range(3)]
    found = sorted(finish(process) for process in processes)
    assert found == [("0 1", ""), ("1 0", ""), ("1 0", "")]


def test_without_a_place_for_a_lock_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with compiling._one_process_at_a_time():
        pass


def test_a_package_that_cannot_be_written_uses_the_users_cache(
    module: Path, tmp_path: Path
) -> None:
    # Where a file stands no folder can be made, by root neither.
    (module.parent / "__pycache__").write_text("")
    found = [finish(start(module, HOME=str(tmp_path))) for _ in range(2)]
    assert found == [("0 1", ""), ("1 0", "")]


def test_without_any_place_for_a_cache_a_start_compiles_and_says_so(module: Path) -> None:
    (module.parent / "__pycache__").write_text("")
    found, warned = finish(start(module, HOME="/dev/null"))
    assert found == "0 1"
    assert "set NUMBA_CACHE_DIR" in warned


def test_a_broken_cache_is_passed_over(module: Path) -> None:
    finish(start(module))
    for path in (module.parent / "__pycache__").glob("*.nb?"):
        path.write_bytes(b"")
    found, warned = finish(start(module))
    assert found == "0 1"
    assert "set NUMBA_CACHE_DIR" in warned


def test_any_source_changes_the_name_of_what_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.py").write_text("A = 1\n")
    (tmp_path / "other.py").write_text("B = 2\n")
    monkeypatch.setattr(compiling, "_FOLDER", tmp_path)
    fingerprint = compiling._fingerprint.__wrapped__
    before = fingerprint()
    assert fingerprint() == before
    (tmp_path / "other.py").write_text("B = 3\n")
    assert fingerprint() != before
