"""Curves go to TensorBoard, W&B and MLflow by their own libraries, without a network."""

import io
import json
import logging
import threading
import time
from pathlib import Path

import pytest

from minimoe_dist.config import load_run_config
from minimoe_dist.runs.folder import RunFolder
from minimoe_dist.train import trackers
from minimoe_dist.train.metrics import Metrics
from minimoe_dist.train.trackers import open_trackers
from tests.train.test_metrics import step_metrics

OPTIONS = {"seed": 5, "training": {"max_steps": 4}, "students": [{"moe": "1,4"}]}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def train(folder: Path, steps: range, *names: str) -> None:
    metrics = Metrics(
        folder,
        total_steps=4,
        first_step=steps.start - 1,
        stream=io.StringIO(),
        report_to=names,
        run_options=OPTIONS,
    )
    with metrics:
        for step in steps:
            metrics.step(step, step_metrics(loss=1.0 / step))
        metrics.evaluation(steps[-1], {"student": 0.25})


def mlflow_runs() -> list:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "minimoe-dist"]
    return client.search_runs([experiment.experiment_id])


def test_mlflow_has_options_and_curves_and_a_run_goes_on_there(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    train(tmp_path / "run", range(1, 3), "mlflow")
    train(tmp_path / "run", range(3, 5), "mlflow")
    (run,) = mlflow_runs()
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params == {"seed": "5", "training.max_steps": "4", "students.0.moe": "1,4"}
    history = MlflowClient().get_metric_history(run.info.run_id, "student/loss")
    found = sorted((one.step, one.value) for one in history)
    assert found == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
    assert run.data.metrics["student/heldout_loss"] == 0.25
    train(tmp_path / "run", range(1, 2), "mlflow")  # anew
    assert len(mlflow_runs()) == 2


def test_wandb_writes_a_run_of_one_id(tmp_path: Path) -> None:
    train(tmp_path / "run", range(1, 3), "wandb", "tensorboard")
    train(tmp_path / "run", range(3, 4), "wandb", "tensorboard")
    number = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]
    files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{number}.wandb"))
    assert files, list((tmp_path / "run" / "wandb").iterdir())
    content = b"".join(file.read_bytes() for file in files)
    assert b"student/loss" in content and b"trained_steps" in content and b"max_steps" in content
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_nothing_is_written_where_none_is_wanted(tmp_path: Path) -> None:
    train(tmp_path / "run", range(1, 3))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics.jsonl"}


def test_a_tracker_that_fails_is_told_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        id = "x"

        def add(self, step: int, scalars: dict) -> None:
            raise RuntimeError("no route to host\nand more")

        def close(self) -> None:
            raise AssertionError("it was given up")

    def refusing(*arguments: object) -> None:
        raise ValueError("no key")

    monkeypatch.setattr(trackers, "_Mlflow", lambda *arguments: Failing())
    monkeypatch.setattr(trackers, "_Wandb", refusing)
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", range(1, 4), "wandb", "mlflow")
    told = [record.getMessage() for record in caplog.records]
    assert sorted(line for line in told if "takes nothing any more" in line) == [
        "mlflow takes nothing any more (no route to host); the run goes on",
        "wandb takes nothing any more (no key); the run goes on",
    ]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


def test_what_is_no_number_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {}

    class Taking:
        id = "x"

        def add(self, step: int, scalars: dict) -> None:
            sent[step] = scalars

        def close(self) -> None:
            sent["end"] = True

    monkeypatch.setattr(trackers, "_Wandb", lambda *arguments: Taking())
    (tracker,) = open_trackers(["wandb"], RunFolder(tmp_path), 0, {})
    tracker.add(3, {"a": 1.0, "b": float("nan"), "c": float("inf")})
    tracker.close()
    assert sent == {3: {"a": 1.0}, "end": True}


def test_a_tracker_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = threading.Event()

    def opened(*arguments: object) -> None:
        answer.wait()
        raise ValueError("too late")

    monkeypatch.setattr(trackers, "_Wandb", opened)
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", 0.2)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", range(1, 4), "wandb")
    assert time.monotonic() - started < 5
    answer.set()
    (told,) = [one.getMessage() for one in caplog.records if "wandb" in one.getMessage()]
    assert "no answer within 0.2 s" in told


def test_a_run_that_begins_anew_forgets_its_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trackers.json").write_text('{"wandb": "old"}')

    def refusing(*arguments: object) -> None:
        raise ValueError("no key")

    monkeypatch.setattr(trackers, "_Wandb", refusing)
    (tracker,) = open_trackers(["wandb"], RunFolder(tmp_path), 0, {})
    tracker.close()
    assert not (tmp_path / "trackers.json").exists()


@pytest.mark.parametrize(
    ("text", "names"),
    [("none", []), ("wandb", ["wandb"]), ("tensorboard, mlflow", ["tensorboard", "mlflow"])],
)
def test_trackers_are_named_by_an_option(text: str, names: list[str]) -> None:
    needed = ["--teacher_model_name_or_path=t", "--record_path_or_regex=c", "--output_dir=o"]
    assert load_run_config(None, [*needed, f"--report_to={text}"]).training.report_to == names
    assert load_run_config(None, needed).training.report_to == ["tensorboard"]
    with pytest.raises(ValueError, match="report_to"):
        load_run_config(None, [*needed, "--report_to=visdom"])
