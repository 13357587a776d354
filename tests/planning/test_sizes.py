"""Sizes from configurations against the models that are really built from them."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from minimoe_dist.config import ConfigError
from minimoe_dist.models.teacher import teacher_of
from minimoe_dist.planning.memory import teacher_parameters
from minimoe_dist.planning.sizes import student_json, student_sizes, teacher_sizes
from minimoe_dist.recipes.model_types import Lesson, make_student
from minimoe_dist.recipes.results import relation_paths
from tests.planning.recipes import run_config, write_teacher

SLICED = {"layer": 3, "hidden": 48, "heads": 6, "ofa_layer": "3,2", "ofa_hidden": "48,24"}
STUDENTS = {
    "experts": ("moebert_minilm", "bert", {"moe": "1,4"}, {}),
    "attention experts": ("moebert_minilm", "bert", {"moe": "4,4"}, {}),
    "dense": ("bert_minilm", "bert", {"moe": "1,1"}, {}),
    "roberta": ("roberta_minilm", "roberta", {"moe": "1,1"}, {"data_type": "roberta_nil"}),
    "megatron": ("megatronbert_minilm", "megatron-bert", {"moe": "1,1"}, {}),
    "tinybert": ("bert_tinybert", "bert", {"heads": 4, "moe": "1,1"}, {}),
    "masked": ("bert_mlm", "bert", {"moe": "1,1"}, {"data_type": "bert_mlm"}),
    "narrow experts": ("moebert_minilm", "bert", {"moe": "1,4", "neurons": 24}, {}),
    "wide": ("bert_minilm", "bert", {"moe": "1,1", "neurons": 200}, {}),
    "wide once-for-all": ("ofabert_minilm", "bert", {**SLICED, "moe": "1,1", "neurons": 96}, {}),
    "once-for-all": ("ofabert_minilm", "bert", {**SLICED, "moe": "1,1"}, {}),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_students_parameters_are_those_of_the_built_model(tmp_path, name):
    model_type, family, options, data = STUDENTS[name]
    teacher = write_teacher(tmp_path / "teacher", family)
    student = {"layer": 2, "hidden": 16, "heads": 2, **options}
    config = run_config(teacher, model_type, students=[student], data=data)
    built = make_student(config, 0, Lesson(None, AutoConfig.from_pretrained(teacher), None))
    sizes = student_sizes(config, config.students[0], {})
    assert sum(sizes.parameters()) == pytest.approx(built.num_parameters(), rel=0.002)


@pytest.mark.parametrize("family", ["bert", "roberta", "megatron-bert"])
def test_a_teachers_parameters_are_those_that_are_loaded(tmp_path, family):
    folder = write_teacher(tmp_path / "teacher", family)
    with torch.random.fork_rng():
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder), add_pooling_layer=False)
    loaded = sum(parameter.numel() for parameter in teacher_of(model).parameters())
    sizes = teacher_sizes(run_config(folder), {})
    assert teacher_parameters(sizes) == pytest.approx(loaded, rel=0.002)


def test_a_teacher_is_cut_at_its_relation_layer(tmp_path):
    folder = write_teacher(tmp_path / "teacher")
    sizes = teacher_sizes(run_config(folder, teacher={"relation_layer": 2}), {})
    assert (sizes.whole_layers, len(sizes.shape.layers)) == (1, 2)


@pytest.mark.parametrize(("moe", "maps"), [("1,1", False), ("1,4", False), ("2,4", True)])
def test_last_states_make_all_layers_run_and_map_what_they_give(tmp_path, moe, maps):
    folder = write_teacher(tmp_path / "teacher")
    config = run_config(
        folder,
        teacher={"relation_layer": 2},
        students=[{"layer": 3, "hidden": 24, "heads": 4, "moe": moe}],
        objective={"num_relation_heads": 4, "state_weight": 1.0},
    )
    teacher = teacher_sizes(config, {})
    assert teacher.whole_layers == 2
    student = student_sizes(config, config.students[0], {})
    assert (student.whole_layers, student.relation_maps) == (3, maps)
    model = make_student(config, 0, Lesson(None, AutoConfig.from_pretrained(folder), None))
    assert sum(student.parameters()) == pytest.approx(model.num_parameters(), rel=0.002)
    assert student_json(config, config.students[0], {})["relation_projections"] is maps
    [planned], [counted] = student.paths(), relation_paths(model.config)
    assert planned.macs_per_token(64) == counted.macs_per_token(64)


def test_a_well_known_name_needs_no_folder():
    sizes = teacher_sizes(run_config("bert-large-uncased", objective={"num_relation_heads": 4}), {})
    assert (sizes.width, sizes.whole_layers) == (1024, 23)


def test_an_unknown_name_is_refused_with_what_to_give():
    with pytest.raises(ConfigError, match=r"someone/unknown are not known here; give a folder"):
        teacher_sizes(run_config("someone/unknown"), {})


def test_the_size_of_the_teachers_heads_is_not_its_students(tmp_path):
    config = run_config(write_teacher(tmp_path / "teacher", head_dim=8))
    export = student_json(config, config.students[0], {})
    assert "head_dim" not in export
    later = run_config("runs/first/export/student")
    assert teacher_sizes(later, {"runs/first/export/student": export}).head_size == 8


def test_the_teacher_of_a_later_stage_is_the_student_of_the_one_before(tmp_path):
    config = run_config("runs/first/export/student")
    assistant = {
        "model_type": "minimoe",
        "family": "bert",
        "vocab_size": 200,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "relation_projections": True,
    }
    sizes = teacher_sizes(config, {"runs/first/export/student": assistant})
    assert (sizes.width, sizes.whole_layers, sizes.relation_maps) == (24, 3, True)
