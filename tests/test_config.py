"""Options: precedence, refusals by name, cross-checks, DeepSpeed JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.config import (
    ConfigError,
    RunConfig,
    check_deepspeed_json,
    deepspeed_settings,
    fit_to_ranks,
    load_run_config,
)
from minimoe_dist.config.changes import changed_options, join_changes
from minimoe_dist.config.checks import check_world_size
from minimoe_dist.config.flags import known_flags

NEEDED = (
    "--teacher_model_name_or_path=teacher",
    "--record_path_or_regex=corpus",
    "--output_dir=out",
)
SEED_FLAGS = {
    "model_type": "moebert_minilm",
    "student_model_name_or_path": "bert-base-uncased",
    "data_type": "bert_nil",
    "layer": "4",
    "hidden": "384",
    "moe": "2,4",
    "model_suffix": "3L",
    "iteration": "2",
    "num_relation_heads": "32",
    "max_length": "64",
    "per_device_train_batch_size": "8",
    "num_grad_accum_steps": "2",
    "learning_rate": "1e-3",
    "weight_decay": "0.1",
    "num_train_epochs": "2",
    "warmup_proportion": "0.1",
    "max_grad_norm": "5.0",
    "log_interval": "10",
    "seed": "1",
    "use_fp16": "true",
    "per_device_eval_batch_size": "4",
    "lr_scheduler_type": "cosine",
    "use_slow_tokenizer": "true",
}


def load(*overrides: str, recipe: Path | None = None) -> RunConfig:
    return load_run_config(None if recipe is None else str(recipe), (*NEEDED, *overrides))


def refusal(*overrides: str, recipe: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, recipe=recipe)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, content: str | dict[str, Any]) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_flag_beats_recipe_beats_default(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "training: {max_steps: 7, log_interval: 3}\n")
    config = load("--max_steps=9", recipe=recipe)
    training = config.training
    assert (training.max_steps, training.log_interval, training.save_interval) == (9, 3, 1000)


def test_later_override_wins() -> None:
    assert load("--max_steps=9", "training.max_steps=11").training.max_steps == 11


@pytest.mark.parametrize("name", ["--max_steps", "max_steps", "--training.max_steps"])
def test_an_option_has_one_name_with_dashes_or_without(name: str) -> None:
    assert load(f"{name}=9").training.max_steps == 9


def test_every_seed_argument_is_accepted() -> None:
    config = load(*(f"--{name}={value}" for name, value in SEED_FLAGS.items()))
    assert config.students[0].moe == "2,4"
    assert config.iteration == 2
    assert config.parallel.precision == "fp16"
    assert config.training.learning_rate == 1e-3
    assert config.teacher.use_slow_tokenizer


def test_flag_for_students_changes_every_student(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "students: [{name: a}, {name: b, layer: 6}]\n")
    assert [one.layer for one in load("--layer=4", recipe=recipe).students] == [4, 4]


def test_one_student_is_set_by_its_name(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "students: [{name: a}, {name: b}]\n")
    assert [one.layer for one in load("students.b.layer=4", recipe=recipe).students] == [3, 4]


def test_yaml_of_a_run_reads_back_equal(tmp_path: Path) -> None:
    config = load("--layer=4", "--adam_epsilon=1e-7", "--record_path_or_regex=[a, b]")
    assert load_run_config(str(write(tmp_path / "r.yaml", config.to_yaml()))) == config


def test_corpora_take_a_string_a_list_or_weights() -> None:
    config = load("data.record_path_or_regex=[{path: a, weight: 3}, b]")
    assert [(one.path, one.weight) for one in config.data.record_path_or_regex] == [
        ("a", 3.0),
        ("b", 1.0),
    ]


def test_glob_that_begins_with_a_bracket_stays_text() -> None:
    config = load("--record_path_or_regex=[ab*/x")
    assert config.data.record_path_or_regex[0].path == "[ab*/x"


def test_dense_students_become_plain() -> None:
    assert load("--model_type=bert_minilm").students[0].moe == "1,1"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--learning_rte=1", "--learning_rate"),
        ("training.learning_rte=1", "training.learning_rate"),
        ("learning_rte=1", "did you mean learning_rate?"),
        ("--trainin.max_steps=1", "did you mean --training.max_steps?"),
        ("students.0.hiden=1", "students.*.hidden"),
        ("students.².hidden=1", "no student '²'"),
        ("--sparsity=90", "sparsebert_minilm"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(override: str, named: str) -> None:
    message = refusal(override)
    assert named in message.split(";", 1)[-1] or named in message
    assert override.partition("=")[0] in message


def test_unknown_recipe_key_is_refused_with_file_and_full_path(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "training: {max_stesp: 7}\n")
    expected = f"{recipe}: training.max_stesp is not an option; did you mean training.max_steps?"
    assert refusal(recipe=recipe) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {seed: 1\n", ":2: "),
        ("- 1\n", "must be a mapping"),
        ("training: 3\n", "training: must be a mapping"),
        ("seed: 1\nseed: 2\n", ":2: seed is given twice"),
        ("model_suffix: 12\n", "put it in quotes"),
    ],
)
def test_broken_recipe_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    message = refusal(recipe=write(tmp_path / "r.yaml", text))
    assert message.startswith(str(tmp_path / "r.yaml"))
    assert words in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--layer=x", "--layer: must be a whole number, not 'x'"),
        ("--layer=0", "--layer: must be at least 1, not '0'"),
        ("--moe=4", "'x,y'"),
        ("--warmup_proportion=1", "below 1"),
        ("--learning_rate=nan", "finite"),
        ("--seed=true", "whole number"),
        ("--use_cpu=perhaps", "true or false"),
        ("--use_fp16=perhaps", "true or false"),
        ("--lr_scheduler_type=linar", "did you mean linear?"),
        ("--sparsities=90,100", "--sparsities: must be per cent of at least 0 and below 100"),
        ("--ofa_layer=6,x", "--ofa_layer.1: must be a whole number"),
        ("--iteration=3", "at most 2"),
        ("--keep_checkpoints=1", "at least 2"),
        ("training=3", "section"),
        ("students.nobody.layer=3", "no student 'nobody'"),
        ("just_a_word", "key.path=value"),
    ],
)
def test_wrong_value_is_refused_in_one_line(override: str, words: str) -> None:
    assert words in refusal(override)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("--hidden=200",), "heads 12"),
        (("--hidden=204",), "num_relation_heads 32"),
        (("--expert_parallel_size=3",), "does not divide the 4 experts"),
        (("--expert_parallel_size=4", "--moe=2,4"), "does not divide the 2 experts"),
        (("--expert_parallel_size=2", "--zero_stage=3"), "zero_stage 2"),
        (("--expert_parallel_size=2", "--moe=1,1"), "no student has experts"),
        (("--zero_stage=0", "--precision=bf16"), "use zero_stage 1"),
        (("--use_fp16=true", "--use_cpu=true"), "bf16 or fp32"),
        (("--model_type=bert_minilm", "--moe=1,4"), "moebert_minilm"),
        (("students=[{name: a}, {name: a}]",), "named 'a'"),
        (("--state_weight=-1",), "state_weight: must be at least 0"),
        (
            ("--state_weight=1", "--relation_weight=0", "--mlm_weight=1", "--data_type=bert_mlm"),
            "is learnt beside relations; give a relation_weight",
        ),
        (("--expert_rate_factor=0.5", "--moe=1,1"), "0.5, but no student has experts"),
        (("--router_rate_factor=0", "--moe=1,1"), "0, but no student has experts"),
        (("--start=split", "--start_tokens=9000"), "start_tokens: is of start: teacher; leave it"),
    ],
)
def test_options_that_do_not_fit_are_refused(overrides: tuple[str, ...], words: str) -> None:
    assert words in refusal(*overrides)


def test_missing_options_are_named_with_their_flags() -> None:
    with pytest.raises(ConfigError, match=r"data\.record_path_or_regex is missing.*--record_path"):
        load_run_config(None)


def test_world_that_expert_parallelism_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not divide the 3 processes"):
        check_world_size(load("--expert_parallel_size=2"), 3)


@pytest.mark.parametrize(
    ("overrides", "ranks", "micro_batch", "times"),
    [
        ((), 8, 128, 1),
        ((), 2, 128, 4),
        ((), 16, 64, 1),
        (("--per_device_train_batch_size=48",), 8, 32, 4),
        (("--num_grad_accum_steps=2",), 8, 64, 2),
        (("--per_device_train_batch_size=7",), 1024, 1, 1),
        (("--num_grad_accum_steps=9",), 512, 1, 2),
    ],
)
def test_micro_batches_follow_from_the_global_batch(
    overrides: tuple[str, ...], ranks: int, micro_batch: int, times: int
) -> None:
    config = load("--global_batch_size=1024", *overrides)
    fitted = fit_to_ranks(config, ranks)
    training = fitted.training
    assert (training.per_device_train_batch_size, training.num_grad_accum_steps) == (
        micro_batch, times,
    )  # fmt: skip
    assert config.global_batch_size(ranks) == fitted.global_batch_size(ranks) == 1024
    assert micro_batch * times * ranks == 1024
    assert fit_to_ranks(fitted, ranks) == fitted
    assert not changed_options(config.model_dump(mode="json"), fitted.model_dump(mode="json"))


def test_options_that_came_later_are_no_change_of_an_older_run() -> None:
    current = load().model_dump(mode="json")
    older = {**current, "teacher": dict(current["teacher"]), "training": dict(current["training"])}
    for name in ("cache", "cache_epochs", "cache_dir", "relation_layer"):
        del older["teacher"][name]
    del older["training"]["learning_rate"]
    students = [dict(student) for student in current["students"]]
    del students[0]["router_noise"]
    older["students"] = students
    assert changed_options(older, current) == []
    now = {**current, "teacher": {**current["teacher"], "cache": "int8", "relation_layer": 2}}
    assert changed_options(older, now) == [
        "teacher.cache: none -> int8",
        "teacher.relation_layer: -1 -> 2",
    ]
    assert changed_options({}, {"world": 3}) == ["world: None -> 3"]


def test_without_a_global_batch_ranks_change_nothing() -> None:
    config = load("--per_device_train_batch_size=5")
    assert fit_to_ranks(config, 3) is config and config.global_batch_size(3) == 15


@pytest.mark.parametrize("ranks", [3, 2048])
def test_ranks_that_do_not_divide_the_global_batch_are_refused(ranks: int) -> None:
    with pytest.raises(ConfigError, match=f"1024 pairs cannot be divided among {ranks} ranks"):
        fit_to_ranks(load("--global_batch_size=1024"), ranks)


def test_every_flag_has_a_description() -> None:
    assert [name for name, flag in known_flags().items() if not flag.field.description] == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"zero_optimisation": {}}, "did you mean zero_optimization?"),
        ({"zero_optimization": {"stgae": 1}}, "did you mean zero_optimization.stage?"),
        ({"fp16": {"enable": True}}, "did you mean fp16.enabled?"),
        ({"optimizer": {"type": "Adam"}}, "training.learning_rate"),
        ({"zero_optimization": {"stage": 4}}, "one of 0, 1, 2, 3"),
        ({"zero_optimization": {"stage": True}}, "one of 0, 1, 2, 3"),
        ({"zero_optimization": {"contiguous_gradients": False}}, "use true"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "stage 3"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "both enabled"),
        ({"bf16": {"check_grad_overflow": False}}, "use true"),
        ({"bf16": True}, "must be an object"),
        ({"train_batch_size": "16"}, "a whole number"),
    ],
)
def test_wrong_deepspeed_json_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_deepspeed_json(settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_micro_batch_size_per_gpu": 7}, "training.per_device_train_batch_size 128"),
        ({"gradient_accumulation_steps": 3}, "training.num_grad_accum_steps 1"),
        ({"gradient_clipping": 2.0}, "training.max_grad_norm 1.0"),
        ({"train_batch_size": 100}, "128 a rank"),
        ({"fp16": {"enabled": False}}, "precision fp16"),
        ({"zero_optimization": {"stage": 2}}, "zero_stage"),
        ({"bf16": {"enabled": True}}, "precision"),
    ],
)
def test_deepspeed_json_that_contradicts_flags_is_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    path = write(tmp_path / "ds.json", settings)
    message = refusal("--zero_stage=1", "--precision=fp16", f"--deepspeed={path}")
    assert str(path) in message
    assert words in message


def test_deepspeed_json_given_twice_the_same_key_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "ds.json", '{"bf16": {"enabled": true, "enabled": false}}')
    with pytest.raises(ConfigError, match="enabled is given twice"):
        check_deepspeed_json(path)


def test_stage_and_precision_of_the_json_win_over_the_recipe(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "parallel: {zero_stage: 1}\n")
    path = write(
        tmp_path / "ds.json", {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
    )
    parallel = load(f"--deepspeed={path}", recipe=recipe).parallel
    assert (parallel.zero_stage, parallel.precision) == (2, "bf16")


def test_recipe_that_contradicts_its_own_json_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "ds.json", {"zero_optimization": {"stage": 2}})
    recipe = write(tmp_path / "r.yaml", "parallel: {zero_stage: 1, deepspeed: ds.json}\n")
    assert "parallel.zero_stage is 1" in refusal(recipe=recipe)


def test_json_is_found_beside_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path / "ds.json", {"zero_optimization": {"stage": 2}})
    recipe = write(tmp_path / "r.yaml", "parallel: {deepspeed: ds.json}\n")
    assert load(recipe=recipe).parallel.deepspeed == str(path)


def test_deepspeed_settings_leave_nothing_to_auto(tmp_path: Path) -> None:
    path = write(
        tmp_path / "ds.json",
        {
            "train_batch_size": "auto",
            "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
            "bf16": {"enabled": "auto"},
        },
    )
    config = load(f"--deepspeed={path}", "--precision=bf16", "--num_grad_accum_steps=2")
    settings = deepspeed_settings(config, world_size=4)
    assert "auto" not in json.dumps(settings)
    assert settings["train_batch_size"] == 128 * 2 * 4
    assert settings["bf16"]["enabled"] is True
    assert settings["zero_optimization"]["stage"] == 2


def test_deepspeed_settings_refuse_another_global_batch(tmp_path: Path) -> None:
    path = write(tmp_path / "ds.json", {"train_batch_size": 256})
    with pytest.raises(ConfigError, match=r"256 is not the run's 512"):
        deepspeed_settings(load(f"--deepspeed={path}"), world_size=4)


def test_many_changes_are_told_in_a_line_that_can_be_read() -> None:
    before = {"labels": ["long " * 100] * 2000, "seed": 1}
    words = join_changes(changed_options(before, {"labels": ["a", "b"], "seed": 1}))
    assert words.startswith("labels.0: long long") and words.endswith("; and 1,992 more")
    assert len(words) < 1500


def test_an_open_precision_is_what_the_json_says(tmp_path: Path) -> None:
    path = write(tmp_path / "ds.json", {"fp16": {"enabled": True}})
    assert load(f"--deepspeed={path}", "--precision=auto").parallel.precision == "fp16"


@pytest.mark.parametrize("flags", [("--zero_stage=0",), ("--use_cpu=true",)])
def test_an_open_precision_goes_with_everything(flags: tuple[str, ...]) -> None:
    assert load("--precision=auto", *flags).parallel.precision == "auto"


def test_use_fp16_false_closes_an_open_precision(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "parallel: {precision: auto}\n")
    assert load("--use_fp16=false", recipe=recipe).parallel.precision == "fp32"


@pytest.mark.parametrize("name", ["../up", "/tmp", "a/b", ".hidden", "a\n", "", "x" * 300])
def test_a_name_that_leads_out_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"students": [{"name": name}]}))
    assert "must " in refusal(recipe=recipe)


@pytest.mark.parametrize("suffix", ["/../../../elsewhere", "/x", "a b", "\0", "é" * 60, ".partial"])
def test_a_suffix_that_leads_out_of_its_folder_is_refused(suffix: str) -> None:
    assert "--model_suffix: must " in refusal(f"--model_suffix={suffix}")
