"""Every shipped recipe resolves, and every shipped DeepSpeed JSON fits a run."""

from pathlib import Path

import pytest

from minimoe_dist.config import deepspeed_settings, load_run_config, load_stages

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))
DEEPSPEED = sorted((CONFIGS / "ds").glob("*.json"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_resolves(recipe: Path) -> None:
    assert all(stage.students for stage in load_stages(str(recipe)))


@pytest.mark.parametrize("path", DEEPSPEED, ids=lambda path: path.stem)
def test_deepspeed_json_resolves(path: Path) -> None:
    flags = {
        "teacher_model_name_or_path": "teacher",
        "record_path_or_regex": "corpus",
        "output_dir": "out",
        "deepspeed": str(path),
    }
    config = load_run_config(None, [], flags)
    settings = deepspeed_settings(config, world_size=2)
    assert settings["zero_optimization"]["stage"] == int(path.stem[4])
    expected = path.stem.rpartition("_")[2] if path.stem.endswith(("bf16", "fp16")) else "fp32"
    assert config.parallel.precision == expected


@pytest.mark.parametrize(
    ("name", "moe"), [("minilm_3l_384h", "1,1"), ("minimoe_3l_384h_1_4e", "1,4")]
)
def test_seed_recipe_has_the_seed_values(name: str, moe: str) -> None:
    config = load_run_config(str(CONFIGS / "recipes" / f"{name}.yaml"))
    student, training = config.students[0], config.training
    assert (student.layer, student.hidden, student.moe) == (3, 384, moe)
    assert config.global_batch_size(world_size=8) == 1024
    assert (training.learning_rate, training.max_grad_norm, training.num_train_epochs) == (
        3e-4,
        5.0,
        5.0,
    )
    assert (config.seed, config.parallel.precision) == (776, "fp16")
