"""A chain of stages through the real command: each export teaches, finished stages are skipped."""

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

from minimoe_dist.commands import distill
from minimoe_dist.config import load_stages
from minimoe_dist.config.commands import DistillOptions
from minimoe_dist.runtime import detect_launch
from tests.commands import support
from tests.commands.support import Workshop
from tests.distributed import run_distributed
from tests.train.test_memory import living_bytes

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
    assert f"stage second (2 of 3), {finished / 'second'}: finished before" in said
    assert f"stage third (3 of 3), {finished / 'third'}: begins" in said
    assert "at step 4" in said  # the third stage's checkpoint


def test_a_finished_stage_with_other_options_is_refused(finished: Path, workshop: Workshop) -> None:
    word = "stages.first.learning_rate=0.5"
    statuses, said = support.run(recipe(workshop, finished), word)
    assert statuses == [2, 2]
    assert "was finished with other options (training.learning_rate: 0.01 -> 0.5)" in said


def _bytes_at_each_start(path: str) -> list[int]:
    dist.destroy_process_group()  # the command starts its own
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(support.free_port())}
    found = []

    class Watched(distill.Distillation):
        def __init__(self, *arguments: Any) -> None:
            found.append(living_bytes())
            super().__init__(*arguments)

    with mock.patch.object(distill, "Distillation", Watched):
        options = DistillOptions(stages=load_stages(path))
        assert distill.run(options, detect_launch(os.environ)) == 0
    return found


def test_a_stage_leaves_no_memory_to_the_next(workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.recipe(
        tmp_path / "chain",
        stages=[{"name": name, "students": [ASSISTANT]} for name in ("a", "b", "c")],
        model_type="bert_minilm",
        teacher={"layout": "zero3"},
        training={"max_steps": 3},
        parallel={"expert_parallel_size": 1},
    )
    ((_, second, third),) = run_distributed(_bytes_at_each_start, 1, str(path))
    assert third - second < 2000
