"""Students against the folders that they start from: refused in one line, before torch."""

import json
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.config import load_run_config
from minimoe_dist.model_description import description_of
from minimoe_dist.preflight.students import student_problems
from tests.model_folders import write_model

PLAIN = {
    "model_type": "bert",
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 12,
    "intermediate_size": 192,
    "vocab_size": 100,
}
STUDENT = {"layer": 2, "hidden": 48, "heads": 12, "moe": "1,1"}
MINIMOE = {**PLAIN, "model_type": "minimoe", "attention_experts": 2, "feedforward_experts": 4}
PUBLISHED = {**PLAIN, "moe": "2,4", "num_attention_heads": 24, "intermediate_size": 4 * 192}
NARROW = {**PLAIN, "intermediate_size": 64}
SPARSIFIED = {**PLAIN, "model_type": "minimoe-elastic", "sparsity_map": {"0": {}, "90": {}}}
ONCE_FOR_ALL = {**SPARSIFIED, "sparsity_map": {"2,48": {}, "1,48": {}}}
SUB_MODELS = {"ofa_layer": [2, 1], "ofa_hidden": [48]}


def check(
    folder: Path, model_type: str, model: dict[str, Any] | None, is_future: bool = False, **student
) -> str:
    """What is wrong with one student that starts from a folder; empty where nothing is."""
    origin = folder / "origin"
    if model is None:
        origin.mkdir()
    else:
        write_model(origin, model)
    recipe = folder / "recipe.yaml"
    options = {
        "model_type": model_type,
        "output_dir": str(folder / "run"),
        "teacher": {"model_name_or_path": "big"},
        "students": [{**STUDENT, "initial_weights": str(origin), **student}],
        "objective": {"num_relation_heads": 8},
        "data": {"record_path_or_regex": "corpus"},
    }
    recipe.write_text(json.dumps(options))
    teacher = description_of(PLAIN, "big", "big")
    future_exports = {str(origin): None} if is_future else {}
    problems = student_problems(load_run_config(str(recipe)), teacher, future_exports)
    return next(problems, "")


@pytest.mark.parametrize(
    ("model_type", "model", "student"),
    [
        ("bert_minilm", PLAIN, {}),
        ("moebert_minilm", MINIMOE, {"moe": "2,4"}),
        ("moebert_minilm", PUBLISHED, {"moe": "2,4"}),
        ("moebert_minilm", PLAIN, {"moe": "4,4", "start": "copies"}),
        ("bert_minilm", NARROW, {"neurons": 64}),
        ("moebert_minilm", {**PUBLISHED, "intermediate_size": 256}, {"moe": "2,4", "neurons": 64}),
        ("moebert_minilm", NARROW, {"moe": "1,4", "start": "clusters", "neurons": 64}),
        (
            "ofabert_minilm",
            {**ONCE_FOR_ALL, "intermediate_size": 64},
            {**SUB_MODELS, "neurons": 64},
        ),
        ("sparsebert_minilm", {**SPARSIFIED, "intermediate_size": 64}, {"sparsity": 90}),
        ("sparsebert_minilm", SPARSIFIED, {"sparsity": 90}),
        ("sparsebert_minilm", {**PLAIN, "sparsity_map": {"90": {}}}, {"sparsity": 90}),
        ("sparsebert_mlm", SPARSIFIED, {"sparsity": 90}),
        ("ofabert_minilm", ONCE_FOR_ALL, SUB_MODELS),
        ("bert_tinybert", PLAIN, {}),
    ],
)
def test_a_folder_of_the_sizes_asked_for_is_taken(model_type, model, student, tmp_path) -> None:
    assert check(tmp_path, model_type, model, **student) == ""


@pytest.mark.parametrize(
    ("model_type", "model", "student", "words"),
    [
        ("bert_minilm", PLAIN, {"layer": 3}, "student.layer: 3, but {} has 2; give layer 2"),
        ("bert_minilm", PLAIN, {"hidden": 96}, "student.hidden: 96, but {} has 48"),
        ("bert_minilm", PLAIN, {"heads": 6}, "student.heads: 6, but {} has 12"),
        ("bert_minilm", NARROW, {}, "student.neurons: 192, but {} has 64; give neurons 64"),
        ("bert_minilm", PLAIN, {"neurons": 64}, "student.neurons: 64, but {} has 192"),
        ("moebert_minilm", PUBLISHED, {"moe": "2,4", "neurons": 768}, "768, but {} has 192"),
        ("sparsebert_minilm", SPARSIFIED, {"sparsity": 90, "neurons": 64}, "64, but {} has 192"),
        ("ofabert_minilm", ONCE_FOR_ALL, {**SUB_MODELS, "neurons": 64}, "64, but {} has 192"),
        (
            "moebert_minilm",
            NARROW,
            {"moe": "1,4", "start": "copies"},
            "student.neurons: 192, but {} has 64",
        ),
        ("moebert_minilm", MINIMOE, {"moe": "2,8"}, "student.moe: 2,8, but {} has 2,4"),
        ("moebert_minilm", PUBLISHED, {"moe": "1,4"}, "student.moe: 1,4, but {} has 2,4"),
        ("moebert_minilm", PUBLISHED, {"moe": "2,4", "heads": 24}, "student.heads: 24, but"),
        ("bert_minilm", {**PLAIN, "vocab_size": 99}, {}, "{} has a vocabulary of 99, the teacher"),
        ("bert_minilm", {**PLAIN, "model_type": "roberta"}, {}, "{} is of family roberta"),
        ("bert_minilm", SPARSIFIED, {}, "{} is a sliceable student, no start of bert_minilm"),
        (
            "moebert_minilm",
            MINIMOE,
            {"moe": "1,4", "start": "copies"},
            "{} has experts itself (2,4), but start: copies wants a plain student",
        ),
        (
            "moebert_minilm",
            PLAIN,
            {"moe": "1,4", "start": "copies", "layer": 3},
            "student.layer: 3, but {} has 2",
        ),
        ("sparsebert_minilm", PLAIN, {"sparsity": 90}, "{} has no sparsity map; sparsify it first"),
        ("sparsebert_minilm", SPARSIFIED, {"sparsity": 95}, "95 is not in the map of {}; it has"),
        ("sparsebert_mlm", SPARSIFIED, {"sparsity": 95}, "95 is not in the map of {}; it has"),
        ("sparsebert_minilm", SPARSIFIED, {"sparsity": 90, "layer": 3}, "layer: 3, but {} has 2"),
        (
            "sparsebert_minilm",
            {**SPARSIFIED, "hidden_size": 36, "num_attention_heads": 6},
            {"sparsity": 90, "hidden": 48},
            "objective.num_relation_heads: 8 does not divide the hidden size 36 of student {}",
        ),
        ("ofabert_minilm", PLAIN, SUB_MODELS, "{} has no sparsity map; give a once-for-all"),
        (
            "ofabert_minilm",
            ONCE_FOR_ALL,
            {**SUB_MODELS, "ofa_layer": [2]},
            "ofa_layer, ofa_hidden: {} has the sub-models 2,48 1,48, not 2,48",
        ),
        ("bert_tinybert", PLAIN, {"heads": 6}, "heads: 6, but {} has 12"),
        ("bert_minilm", None, {}, "{}: no config.json in it"),
    ],
)
def test_what_a_folder_does_not_have_is_refused(
    model_type, model, student, words, tmp_path
) -> None:
    problem = check(tmp_path, model_type, model, **student)
    assert words.replace("{}", str(tmp_path / "origin")) in problem
    assert "\n" not in problem


def test_a_hub_name_gives_no_weights(tmp_path) -> None:
    problem = check(tmp_path, "bert_minilm", PLAIN, initial_weights="owner/name")
    assert "owner/name is no local folder; download it" in problem


def test_an_export_that_an_earlier_stage_will_write_is_not_looked_for(tmp_path) -> None:
    assert check(tmp_path, "bert_minilm", None, is_future=True) == ""
