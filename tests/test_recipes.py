"""Every shipped recipe resolves, and every shipped DeepSpeed JSON fits a run."""

from pathlib import Path

import pytest

from minimoe_dist.config import deepspeed_settings, load_run_config, load_stages
from minimoe_dist.config.command_line import read_options
from minimoe_dist.config.commands import FinetuneOptions
from minimoe_dist.config.model_types import MODEL_TYPES
from minimoe_dist.data.tasks import TASKS
from minimoe_dist.models.submodels import Sizes, once_for_all_map

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))
FINETUNING = sorted((CONFIGS / "finetune").glob("*.yaml"))
DEEPSPEED = sorted((CONFIGS / "ds").glob("*.json"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_resolves(recipe: Path) -> None:
    assert all(stage.students for stage in load_stages(str(recipe)))


@pytest.mark.parametrize("path", DEEPSPEED, ids=lambda path: path.stem)
def test_deepspeed_json_resolves(path: Path) -> None:
    overrides = [
        "--teacher_model_name_or_path=teacher",
        "--record_path_or_regex=corpus",
        "--output_dir=out",
        f"--deepspeed={path}",
    ]
    config = load_run_config(None, overrides)
    settings = deepspeed_settings(config, world_size=2)
    assert settings["zero_optimization"]["stage"] == int(path.stem[4])
    expected = path.stem.rpartition("_")[2] if path.stem.endswith(("bf16", "fp16")) else "fp32"
    assert config.parallel.precision == expected


# Those that run on any machine, beside the recipes of the seed's scripts.
SMALL = ("demo", "study", "study_1000_steps", "study_longer", "study_sizes")


@pytest.mark.parametrize(
    "recipe", [one for one in RECIPES if one.stem not in SMALL], ids=lambda path: path.stem
)
def test_seed_recipe_has_the_seed_values(recipe: Path) -> None:
    for config in load_stages(str(recipe)):
        training = config.training
        assert config.global_batch_size(world_size=8) == 1024
        assert config.seed == 776
        if config.model_type == "sparsebert_mlm":
            continue
        assert (training.learning_rate, training.max_grad_norm) == (3e-4, 5.0)
        assert training.num_train_epochs == 5.0
        assert config.parallel.precision == "auto"


@pytest.mark.parametrize(
    "recipe", [one for one in RECIPES if "384h" in one.stem], ids=lambda path: path.stem
)
def test_recipe_is_of_the_size_in_its_name(recipe: Path) -> None:
    student = load_stages(str(recipe))[-1].students[0]
    name = f"{student.layer}l_{student.hidden}h"
    if student.moe != "1,1":
        name += f"_{student.attention_experts}_{student.feedforward_experts}e"
    assert recipe.stem.removesuffix("_copies").endswith(name)


def test_every_model_type_has_a_recipe() -> None:
    used = {stage.model_type for recipe in RECIPES for stage in load_stages(str(recipe))}
    assert used == set(MODEL_TYPES)


def test_the_once_for_all_recipes_sub_models_are_there() -> None:
    (config,) = load_stages(str(CONFIGS / "recipes" / "ofa_minilm_6l_768h.yaml"))
    (student,) = config.students
    sizes = Sizes(student.layer, student.heads, 64, 4 * student.hidden)
    assert len(once_for_all_map(sizes, student.ofa_layer or (), student.ofa_hidden or ())) == 15


def test_recipe_is_started_by_its_own_name() -> None:
    for recipe in RECIPES:
        assert f"configs/recipes/{recipe.name}" in recipe.read_text("utf-8"), recipe.name


@pytest.mark.parametrize("path", FINETUNING, ids=lambda path: path.stem)
def test_finetuning_recipe_resolves(path: Path) -> None:
    options = read_options("finetune", FinetuneOptions, ["a_model", "--config", str(path)])
    assert options.task is not None
    assert set(options.task) <= set(TASKS)
    assert f"configs/finetune/{path.name}" in path.read_text("utf-8")
