"""Lines of metrics, whole and damaged."""

from pathlib import Path

import pytest

from minimoe_dist.errors import UserError
from minimoe_dist.runs.metrics import SavedMetrics, StudentRecord, drop_after

TRAINED = b'{"step": %d, "students": {"s": {"loss": 1.0}}}\n'
EVALUATED = b'{"step": %d, "heldout_loss": {"s": null}}\n'
LINES = [EVALUATED % 0, TRAINED % 1, TRAINED % 2, EVALUATED % 2, TRAINED % 3]
DAMAGED = [
    b"\xff\n", b"[" * 100_000 + b"\n", b'{"step": ' + b"9" * 400 + b"}\n",
    b'{"step": 2, "stud\n', b"[2]\n", b'{"step": "two"}\n', b"\n",
]  # fmt: skip


def written(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(lines))
    return path


def steps(metrics: SavedMetrics) -> tuple[list[int], list[int]]:
    return [one.step for one in metrics.trained], [one.step for one in metrics.evaluated]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_restart_drops_what_it_repeats_and_what_is_damaged(line: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl", *LINES[:2], line, *LINES[2:], b'{"step": 4, "cu')
    assert drop_after(path, 2) == tmp_path / "metrics.jsonl.damaged"
    assert path.read_bytes() == b"".join(LINES[:3])
    assert drop_after(path, 2) is None
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == line


def test_a_restart_needs_no_file(tmp_path: Path) -> None:
    drop_after(tmp_path / "metrics.jsonl", 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_named_where_all_are_wanted(line: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl", LINES[0], line, LINES[1])
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a record of a run"):
        SavedMetrics.read(path)
    assert steps(SavedMetrics.find(path)) == ([1], [0])


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl", *LINES, (TRAINED % 4)[:-1])
    assert steps(SavedMetrics.read(path)) == ([1, 2, 3], [0, 2])


def test_the_files_end_is_enough_for_the_last_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl", *LINES)
    assert steps(SavedMetrics.find(path, last_bytes=len(LINES[-1]) + 3)) == ([3], [])


def test_lines_of_other_versions_are_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl", b'{"step": 1, "temperature": 36.6}\n', LINES[1])
    assert steps(SavedMetrics.read(path)) == ([1], [])


def test_parts_of_any_objective_are_kept() -> None:
    parts = {"loss": 1.0, "states_loss": 0.5, "anything_loss": 0.25}
    assert StudentRecord(**parts).as_json() == parts
