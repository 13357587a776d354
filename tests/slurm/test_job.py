"""What a job does before and after srun, up to asking Slurm itself (that: test_slurm_jobs)."""

import json
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.runs.starts import read_events
from minimoe_dist.slurm import job
from tests.commands.support import Workshop


@pytest.fixture(autouse=True)
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_RESTART_COUNT": "0",
        "PATH": "/usr/bin:/bin",
    }.items():
        monkeypatch.setenv(name, value)


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]


def test_begin_notes_where_the_run_starts(workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    assert job.main(["begin", "distill", "--config", str(recipe), "--max_steps=3"]) == 0
    (record,) = records(tmp_path / "run")
    assert (record["job"], record["restart"], record["nodes"]) == ("7", 0, "n[1-2]")
    assert record["plans"] == {".": {"global_batch_size": 8, "total_steps": 3}}
    assert record["progress"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--record_path_or_regex", "/no/corpus"], "/no/corpus"),
        (["--expert_parallel_size", "4"], "4 does not divide the 2 processes"),
        (["--layr", "4"], "did you mean --layer?"),
    ],
)
def test_begin_refuses_what_every_rank_would_refuse(
    words: list[str],
    message: str,
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    assert job.main(["begin", "distill", "--config", str(recipe), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_begin_stops_a_job_that_slurm_requeues_in_vain(
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["begin", "distill", "--config", str(workshop.recipe(tmp_path / "run"))]
    for restart, status in enumerate([0, 0, 0, 0, 1]):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        assert job.main(words) == status
    assert records(tmp_path / "run")[-1]["event"] == "stop"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("minimoe-dist: job 7: stopped after 3 restarts without progress")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "job 7: done"),
        (2, "ended with status 2 at step 0: mend what the line above names"),
        (70, "ended with status 70 at step 0: not requeued (scontrol: not found"),
        (74, "ended with status 74 at step 0: not requeued (scontrol: not found"),
        (75, "stopped and saved at step 0: not requeued (scontrol: not found"),
        (137, "ended with status 137 (Killed) at step 0: not requeued"),
    ],
)
def test_end_says_what_becomes_of_the_job_and_keeps_its_status(
    status: int,
    words: str,
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    recipe = workshop.recipe(tmp_path / "run")
    (tmp_path / "run").mkdir()
    given = ["end", str(status), "distill", "--config", str(recipe)]
    assert job.main(given) == status
    assert words in capsys.readouterr().out
    assert records(tmp_path / "run")[-1]["status"] == status
    assert read_events(tmp_path / "run")[-1].event == "end"


@pytest.mark.parametrize(
    "words", [["dance"], ["demo"], ["convert", "--input", "a", "--output", "b"]], ids=lambda w: w[0]
)
def test_a_command_that_is_none_for_jobs_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main(["begin", *words]) == 2
    said = capsys.readouterr().err
    assert "not a command for jobs; there are distill, sparsify, finetune" in said
