"""Training on a GPU: recorded passes do what padded ones do, repeat bit for bit, and never wait."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

ROOT = Path(__file__).parent.parent.parent
# Losses and norms of six steps; half precision rounds otherwise where operators are joined.
PRECISION = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 3e-2}


def check(name: str, folder: Path) -> Any:
    """What a check of `on_gpu` found; a process of its own, since tests run DeepSpeed on CPUs."""
    environment = {**os.environ, "DS_ACCELERATOR": "cuda", "LOCAL_RANK": "0"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.train.on_gpu", name, str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def assert_close(found: list[list[float]], wanted: list[list[float]], precision: str) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=PRECISION[precision], abs=1e-4)


def test_every_way_to_run_passes_trains_alike(tmp_path: Path) -> None:
    found = check("ways", tmp_path)
    assert len(found) == 3 * 3 * 3
    for name, rows in found.items():
        student, precision, kind = name.rsplit(" ", 2)
        if kind != "padded":
            assert_close(rows, found[f"{student} {precision} padded"], precision)


def test_masked_tokens_are_learnt_from_as_on_padded_batches(tmp_path: Path) -> None:
    found = check("masked", tmp_path)
    assert_close(found["captured"], found["padded"], "bf16")


def test_last_states_are_learnt_from_as_on_padded_batches(tmp_path: Path) -> None:
    found = check("states", tmp_path)
    assert len(found) == 2 * 3
    for name, rows in found.items():
        student, _ = name.rsplit(" ", 1)
        assert_close(rows, found[f"{student} padded"], "bf16")


def test_signals_of_a_cache_teach_as_the_teacher_does(tmp_path: Path) -> None:
    found = check("recalled", tmp_path)
    assert_close(found["bfloat16"], found["computed"], "bf16")
    assert_close(found["int8"], found["computed"], "bf16")


def test_predictions_that_are_known_teach_as_the_teacher_does(tmp_path: Path) -> None:
    found = check("predictions", tmp_path)
    assert_close(found["once"], found["every step"], "bf16")


def test_runs_repeat_bit_for_bit_also_beside_others_and_resumed(tmp_path: Path) -> None:
    found = check("repeats", tmp_path)
    assert found["again"] == found["once"]
    assert found["beside"] == found["once"]
    assert found["resumed"] == found["once"]


def test_no_step_waits_for_the_device(tmp_path: Path) -> None:
    assert len(check("waits", tmp_path)["losses"]) == 4


def test_evaluation_is_the_padded_batches(tmp_path: Path) -> None:
    found = check("evaluation", tmp_path)
    assert found["captured"] == pytest.approx(found["padded"], rel=1e-2)


def test_megatron_cores_model_gives_the_signals_of_our_own(tmp_path: Path) -> None:
    found = check("by_megatron", tmp_path)
    assert found["float32"] < 1e-4
    assert found["bfloat16"] < 0.2
