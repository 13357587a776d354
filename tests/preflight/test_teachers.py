"""Teachers against runs: what does not fit is refused in one line, before torch."""

import json
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.config import load_run_config, load_stages
from minimoe_dist.model_description import description_of
from minimoe_dist.preflight.recipes import problems_of_stages
from minimoe_dist.preflight.teachers import teacher_problems
from minimoe_dist.runtime import detect_launch
from tests.model_folders import write_model

BERT = {
    "model_type": "bert",
    "num_hidden_layers": 4,
    "hidden_size": 48,
    "num_attention_heads": 12,
    "intermediate_size": 192,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
MINIMOE = {
    **BERT,
    "model_type": "minimoe",
    "feedforward_experts": 4,
    "relation_projections": True,
    "num_relation_heads": 8,
}
PUBLISHED = {**BERT, "moe": "1,4", "num_relation_heads": 8}
SLICEABLE = {**MINIMOE, "model_type": "minimoe-elastic", "feedforward_experts": 1}
ROBERTA = {**BERT, "model_type": "roberta"}


def write_recipe(folder: Path, **sections: Any) -> Path:
    values: dict[str, Any] = {
        "model_type": "moebert_minilm",
        "output_dir": str(folder / "run"),
        "teacher": {"model_name_or_path": "big"},
        "students": [{"layer": 2, "hidden": 48, "heads": 12}],
        "objective": {"num_relation_heads": 8},
        "data": {"record_path_or_regex": "corpus", "max_length": 32},
        **sections,
    }
    (folder / "recipe.yaml").write_text(json.dumps(values))
    return folder / "recipe.yaml"


def problems(folder: Path, model: dict[str, Any], *overrides: str, ranks: int = 2) -> list[str]:
    """What is wrong with a teacher of a configuration, for a run of some overrides."""
    config = load_run_config(str(write_recipe(folder)), overrides)
    return list(teacher_problems(config, description_of(model, "big", "big", foreign=True), ranks))


TINYBERT = ("--model_type=bert_tinybert", "--moe=1,1")
TENSOR = "--teacher_layout=tensor"
FLOAT8 = "--teacher_dtype=float8"
XLM = {**BERT, "model_type": "xlm-roberta"}
ELECTRA = {**BERT, "model_type": "electra", "embedding_size": 48}
ERNIE = {**BERT, "model_type": "ernie"}


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        (BERT, []),
        (BERT, ["--relation_layer=4"]),
        (BERT, [TENSOR]),
        (BERT, [*TINYBERT]),
        (MINIMOE, []),
        (MINIMOE, ["--relation_layer=4"]),
        (MINIMOE, [*TINYBERT]),
        (MINIMOE, ["--iteration=2"]),
        (PUBLISHED, []),
        (SLICEABLE, []),
        *((model, [option]) for model in (XLM, ELECTRA, ERNIE) for option in (TENSOR, FLOAT8)),
        (ROBERTA, []),
        ({**ROBERTA, "type_vocab_size": 1}, []),
        ({**BERT, "type_vocab_size": 1}, ["--data_type=roberta_nil"]),
        ({**BERT, "model_type": "gte", "type_vocab_size": 1}, []),
        ({**BERT, "hidden_size": 36}, ["--model_type=bert_mlm", "--moe=1,1"]),
    ],
)
def test_a_teacher_that_fits_is_taken(
    model: dict[str, Any], overrides: list[str], tmp_path: Path
) -> None:
    assert problems(tmp_path, model, *overrides) == []


@pytest.mark.parametrize(
    ("model", "overrides", "words"),
    [
        (BERT, ["--relation_layer=5"], "teacher.relation_layer: 5, but big has 4 layers"),
        (MINIMOE, ["--relation_layer=2"], "relation_layer: 2 is no layer with signals of big"),
        (PUBLISHED, ["--relation_layer=4"], "relation_layer: 4 is no layer with signals of big"),
        (BERT, ["--max_length=65"], "data.max_length: 65 is longer than the 64 positions"),
        (ROBERTA, ["--max_length=63"], "data.max_length: 63 is longer than the 62 positions"),
        (
            {**BERT, "hidden_size": 36},
            [],
            "objective.num_relation_heads: 8 does not divide the hidden size 36 of teacher big",
        ),
        (ROBERTA, ["--model_type=bert_minilm", "--moe=1,1"], "but teacher big is of roberta"),
        (BERT, ["--iteration=2"], "iteration: 2 learns from an assistant, but big was not"),
        (MINIMOE, ["--iteration=1"], "iteration: 1 learns from a plain teacher, but big is a"),
        (PUBLISHED, [*TINYBERT], "teacher.model_name_or_path: big is a student that teaches rel"),
        (SLICEABLE, [*TINYBERT], "teacher.model_name_or_path: big is a student that teaches rel"),
        (PUBLISHED, ["--teacher_layout=zero3"], "big is a published student, which is loaded wh"),
        *(
            (model, [option], words)
            for model in (
                {**ELECTRA, "embedding_size": 24},
                {**ERNIE, "use_task_id": True},
                {**BERT, "model_type": "mpnet"},
            )
            for option, words in (
                (TENSOR, "teacher.layout: tensor is not for big, an encoder of type"),
                (FLOAT8, "teacher.dtype: float8 is not for big, a"),
            )
        ),
        (MINIMOE, [TENSOR], "teacher.layout: tensor is not for big, a student of type minimoe"),
        (
            {**BERT, "type_vocab_size": 1},
            [],
            "data.data_type: bert_nil makes pairs of two segments, and teacher big knows one",
        ),
        (
            {**BERT, "intermediate_size": 193},
            [TENSOR],
            "teacher.parallel_size: 2 does not divide the 193 feed-forward neurons of big",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line(
    model: dict[str, Any], overrides: list[str], words: str, tmp_path: Path
) -> None:
    (said,) = problems(tmp_path, model, *overrides)
    assert words in said and "\n" not in said


def of_chain(folder: Path, *stages: dict[str, Any], teacher: str = "") -> list[list[str]]:
    """The problems of each stage of a recipe, those of corpora left out."""
    if not teacher:
        teacher = str(write_model(folder / "big", BERT))
    recipe = write_recipe(folder, teacher={"model_name_or_path": teacher}, stages=list(stages))
    found = problems_of_stages(load_stages(str(recipe), []), detect_launch({}), "cpu")
    return [[line for line in lines if "no indexed corpus" not in line] for lines in found]


def student(**changes: Any) -> list[dict[str, Any]]:
    return [{"layer": 2, "hidden": 48, "heads": 12, **changes}]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"teacher": {"relation_layer": 3}}, "relation_layer: 3, but {} has 2 layers"),
        ({"teacher": {"layout": "tensor"}}, "tensor is not for {}, a student of type minimoe"),
        ({"model_type": "bert_tinybert", "students": student(moe="1,1", heads=6)}, "{} has 12"),
        (
            {"students": student(initial_weights="stage:first/student", layer=3)},
            "layer: 3, but {} has 2",
        ),
    ],
)
def test_a_later_stage_is_held_against_what_the_earlier_one_will_export(
    second: dict[str, Any], words: str, tmp_path: Path
) -> None:
    first = {"name": "first", "students": student()}
    found = of_chain(tmp_path, first, {"name": "second", **second})
    assert found[0] == []
    (said,) = found[1]
    assert words.replace("{}", str(tmp_path / "run" / "first" / "export" / "student")) in said


def test_a_teacher_that_is_nowhere_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (found,) = of_chain(tmp_path, {"name": "only"}, teacher="owner/absent")
    (said,) = found
    assert said.startswith("teacher.model_name_or_path: owner/absent: no folder here")


def test_a_type_that_cannot_teach_is_found(tmp_path: Path) -> None:
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2", "n_embd": 48}')
    (found,) = of_chain(tmp_path, {"name": "only"}, teacher=str(tmp_path / "gpt"))
    (said,) = found
    assert "gpt is of type gpt2, which neither teaches nor is a student" in said
