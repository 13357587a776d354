"""Runs with sharded teachers: the replicated run's losses, its resume, and its refusals."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minimoe_dist.config import load_run_config
from minimoe_dist.preflight.recipes import problems_of_stages
from minimoe_dist.runtime import Launch
from tests.commands import support
from tests.commands.support import Workshop

STEPS = {"max_steps": 12, "save_interval": 6, "eval_interval": 6}
FLOAT32 = {"dtype": "float32"}


def recipe_of(workshop: Workshop, output_dir: Path, teacher: dict[str, Any], **more: Any) -> Path:
    """ZeRO-1, experts over two ranks, 12 steps; a float32 teacher."""
    whole = {"model_name_or_path": str(workshop.teacher), **FLOAT32, **teacher}
    more["training"] = STEPS | more.get("training", {})
    return workshop.recipe(output_dir, teacher=whole, **more)


@pytest.fixture(scope="module")
def replicated(workshop: Workshop) -> Path:
    output_dir = workshop.folder / "replicated"
    support.finish(recipe_of(workshop, output_dir, {}))
    return output_dir


@pytest.fixture(scope="module", params=["zero3", "tensor"])
def sharded(request: pytest.FixtureRequest, workshop: Workshop) -> tuple[str, Path]:
    """A layout, and the folder of a run with a teacher of it over both ranks."""
    output_dir = workshop.folder / f"sharded_{request.param}"
    support.finish(recipe_of(workshop, output_dir, {"layout": request.param}))
    return request.param, output_dir


def assert_same_losses(one: Path, other: Path) -> None:
    """Two runs agree in every step and evaluation to 1e-5."""
    for found in (support.losses, support.heldout):
        assert found(one).keys() == found(other).keys()
    for step, students in support.losses(other).items():
        ours, theirs = support.losses(one)[step]["student"], students["student"]
        torch.testing.assert_close(ours["loss"], theirs["loss"], atol=1e-5, rtol=1e-5)
    for step, students in support.heldout(other).items():
        ours = support.heldout(one)[step]
        torch.testing.assert_close(ours["student"], students["student"], atol=1e-5, rtol=1e-5)


def test_a_sharded_teacher_gives_the_replicated_runs_losses(
    sharded: tuple[str, Path], replicated: Path
) -> None:
    assert_same_losses(sharded[1], replicated)


def test_the_summary_tells_the_teachers_layout(sharded: tuple[str, Path], replicated: Path) -> None:
    layout, output_dir = sharded
    summary, whole = (
        json.loads((folder / "summary.json").read_text()) for folder in (output_dir, replicated)
    )
    assert (summary["teacher_layout"], summary["teacher_ranks"]) == (layout, 2)
    assert (whole["teacher_layout"], whole["teacher_ranks"]) == ("replicated", 1)
    assert summary["teacher_bytes_per_rank"] < 0.7 * whole["teacher_bytes_per_rank"]


def test_a_killed_rank_takes_the_others_along_and_the_run_resumes_bitwise(
    sharded: tuple[str, Path], workshop: Workshop, tmp_path: Path
) -> None:
    layout, unbroken = sharded
    recipe = recipe_of(workshop, tmp_path / "run", {"layout": layout})
    with support.start(recipe) as ranks:
        ranks.until_step(8)
        ranks.signal(signal.SIGKILL, 1)
        assert ranks.wait(0) == [1]
        assert ranks.said().count("rank 1 has died") == 1
        assert "Traceback" not in ranks.said()
    assert "at step 6" in support.finish(recipe)
    support.assert_same_run(tmp_path / "run", unbroken)


def test_a_stopped_rank_ends_the_others_after_the_time_out(
    workshop: Workshop, tmp_path: Path
) -> None:
    parallel = {"timeout_seconds": 4}
    recipe = recipe_of(workshop, tmp_path / "run", {"layout": "tensor"}, parallel=parallel)
    with support.start(recipe) as ranks:
        ranks.until_step(3)
        ranks.signal(signal.SIGSTOP, 1)
        assert ranks.wait(0) == [1]
        assert "rank 1 has given no sign of life for 4 s" in ranks.said()
        assert "Traceback" not in ranks.said()


def test_another_layout_goes_on_with_the_same_steps(
    workshop: Workshop, replicated: Path, tmp_path: Path
) -> None:
    shutil.copytree(replicated / "checkpoints", tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000012")
    said = support.finish(recipe_of(workshop, tmp_path / "run", {"layout": "tensor"}))
    assert "at step 6" in said
    for step, students in support.losses(tmp_path / "run").items():
        expected = support.losses(replicated)[step]["student"]["loss"]
        torch.testing.assert_close(students["student"]["loss"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("teacher", "parallel"),
    [
        ({"layout": "tensor", "parallel_size": 2}, {}),
        ({"layout": "zero3", "parallel_size": 2}, {"zero_stage": 2}),
        ({"layout": "zero3"}, {"zero_stage": 3, "expert_parallel_size": 1}),
    ],
    ids=str,
)
def test_teachers_over_groups_of_four_ranks_give_the_replicated_runs_losses(
    teacher: dict[str, Any],
    parallel: dict[str, Any],
    workshop: Workshop,
    replicated: Path,
    tmp_path: Path,
) -> None:
    # The same global batches; and fewer held-out pairs than ranks, so that some have none.
    training = {"per_device_train_batch_size": 2}
    recipe = recipe_of(workshop, tmp_path / "run", teacher, training=training, parallel=parallel)
    support.finish(recipe, "--max_steps=2", "--eval_sequences=3", world_size=4)
    for step in (1, 2):
        ours, theirs = (
            support.losses(folder)[step]["student"]["relation_loss"]
            for folder in (tmp_path / "run", replicated)
        )
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert support.heldout(tmp_path / "run")[2]["student"] > 0


def problems(workshop: Workshop, output_dir: Path, *overrides: str, ranks: int = 2) -> list[str]:
    recipe = workshop.recipe(output_dir, parallel={"expert_parallel_size": 1})
    config = load_run_config(str(recipe), list(overrides))
    launch = Launch(0, ranks, 0, ranks, "127.0.0.1", 29500, "torchrun")
    (found,) = problems_of_stages([config], launch, "cpu")
    return found


@pytest.mark.parametrize(
    ("options", "ranks", "words"),
    [
        (["zero3", "2"], 3, "teacher.parallel_size: 2 does not divide the 3 processes"),
        (["tensor", "8"], 8, "8 does not divide the 4 attention heads"),
        (["tensor", None], 3, "3 does not divide the 4 attention heads"),
        (["tensor", "2"], 4, None),
        (["zero3", "3"], 3, None),
    ],
)
def test_a_size_that_does_not_divide_is_found_before_the_start(
    options: list[str], ranks: int, words: str | None, workshop: Workshop, tmp_path: Path
) -> None:
    layout, size = options
    overrides = [f"--teacher_layout={layout}"] + [f"--teacher_parallel_size={size}"] * bool(size)
    found = problems(workshop, tmp_path / "run", *overrides, ranks=ranks)
    assert len(found) == (words is not None) and (words or "") in "".join(found)


@pytest.mark.parametrize("layout", ["zero3", "tensor"])
def test_a_pickle_cannot_be_read_in_pieces(layout: str, workshop: Workshop, tmp_path: Path) -> None:
    teacher = shutil.copytree(workshop.teacher, tmp_path / "teacher")
    torch.save(load_file(teacher / "model.safetensors"), teacher / "pytorch_model.bin")
    (teacher / "model.safetensors").unlink()
    options = [f"--teacher_layout={layout}", f"--teacher_model_name_or_path={teacher}"]
    (said,) = problems(workshop, tmp_path / "run", *options)
    assert said.startswith(f"teacher.layout: {layout} reads weights in pieces")
    assert "convert it with transformers' save_pretrained" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "minimoe"}, "a student of type minimoe; use zero3 or replicated"),
        ({"moe": "1,4"}, "is a published student, which is loaded whole; use replicated"),
    ],
    ids=str,
)
def test_students_that_cannot_be_cut_are_found_before_the_start(
    changes: dict[str, str], words: str, workshop: Workshop, tmp_path: Path
) -> None:
    teacher = shutil.copytree(workshop.teacher, tmp_path / "teacher")
    path = teacher / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    options = ["--teacher_layout=tensor", f"--teacher_model_name_or_path={teacher}"]
    assert any(words in said for said in problems(workshop, tmp_path / "run", *options))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--teacher_parallel_size=2"], "2 needs layout zero3 or tensor; leave it out"),
        (["--teacher_offload=cpu"], "'cpu' goes with layout zero3 only"),
        (["--teacher_layout=tensor", "--teacher_offload=cpu"], "goes with layout zero3 only"),
        (
            ["--teacher_layout=zero3", "--model_type=bert_mlm", "--moe=1,1"],
            "'zero3', but no teacher runs without relations",
        ),
        (
            ["--teacher_layout=zero3", "--model_type=bert_tinybert", "--moe=1,1"],
            "'zero3' has no place in bert_tinybert",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "".join(value),
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused(
    overrides: list[str], words: str, workshop: Workshop, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        problems(workshop, tmp_path / "run", *overrides)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "# teacher replicated, whole on each rank\n"),
        (["--teacher_layout=tensor", "--teacher_parallel_size=1"],
         "# teacher tensor, each copy over 1 of 1 ranks\n"),
        (["--teacher_layout=zero3", "--teacher_offload=cpu"],
         "# teacher zero3, each copy over 1 of 1 ranks, parts in host memory\n"),
    ],
    ids=lambda value: None if isinstance(value, str) else "".join(value),
)  # fmt: skip
def test_a_dry_run_names_the_layout(
    options: list[str],
    words: str,
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from minimoe_dist import cli

    recipe = workshop.recipe(tmp_path / "run", parallel={"expert_parallel_size": 1})
    assert cli.main(["distill", "--config", str(recipe), "--dry_run", *options]) == 0
    assert words in capsys.readouterr().out
