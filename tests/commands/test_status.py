"""``minimoe-dist status``: what the run's own files say, where there is no Slurm to ask."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from minimoe_dist import cli
from minimoe_dist.runs import launches
from minimoe_dist.runs.starts import Event, add_event
from tests.commands import support


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of tests may say how wide a terminal is that they do not have."""
    monkeypatch.delenv("COLUMNS", raising=False)


def told(run: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    assert cli.main(["status", str(run), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def halfway(unbroken: Path, tmp_path: Path) -> Path:
    """A run whose newest checkpoint and last line are of step 20 of 30."""
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    shutil.rmtree(run / "checkpoints" / "step_00000030")
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 20]
    (run / "metrics.jsonl").write_text("".join(kept) + '{"step": 21, "cut')
    return run


def test_a_finished_run(unbroken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = told(unbroken, capsys)
    assert (found["state"], found["step"], found["total_steps"]) == ("finished", 30, 30)
    assert found["checkpoint"]["step"] == 30
    assert found["losses"]["student"] == support.losses(unbroken)[30]["student"]["loss"]


def test_rate_and_time_left_follow_from_the_last_line(
    halfway: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = told(halfway, capsys)
    assert (found["step"], found["checkpoint"]["step"]) == (20, 20)
    assert found["steps_per_second"] == pytest.approx(found["sequences_per_second"] / 8)
    assert found["seconds_left"] == round(10 / found["steps_per_second"])


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], "not running"),
        ([{"event": "start", "run_id": "r-1", "job": "7", "restart": 0}], "lost"),
        ([{"event": "end", "job": "7", "restart": 0, "status": 75}], "saved"),
        ([{"event": "end", "job": "7", "restart": 0, "status": 1}], "failed"),
        ([{"event": "stop", "job": "7", "restart": 3, "reason": "3 restarts"}], "stopped"),
    ],
)
def test_state_follows_from_the_last_record(
    events: list[dict[str, Any]], state: str, halfway: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for event in events:
        add_event(halfway, Event.model_validate(event))
    assert told(halfway, capsys)[0]["state"] == state


def test_a_held_lock_is_a_run_outside_slurm(
    halfway: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(halfway / "run.lock"):
        (found,) = told(halfway, capsys)
    assert (found["state"], found["detail"]) == ("running", "outside Slurm")
    assert told(halfway, capsys)[0]["state"] == "not running"


def test_restarts_of_the_last_job_are_counted(
    halfway: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for job, restart in (("7", 0), ("7", 1), ("8", 0), ("8", 1), ("8", 2)):
        add_event(halfway, Event(event="start", run_id="r-1", job=job, restart=restart))
    (found,) = told(halfway, capsys)
    assert (found["restarts"], found["run_id"]) == (2, "r-1")


def test_starts_outside_slurm_are_told_with_their_ends(
    halfway: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINIMOE_LAUNCH", raising=False)
    (halfway / "starts.jsonl").unlink()
    for _ in range(2):
        launches.begin(halfway, host="n1", launcher="alone")
    (found,) = told(halfway, capsys)
    assert found["restarts"] == 1
    assert found["starts"][0].endswith("1 rank on n1: killed or lost at step 20")
    assert cli.main(["status", str(halfway)]) == 0
    assert "1 rank on n1: killed or lost at step 20" in capsys.readouterr().out


def test_each_stage_of_a_chain_has_its_column(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        shutil.copytree(unbroken, tmp_path / "chain" / name)
    assert cli.main(["status", str(tmp_path / "chain")]) == 0
    table = capsys.readouterr().out
    assert "first" in table and "second" in table and table.count("30 of 30") == 2


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", str(tmp_path)]) == 2
    assert f"{tmp_path}: no run in it" in capsys.readouterr().err


def test_what_is_wrong_still_is_told(halfway: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (halfway / "metrics.jsonl").read_text().splitlines(keepends=True)[:-1]
    found = {"health": "exploding_gradient", "student": "s", "value": 99.0, "limit": 9.0}
    over = {**found, "step": 9, "since": 8}
    still = {**found, "step": 20, "since": 20, "student": "student"}
    records = [over, {**over, "step": 10, "is_over": True}, still]
    added = [json.dumps(record) + "\n" for record in records]
    (halfway / "metrics.jsonl").write_text("".join(lines + added))
    words = "student: the gradient's norm is 99 (exploding above 9), since step 20"
    assert told(halfway, capsys)[0]["health"] == [words]
    assert cli.main(["status", str(halfway)]) == 0
    assert words in capsys.readouterr().out


def tuned(folder: Path, scores: list[float], total: int | None) -> Path:
    """A fine-tuning of which so many cells are done; with a total it is over."""
    cells = [
        {"seed": seed, "learning_rate": 1e-4, "batch_size": 8, "score": score}
        for seed, score in enumerate(scores)
    ]
    for cell in cells:
        path = folder / "cells" / f"seed{cell['seed']}" / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"facts": {}, "result": cell}))
    (folder / "starts.jsonl").write_text("")
    if total is not None:
        cells += cells[:1] * (total - len(cells))
        results = {"task": "sst2", "metric": "accuracy", "model": "m", "cells": cells}
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_a_fine_tuning_tells_its_cells_and_its_best_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = told(tuned(tmp_path / "run", [0.5, 0.75], None), capsys)
    assert found["cells"] == {"done": 2, "total": None, "best": 0.75, "metric": None}
    assert cli.main(["status", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "2 done" in text and "score 0.7500" in text and "step" not in text
    (found,) = told(tuned(tmp_path / "over", [0.5, 0.75], 2), capsys)
    assert found["cells"] == {"done": 2, "total": 2, "best": 0.75, "metric": "accuracy"}
    assert found["state"] == "finished"


def test_runs_stand_below_each_other_where_they_do_not_fit(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("first", "second", "third"):
        shutil.copytree(unbroken, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints"))
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if "30 of 30" in line]) == 3
    monkeypatch.delenv("COLUMNS")
    assert cli.main(["status", str(tmp_path)]) == 0
    (together,) = [line for line in capsys.readouterr().out.splitlines() if "30 of 30" in line]
    assert together.count("30 of 30") == 3


def test_many_runs_have_a_row_each(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for number in range(6):
        shutil.copytree(unbroken, tmp_path / f"r{number}",
                        ignore=shutil.ignore_patterns("checkpoints"))  # fmt: skip
    tuned(tmp_path / "tuned", [0.25], 3)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if "30 of 30" in line]) == 6
    (row,) = [line for line in lines if "tuned" in line]
    assert "1 of 3 done" in row and "accuracy 0.2500" in row
