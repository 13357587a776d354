"""``minimoe-dist distill`` from a recipe to its export, and what a run may be resumed with."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from minimoe_dist.cli import main
from minimoe_dist.models.pretrained import encoder_dtype
from tests.commands import support
from tests.commands.support import Workshop

# Progress, and what the package itself logs.
READABLE = re.compile(r"(step \d+/30  .*|\d\d:\d\d:\d\d INFO rank 0 minimoe_dist\..*)\n?")


@pytest.fixture(scope="module")
def torchrun(workshop: Workshop) -> tuple[Path, str]:
    """A run under torchrun: its folder, and all that it printed."""
    output_dir = workshop.folder / "torchrun"
    done = support.execute(support.torchrun(workshop.recipe(output_dir)))
    assert done.returncode == 0, done.stderr
    return output_dir, done.stdout + done.stderr


def continued(workshop: Workshop, finished: Path, output_dir: Path, step: int, **more: Any) -> Path:
    """A recipe whose output folder holds a finished run's checkpoints up to a step."""
    shutil.copytree(finished / "checkpoints", output_dir / "checkpoints")
    for later in support.checkpoints(output_dir):
        if later > step:
            shutil.rmtree(output_dir / "checkpoints" / f"step_{later:08d}")
    return workshop.recipe(output_dir, **more)


def test_torchrun_trains_to_a_lower_heldout_loss(torchrun: tuple[Path, str]) -> None:
    summary = json.loads((torchrun[0] / "summary.json").read_text())
    student = summary["students"]["student"]
    assert student["heldout_loss_after"] < 0.9 * student["heldout_loss_before"]
    assert (summary["world_size"], summary["expert_parallel_size"], summary["steps"]) == (2, 2, 30)


def test_torchrun_writes_a_record_a_step_and_evaluates_at_intervals(
    torchrun: tuple[Path, str],
) -> None:
    assert sorted(support.losses(torchrun[0])) == list(range(1, 31))
    assert sorted(support.heldout(torchrun[0])) == [0, 15, 30]


def test_torchrun_writes_tensorboard_scalars(torchrun: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(torchrun[0] / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("student/loss")] == list(range(1, 31))


def test_torchrun_keeps_the_two_newest_checkpoints(torchrun: tuple[Path, str]) -> None:
    assert support.checkpoints(torchrun[0]) == [20, 30]


def test_torchrun_exports_a_student_with_its_tokenizer(torchrun: tuple[Path, str]) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = torchrun[0] / "export" / "student"
    encoded = AutoTokenizer.from_pretrained(folder)("word1 word2", return_tensors="pt")
    hidden = AutoModel.from_pretrained(folder)(**encoded).last_hidden_state
    assert hidden.shape == (1, 4, 16)


def test_torchrun_prints_nothing_but_progress(torchrun: tuple[Path, str]) -> None:
    lines = torchrun[1].splitlines()
    assert [line for line in lines if not READABLE.fullmatch(line)] == []


def test_forked_ranks_do_what_torchrun_does(torchrun: tuple[Path, str], unbroken: Path) -> None:
    support.assert_same_run(torchrun[0], unbroken)


def test_one_process_alone_takes_the_same_steps_as_two(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "alone", training={"per_device_train_batch_size": 8})
    support.finish(recipe, "parallel.expert_parallel_size=1", world_size=1)
    # Rounding differs and grows, so early steps are compared.
    compare_losses(tmp_path / "alone", unbroken, range(1, 6))


def compare_losses(one: Path, other: Path, steps: range) -> None:
    found, expected = (
        [support.losses(folder)[step]["student"]["loss"] for step in steps]
        for folder in (one, other)
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_another_world_size_and_zero_stage_go_on_with_the_same_steps(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = continued(
        workshop,
        unbroken,
        tmp_path / "run",
        20,
        training={"per_device_train_batch_size": 8},
        parallel={"expert_parallel_size": 1, "zero_stage": 2},
    )
    said = support.finish(recipe, world_size=1)
    assert "resumed from" in said and "at step 20" in said
    compare_losses(tmp_path / "run", unbroken, range(21, 26))


def test_a_global_batch_goes_on_on_fewer_ranks_by_the_same_options(
    workshop: Workshop, tmp_path: Path
) -> None:
    """A plain student: the balance of experts is of a micro-batch."""
    options = {
        "students": [{"layer": 1, "hidden": 16, "heads": 2}],
        "model_type": "bert_minilm",
        "teacher": {"dtype": "float32"},
        "training": {"global_batch_size": 8, "max_steps": 12, "save_interval": 6},
        "parallel": {"expert_parallel_size": 1, "precision": "fp32"},
    }
    whole = tmp_path / "whole"
    support.finish(workshop.recipe(whole, **options))
    recipe = continued(workshop, whole, tmp_path / "run", 6, **options)
    said = support.finish(recipe, world_size=1)
    assert "resumed from" in said and "at step 6" in said
    compare_losses(tmp_path / "run", whole, range(7, 13))
    found = [json.loads((folder / "summary.json").read_text())["options"]["training"]
             for folder in (whole, tmp_path / "run")]  # fmt: skip
    names = ("per_device_train_batch_size", "num_grad_accum_steps", "global_batch_size")
    # A summary tells the bounds, which hold on any number of ranks.
    assert [[each[name] for name in names] for each in found] == [[4, 1, 8], [4, 1, 8]]
    progress = tmp_path / "run" / "checkpoints" / "step_00000012" / "run.json"
    facts = json.loads(progress.read_text())["facts"]
    assert facts["global_batch_size"] == facts["training"]["global_batch_size"] == 8
    assert facts["training"]["num_grad_accum_steps"] == 1


def test_a_changed_option_is_shown_and_refused(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = continued(workshop, unbroken, tmp_path / "run", 30, training={"learning_rate": 0.02})
    statuses, said = support.run(recipe)
    assert statuses == [2, 2]
    assert said.count("\n") == 1
    assert "training.learning_rate: 0.01 -> 0.02" in said
    assert "--allow_changed_options" in said


def test_a_changed_option_is_taken_where_that_is_allowed(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = continued(workshop, unbroken, tmp_path / "run", 30)
    said = support.finish(recipe, "--max_steps=33", "--allow_changed_options")
    assert "option changed since the checkpoint: training.max_steps: 30 -> 33" in said
    assert sorted(support.losses(tmp_path / "run")) == [31, 32, 33]


def test_another_corpus_is_refused(workshop: Workshop, unbroken: Path, tmp_path: Path) -> None:
    corpus = support.make_corpus(tmp_path / "other", workshop.teacher, seed=3)
    recipe = continued(workshop, unbroken, tmp_path / "run", 30)
    statuses, said = support.run(recipe, f"--record_path_or_regex={corpus}")
    assert statuses == [2, 2]
    assert "corpora.0: " in said


def test_another_heldout_corpus_is_refused(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    corpus = support.make_corpus(tmp_path / "other", workshop.teacher, seed=3)
    recipe = continued(workshop, unbroken, tmp_path / "run", 30)
    statuses, said = support.run(recipe, f"--heldout_path_or_regex={corpus}")
    assert statuses == [2, 2]
    assert "heldout_corpora.0: " in said


def test_tokens_in_another_order_without_a_manifest_are_refused(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    tokens = Path(f"{workshop.train}.bin").read_bytes()
    half = len(tokens) // 4 * 2
    (tmp_path / "moved.bin").write_bytes(tokens[half:] + tokens[:half])
    shutil.copy(f"{workshop.train}.idx", tmp_path / "moved.idx")
    recipe = continued(workshop, unbroken, tmp_path / "run", 30)
    statuses, said = support.run(recipe, f"--record_path_or_regex={tmp_path / 'moved'}")
    assert statuses == [2, 2]
    assert "corpora.0: " in said


def test_another_teacher_is_refused_and_the_same_one_elsewhere_is_not(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(workshop.teacher, teacher)
    recipe = continued(workshop, unbroken, tmp_path / "run", 30)
    support.finish(recipe, f"--teacher.model_name_or_path={teacher}")
    weights = load_file(teacher / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    weights[name] *= 1.5
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    statuses, said = support.run(recipe, f"--teacher.model_name_or_path={teacher}")
    assert statuses == [2, 2]
    assert "teacher_contents: " in said


def test_a_moved_corpus_is_the_same_corpus(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    for suffix in (".bin", ".idx", ".manifest.json"):
        shutil.copy(f"{workshop.train}{suffix}", tmp_path / f"moved{suffix}")
    recipe = continued(workshop, unbroken, tmp_path / "run", 30)
    support.finish(recipe, f"--record_path_or_regex={tmp_path / 'moved'}")
    assert "export" in {path.name for path in (tmp_path / "run").iterdir()}


def test_resume_never_starts_anew(workshop: Workshop, unbroken: Path, tmp_path: Path) -> None:
    recipe = continued(workshop, unbroken, tmp_path / "run", 30)
    support.finish(recipe, "--resume=never", "--max_steps=2")
    assert sorted(support.losses(tmp_path / "run")) == [1, 2]
    shorter = workshop.recipe(tmp_path / "run")
    assert "at step 2" in support.run(shorter, "--max_steps=2")[1]


def test_corpora_come_by_pattern_and_by_weight(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "corpora"
    for seed in (3, 4):
        support.make_corpus(folder / f"part_{seed}", workshop.teacher, seed=seed, documents=40)
    data = {
        "record_path_or_regex": [
            {"path": str(folder / "part_*"), "weight": 2.0},
            {"path": str(workshop.train), "weight": 0.5},
        ]
    }
    recipe = workshop.recipe(tmp_path / "run", data=data, training={"save_interval": 2})
    support.finish(recipe, "--max_steps=2")
    saved = json.loads(
        (tmp_path / "run" / "checkpoints" / "step_00000002" / "run.json").read_text()
    )
    assert [one.split(" × ")[1] for one in saved["facts"]["corpora"]] == ["2", "2", "0.5"]


def test_masked_text_is_learnt_from(workshop: Workshop, unbroken: Path, tmp_path: Path) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    support.finish(recipe, "--data_type=bert_mlm", "--whole_word_mask", "--max_steps=2")
    masked, plain = (support.losses(one)[1]["student"] for one in (tmp_path / "run", unbroken))
    assert masked["loss"] != plain["loss"]
    assert masked["skipped_steps"] == 0


def test_a_tilde_is_the_home_folder(workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    environment = {"HOME": str(tmp_path)}
    support.run(recipe, "output_dir=~/elsewhere", "--max_steps=1", environment=environment)
    assert (tmp_path / "elsewhere" / "summary.json").is_file()


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_an_open_precision_is_what_the_device_multiplies(
    workshop: Workshop, tmp_path: Path, zero_stage: int
) -> None:
    wanted = torch.float32
    if zero_stage:
        wanted = encoder_dtype("auto", torch.device("cpu"))
    parallel = {"zero_stage": zero_stage, "precision": "auto"}
    recipe = workshop.recipe(tmp_path / "run", parallel=parallel, training={"max_steps": 2})
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[wanted]
    assert f"precision auto: {name}" in support.finish(recipe)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["options"]["parallel"]["precision"] == name
    assert "resumed from" in support.finish(recipe, "--max_steps=2")


def test_a_dry_run_keeps_the_bounds_of_a_global_batch(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = workshop.recipe(
        tmp_path / "run", training={"global_batch_size": 16}, parallel={"expert_parallel_size": 1}
    )
    assert main(["distill", "--config", str(recipe), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "global batch 16 (4 a rank × 4 micro-batches × 1 ranks)" in said
    training = yaml.safe_load(said)["training"]
    names = ("global_batch_size", "per_device_train_batch_size", "num_grad_accum_steps")
    assert [training[name] for name in names] == [16, 4, 1]


def test_a_json_of_other_micro_batches_than_the_ranks_have_is_refused_at_once(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"gradient_accumulation_steps": 1}))
    recipe = workshop.recipe(
        tmp_path / "run",
        training={"global_batch_size": 16},
        parallel={"expert_parallel_size": 1, "deepspeed": str(tmp_path / "ds.json")},
    )
    assert main(["distill", "--config", str(recipe)]) == 2
    assert "gradient_accumulation_steps 1 contradicts" in capsys.readouterr().err


def test_a_tracker_that_could_keep_nothing_is_refused(
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe = workshop.recipe(tmp_path / "run", parallel={"expert_parallel_size": 1})
    words = ["distill", "--config", str(recipe), "--report_to"]
    assert main([*words, "mlflow"]) == 2
    assert "mlflow has no MLFLOW_TRACKING_URI" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([*words, "wandb"]) == 2
    assert "the package wandb is not installed; pip install wandb" in capsys.readouterr().err
