"""A chain of stages through the real command: each export teaches, finished stages are skipped."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands import support
from tests.commands.support import Workshop

ASSISTANT = {"layer": 2, "hidden": 16, "heads": 2}
# Its experts begin as copies of what an earlier stage trains.
COPIES = {"start": "copies", "initial_weights": "stage:first/student"}
STUDENT = {**ASSISTANT, "moe": "1,2", **COPIES}


def recipe(workshop: Workshop, output_dir: Path) -> Path:
    stages: list[dict[str, Any]] = [
        {"name": "first", "model_type": "bert_minilm", "students": [ASSISTANT]},
        {"name": "second", "model_type": "bert_minilm", "students": [ASSISTANT]},
        {"name": "third", "model_type": "moebert_minilm", "students": [STUDENT]},
    ]
    return workshop.recipe(
        output_dir,
        stages=stages,
        training={"max_steps": 4, "save_interval": 2, "eval_interval": 4},
        parallel={"expert_parallel_size": 1},
    )


@pytest.fixture(scope="module")
def finished(workshop: Workshop) -> Path:
    output_dir = workshop.folder / "chain"
    support.finish(recipe(workshop, output_dir))
    return output_dir


def test_every_stage_learns_from_the_one_before(finished: Path, workshop: Workshop) -> None:
    names = ("first", "second", "third")
    summaries = [json.loads((finished / name / "summary.json").read_text()) for name in names]
    exports = [summary["students"]["student"]["export"] for summary in summaries]
    teachers = [summary["teacher"] for summary in summaries]
    assert teachers == [str(workshop.teacher), *exports[:2]]


def test_finished_stages_are_skipped(finished: Path, workshop: Workshop) -> None:
    (finished / "third" / "summary.json").unlink()
    said = support.finish(recipe(workshop, finished))
    assert said.count("finished before") == 2
    assert "at step 4" in said  # the third stage's checkpoint


def test_a_finished_stage_with_other_options_is_refused(finished: Path, workshop: Workshop) -> None:
    statuses, said = support.run(recipe(workshop, finished), "--learning_rate", "0.5")
    assert statuses == [2, 2]
    assert "was finished with other options (training.learning_rate: 0.01 -> 0.5)" in said
