"""Folders that a run's exports would replace: somebody else's are told before it starts."""

import json
from pathlib import Path

import pytest

from minimoe_dist.config import load_run_config
from minimoe_dist.preflight.recipes import problems_of_stages
from minimoe_dist.runtime import detect_launch

STUDENT = {"layer": 2, "hidden": 48, "heads": 12, "moe": "1,1"}
SPARSE = {**STUDENT, "sparsity": 90, "initial_weights": "sparsified"}


@pytest.mark.parametrize(
    ("model_type", "taken", "is_told"),
    [
        ("bert_minilm", "student", True),
        ("bert_minilm", "best", False),
        ("bert_minilm", "sparsified", False),
        ("sparsebert_minilm", "best", True),
        ("sparsebert_mlm", "sparsified", True),
    ],
)
def test_only_what_the_run_exports_counts(
    model_type: str, taken: str, is_told: bool, tmp_path: Path
) -> None:
    options = {
        "model_type": model_type,
        "output_dir": str(tmp_path / "run"),
        "teacher": {"model_name_or_path": str(tmp_path / "teacher")},
        "students": [STUDENT],
        "objective": {"num_relation_heads": 8},
        "data": {"record_path_or_regex": "corpus"},
    }
    if model_type == "sparsebert_minilm":
        options |= {"students": [SPARSE], "tradeoff_lambda": 0.1}
        options["data"] = {"record_path_or_regex": "corpus", "heldout_path_or_regex": "heldout"}
    elif model_type == "sparsebert_mlm":
        options |= {"students": [{}], "data": {**options["data"], "data_type": "bert_mlm"}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(options))
    config = load_run_config(str(recipe))
    theirs = Path(config.export_folder(taken), "notes")
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    (problems,) = problems_of_stages([config], detect_launch({}), "cpu")
    assert any("is to be replaced, and holds notes" in one for one in problems) == is_told
