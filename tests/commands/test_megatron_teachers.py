"""Runs whose teacher is a checkpoint of Megatron's, against runs with its conversion."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minimoe_dist.checkpoints.megatron.converting import to_megatron
from minimoe_dist.checkpoints.megatron.writing import Target
from tests.commands import support
from tests.commands.support import Workshop

STEPS = {"max_steps": 8, "save_interval": 4, "eval_interval": 4}


@pytest.fixture(scope="module")
def folders(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher's folder, and its checkpoint of two tensor and two pipeline ranks."""
    folder = tmp_path_factory.mktemp("teachers")
    teacher = support.make_teacher(folder / "huggingface", family="megatron-bert")
    split = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    to_megatron(teacher, folder / "megatron", Target(**split, divisible_by=4), compare=False)
    return teacher, folder / "megatron"


def recipe_of(workshop: Workshop, output_dir: Path, folder: Path, **more: Any) -> Path:
    sections = {
        "model_type": "megatronbert_minilm",
        "teacher": {
            "model_name_or_path": str(folder),
            "tokenizer_name_or_path": str(workshop.teacher),
            "dtype": "float32",
            **more.pop("teacher", {}),
        },
        "students": [{"layer": 1, "hidden": 16, "heads": 2, "moe": "1,1"}],
        "training": STEPS,
        "parallel": {"expert_parallel_size": 1},
    }
    return workshop.recipe(output_dir, **sections | more)


@pytest.mark.parametrize("layout", ["replicated", "zero3", "tensor"])
def test_a_run_learns_what_it_learns_from_the_conversion(
    layout: str, folders: tuple[Path, Path], workshop: Workshop, tmp_path: Path
) -> None:
    said = []
    for name, teacher in zip(("huggingface", "megatron"), folders, strict=True):
        layouts = {"teacher": {"layout": layout}}
        said.append(support.finish(recipe_of(workshop, tmp_path / name, teacher, **layouts)))
    support.assert_same_run(tmp_path / "megatron", tmp_path / "huggingface")
    summary = json.loads((tmp_path / "megatron/summary.json").read_text())
    assert summary["teacher"] == str(folders[1])


@pytest.mark.parametrize("layout", ["replicated", "tensor"])
def test_by_megatron_core_a_run_learns_the_same(
    layout: str, folders: tuple[Path, Path], workshop: Workshop, tmp_path: Path
) -> None:
    for name, number in (("megatron", 1), ("transformers", 0)):
        options = {"layout": layout, "implementation": name}
        said = support.finish(
            recipe_of(workshop, tmp_path / name, folders[number], teacher=options)
        )
        assert (": by megatron-core, over" in said) is (name == "megatron")
        assert "Warning" not in said
    for found in (support.losses, support.heldout):
        ours, theirs = found(tmp_path / "megatron"), found(tmp_path / "transformers")
        assert ours.keys() == theirs.keys()
        for step, students in theirs.items():
            torch.testing.assert_close(ours[step], students, rtol=1e-4, atol=1e-4)
    # Whose code runs the teacher may change on the way.
    shutil.rmtree(tmp_path / "megatron" / "checkpoints" / "step_00000008")
    recipe = recipe_of(workshop, tmp_path / "megatron", folders[1], teacher={"layout": layout})
    assert "at step 4" in support.finish(recipe)


def test_a_student_starts_from_its_weights_as_from_the_conversions(
    folders: tuple[Path, Path], workshop: Workshop, tmp_path: Path
) -> None:
    student = {"layer": 2, "hidden": 16, "heads": 2, "moe": "1,1", "start": "teacher"}
    starts = []
    for name, teacher in zip(("huggingface", "megatron"), folders, strict=True):
        support.finish(recipe_of(workshop, tmp_path / name, teacher, students=[student]))
        start = tmp_path / name / "first_weights" / "student"
        starts.append(load_file(start / "model.safetensors"))
    assert starts[0].keys() == starts[1].keys()
    for name, value in starts[0].items():
        # Products of weights that lie elsewhere in memory may be summed in another order.
        assert torch.allclose(value, starts[1][name], rtol=1e-3, atol=1e-3), name


def test_a_run_that_goes_on_compares_the_checkpoint(
    folders: tuple[Path, Path], workshop: Workshop, tmp_path: Path
) -> None:
    recipe = recipe_of(workshop, tmp_path / "run", folders[1])
    with support.start(recipe) as ranks:
        ranks.until_step(4)
        ranks.signal(signal.SIGTERM)
        assert ranks.wait() == [75, 75]
    statuses, said = support.run(recipe_of(workshop, tmp_path / "run", folders[0]))
    assert set(statuses) == {2} and "teacher" in said and "changed" in said
    assert "resumed from" in support.finish(recipe_of(workshop, tmp_path / "run", folders[1]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer_name_or_path": None}, "teacher.tokenizer_name_or_path: is missing"),
        ({"relation_layer": 3}, "teacher.relation_layer: 3"),
        (
            {"implementation": "megatron", "layout": "zero3"},
            "teacher.implementation: 'megatron' needs layout replicated or tensor",
        ),
        (
            {"implementation": "megatron", "dtype": "float8"},
            "teacher.implementation: 'megatron' needs another dtype than float8",
        ),
        ({"implementation": "apex"}, "teacher.implementation"),
    ],
)
def test_a_dry_run_refuses_what_the_run_could_not_do(
    changes: dict[str, Any], words: str, folders: tuple[Path, Path], workshop: Workshop,
    tmp_path: Path,
) -> None:  # fmt: skip
    recipe = recipe_of(workshop, tmp_path / "run", folders[1], teacher=changes)
    statuses, said = support.run(recipe, "--dry_run", world_size=1)
    assert statuses == [2] and "Traceback" not in said
    assert words in said


def test_megatron_core_runs_its_own_family_alone(workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe(tmp_path / "run", teacher={
        "model_name_or_path": str(workshop.teacher), "implementation": "megatron"})  # fmt: skip
    statuses, said = support.run(recipe, "--dry_run", world_size=1)
    assert statuses == [2] and "Traceback" not in said
    assert "teacher.implementation: megatron runs megatron-bert" in said


def test_a_cache_is_of_the_implementation_that_filled_it(
    folders: tuple[Path, Path], workshop: Workshop, tmp_path: Path
) -> None:
    kept = {"cache": "int8", "cache_dir": str(tmp_path / "cache")}
    for count, name in enumerate(("transformers", "megatron", "megatron"), 1):
        output_dir = tmp_path / f"run{count}"
        support.finish(
            recipe_of(workshop, output_dir, folders[1], teacher=kept | {"implementation": name})
        )
        assert len(list((tmp_path / "cache").iterdir())) == min(count, 2)
