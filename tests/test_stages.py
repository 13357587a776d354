"""Recipes of several stages: each one's options, folder, teacher and starting weights."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from minimoe_dist.config import ConfigError, load_run_config, load_stages

BASE: dict[str, Any] = {
    "output_dir": "runs/chain",
    "teacher": {"model_name_or_path": "big", "relation_layer": 10},
    "data": {"record_path_or_regex": "corpus"},
    "training": {"learning_rate": 0.1, "max_steps": 9},
}
ASSISTANT: dict[str, Any] = {
    "name": "assistant", "model_type": "bert_minilm", "students": [{"layer": 12}],
}  # fmt: skip
STUDENT: dict[str, Any] = {"name": "student", "training": {"max_steps": 5}}


def write(folder: Path, *stages: Any) -> str:
    path = folder / "chain.yaml"
    path.write_text(yaml.safe_dump({**BASE, "stages": list(stages)}))
    return str(path)


def test_a_recipe_without_stages_is_one(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(BASE))
    assert load_stages(str(path)) == [load_run_config(str(path))]


def test_an_export_is_the_next_stages_teacher(tmp_path: Path) -> None:
    first, second = load_stages(write(tmp_path, ASSISTANT, STUDENT))
    assert (first.output_dir, second.output_dir) == ("runs/chain/assistant", "runs/chain/student")
    assert first.teacher.model_name_or_path == "big"
    assert second.teacher.model_name_or_path == "runs/chain/assistant/export/student"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_dir": "elsewhere"}, r"stages\.1\.output_dir: .* to output_dir/student"),
        ({"parallel": {"use_cpu": True}}, r"stages\.student\.parallel\.use_cpu: True, .* False"),
        ({"parallel": {"timeout_seconds": 7}}, r"parallel\.timeout_seconds: 7, but the first"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_the_whole_runs_is_refused_of_a_stage(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_stages(write(tmp_path, ASSISTANT, {**STUDENT, **changes}))


def test_a_relation_layer_is_the_first_teachers(tmp_path: Path) -> None:
    stages = load_stages(write(tmp_path, ASSISTANT, STUDENT))
    assert [stage.teacher.relation_layer for stage in stages] == [10, -1]


def test_sections_are_merged_and_lists_replaced(tmp_path: Path) -> None:
    first, second = load_stages(write(tmp_path, ASSISTANT, STUDENT))
    assert (first.training.max_steps, second.training.max_steps) == (9, 5)
    assert second.training.learning_rate == 0.1
    assert (first.students[0].layer, second.students[0].layer) == (12, 3)


def test_options_of_the_command_line_are_for_every_stage(tmp_path: Path) -> None:
    options = ["--max_steps=2", "--output_dir=elsewhere", "--teacher_model_name_or_path=other"]
    first, second = load_stages(write(tmp_path, ASSISTANT, STUDENT), options)
    assert (first.training.max_steps, second.training.max_steps) == (2, 2)
    assert first.teacher.model_name_or_path == "other"
    assert second.teacher.model_name_or_path == "elsewhere/assistant/export/student"


def test_a_stage_may_name_a_teacher_of_its_own(tmp_path: Path) -> None:
    two = {**ASSISTANT, "students": [{"name": "a"}, {"name": "b"}]}
    own = {**STUDENT, "teacher": {"model_name_or_path": "large"}}
    first, second = load_stages(write(tmp_path, two, own))
    assert [first.teacher.model_name_or_path, second.teacher.model_name_or_path] == ["big", "large"]


def test_a_teacher_may_be_any_earlier_stages_student(tmp_path: Path) -> None:
    own = {**STUDENT, "teacher": {"model_name_or_path": "stage:assistant/student"}}
    third = load_stages(write(tmp_path, ASSISTANT, STUDENT, {**own, "name": "third"}))[2]
    assert third.teacher.model_name_or_path == "runs/chain/assistant/export/student"
    assert third.teacher.relation_layer == -1


def test_a_student_may_start_from_an_earlier_stages_student(tmp_path: Path) -> None:
    copies = {"moe": "1,4", "start": "copies", "initial_weights": "stage:assistant/student"}
    path = write(tmp_path, ASSISTANT, {**STUDENT, "students": [copies]})
    (_, second) = load_stages(path, ["--output_dir=elsewhere"])
    assert second.students[0].initial_weights == "elsewhere/assistant/export/student"


def test_the_best_candidate_may_teach(tmp_path: Path) -> None:
    candidates = {
        "name": "candidates",
        "model_type": "sparsebert_minilm",
        "students": [
            {"name": name, "sparsity": name[1:], "initial_weights": "sparsified"}
            for name in ("s50", "s70")
        ],
        "data": {"record_path_or_regex": "corpus", "heldout_path_or_regex": "other"},
        "tradeoff_lambda": 0.2,
        "teaches": "best",
    }
    _, second = load_stages(write(tmp_path, candidates, STUDENT))
    assert second.teacher.model_name_or_path == "runs/chain/candidates/export/best"


FROM_NOWHERE = {**STUDENT, "students": [{"initial_weights": "stage:assistant/studnet"}]}


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{**ASSISTANT, "tradeoff_lambda": 0.2}, STUDENT], "chooses among sparse students"),
        ([], "must be a list of stages"),
        ([{"layer": 3}], "stages.0: needs a name"),
        ([{**ASSISTANT, "name": "../up"}], "stages.0.name: must be letters, digits"),
        ([ASSISTANT, ASSISTANT], "assistant is another stage's"),
        ([{**ASSISTANT, "students": [{"name": "a"}, {"name": "b"}]}, STUDENT], "name one of a, b"),
        ([{**ASSISTANT, "teaches": "c"}, STUDENT], "'c' is no student of this stage"),
        ([{**ASSISTANT, "trainin": {}}, STUDENT], "did you mean training?"),
        ([ASSISTANT, FROM_NOWHERE], "there is: stage:assistant/student"),
    ],
)
def test_a_wrong_stage_is_refused(tmp_path: Path, stages: list[Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_stages(write(tmp_path, *stages))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_stages_are_no_single_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has stages"):
        load_run_config(write(tmp_path, ASSISTANT, STUDENT))


@pytest.mark.parametrize("word", ["stages.student.layer=4", "--stages.student.students.0.layer=4"])
def test_an_option_may_be_for_one_stage(tmp_path: Path, word: str) -> None:
    stages = load_stages(write(tmp_path, ASSISTANT, STUDENT), [word])
    assert [stage.students[0].layer for stage in stages] == [12, 4]


def test_of_one_stage_and_all_stages_the_later_word_wins(tmp_path: Path) -> None:
    words = ["--max_steps=2", "stages.student.max_steps=3", "--seed=1", "stages.assistant.seed=4"]
    first, second = load_stages(write(tmp_path, ASSISTANT, STUDENT), words)
    assert (first.training.max_steps, second.training.max_steps) == (2, 3)
    assert (first.seed, second.seed) == (4, 1)


def test_a_stage_may_be_given_a_teacher_of_its_own_beside_the_recipe(tmp_path: Path) -> None:
    words = ["stages.student.teacher_model_name_or_path=large", "stages.student.relation_layer=4"]
    first, second = load_stages(write(tmp_path, ASSISTANT, STUDENT), words)
    assert (first.teacher.model_name_or_path, first.teacher.relation_layer) == ("big", 10)
    assert (second.teacher.model_name_or_path, second.teacher.relation_layer) == ("large", 4)


def test_a_teacher_of_all_stages_leaves_a_stages_own(tmp_path: Path) -> None:
    own = {**STUDENT, "teacher": {"model_name_or_path": "large"}}
    words = ["--teacher_model_name_or_path=other"]
    stages = load_stages(write(tmp_path, ASSISTANT, own), words)
    assert [stage.teacher.model_name_or_path for stage in stages] == ["other", "large"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("stages.asistant.layer=4", "no stage 'asistant'; did you mean assistant?"),
        ("stages.x.layer=4", "no stage 'x'; there are assistant, student"),
        ("stages.student.layr=4", "did you mean stages.student.layer?"),
        ("--stages.student.trainin.seed=4", "did you mean --stages.student.seed?"),
        ("stages.student.training=4", "set one of its options, stages.student.training.NAME=value"),
        ("stages.student=4", "which option? give stages.student.NAME=value"),
        ("stages.student.layer=x", "stages.student.layer: must be a whole number, not 'x'"),
        ("stages.student.output_dir=x", "a stage writes to output_dir/student"),
        ("stages.student.use_cpu=true", "give one value for all stages"),
    ],
)
def test_a_wrong_option_of_one_stage_is_refused(tmp_path: Path, word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_stages(write(tmp_path, ASSISTANT, STUDENT), [word])
    assert message in str(caught.value) and "\n" not in str(caught.value)
