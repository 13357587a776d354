"""Command lines: words to options, refusals, help pages."""

from pathlib import Path

import pytest
from pydantic import Field

from minimoe_dist.config import ConfigError
from minimoe_dist.config.command_line import help_page, read_options
from minimoe_dist.config.commands import (
    POSITIONAL,
    CommandOptions,
    DistillOptions,
    EvaluateOptions,
    FinetuneOptions,
    RecipeOptions,
)


class Plain(CommandOptions):
    source: str = Field(description="what is read", json_schema_extra=POSITIONAL)
    more: list[str] = Field([], description="and more", json_schema_extra=POSITIONAL)
    seeds: list[int] = Field([1], description="random seeds")
    paths: list[str] = Field([], description="files")
    rate: float | None = Field(None, gt=0, description="a rate")
    quick: bool = Field(False, description="a switch")


class OfRecipe(RecipeOptions):
    nodes: int = Field(1, description="machines")


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(
        "output_dir: o\nteacher: {model_name_or_path: t}\ndata: {record_path_or_regex: c}\n"
    )
    return str(path)


def test_words_without_a_flag_fill_positional_fields_in_order() -> None:
    options = read_options("plain", Plain, ["a", "--rate", "0.5", "b", "c"])
    assert (options.source, options.more, options.rate) == ("a", ["b", "c"], 0.5)


def test_list_takes_commas() -> None:
    assert read_options("plain", Plain, ["a", "--seeds", "3,4"]).seeds == [3, 4]


def test_list_takes_words_that_the_shell_spread() -> None:
    assert read_options("plain", Plain, ["a", "--paths", "x", "y", "--quick"]).paths == ["x", "y"]


def test_switch_needs_no_value() -> None:
    assert read_options("plain", Plain, ["--quick", "--source", "a"]).quick


def test_file_gives_what_flags_do_not(tmp_path: Path) -> None:
    (tmp_path / "o.yaml").write_text("source: a\nseeds: [7]\nrate: 2\n")
    words = ["--rate", "3", "--config", str(tmp_path / "o.yaml")]
    options = read_options("plain", Plain, words)
    assert (options.source, options.seeds, options.rate) == ("a", [7], 3)


def test_keys_and_flags_of_a_run_are_kept_in_order(recipe: str) -> None:
    words = [recipe, "--max_steps=1", "training.max_steps=3", "--layer", "4", "--nodes", "2"]
    options = read_options("of", OfRecipe, words)
    assert (options.recipe, options.nodes) == (recipe, 2)
    assert options.overrides == ["--max_steps=1", "training.max_steps=3", "--layer=4"]
    (run,) = options.stages
    assert (run.training.max_steps, run.students[0].layer) == (3, 4)


def test_a_flag_of_a_run_takes_its_value_with_a_space_or_an_equals_sign(recipe: str) -> None:
    words = ["--layer", "4", "--hidden=192", "--relation_layer", "-1", "--training.max_steps", "2"]
    (run,) = read_options("of", OfRecipe, [*words, recipe]).stages
    assert (run.students[0].layer, run.students[0].hidden) == (4, 192)
    assert (run.teacher.relation_layer, run.training.max_steps) == (-1, 2)


def test_a_switch_of_a_run_needs_no_value(recipe: str) -> None:
    words = ["--allow_changed_options", "--use_cpu", "false", "--layer", "4", recipe]
    (run,) = read_options("of", OfRecipe, words).stages
    assert (run.allow_changed_options, run.parallel.use_cpu) == (True, False)


def test_a_pattern_spread_by_the_shell_is_a_list_of_corpora(recipe: str) -> None:
    words = [recipe, "--record_path_or_regex", "a.idx", "b.idx", "--layer", "4"]
    (run,) = read_options("of", OfRecipe, words).stages
    assert [one.path for one in run.data.record_path_or_regex] == ["a.idx", "b.idx"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["r.yaml", "--config", "s.yaml"], "--config: recipe r.yaml is given already; keep one"),
        (["--config=s.yaml", "r.yaml"], "r.yaml: not an option of of; give --flag value or key"),
    ],
)
def test_a_second_recipe_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_options("of", OfRecipe, words)


def test_a_misspelt_flag_of_a_run_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"--layr is not an option of of; did you mean --layer\?"):
        read_options("of", OfRecipe, ["r.yaml", "--layr", "4"])


def test_config_names_the_recipe_where_there_is_one(recipe: str) -> None:
    options = read_options("of", OfRecipe, ["--config", recipe, "seed=1"])
    assert (options.recipe, options.stages[0].seed) == (recipe, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--sed", "1"], "--sed is not an option of plain; did you mean --seeds?"),
        (["a", "--rate"], "--rate: needs a value; give --rate VALUE"),
        (["a", "--rate", "0"], "--rate: must be above 0, not '0'"),
        (["a", "--seeds", "1,x"], "--seeds.1: must be a whole number, not 'x'"),
        (["--quick"], "source is missing; give --source"),
        (["a", "key=value", "-x"], "-x: not an option of plain; give --flag value"),
    ],
)
def test_wrong_words_are_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_options("plain", Plain, words)
    assert str(error.value) == message


def test_unknown_key_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "o.yaml"
    path.write_text("sorce: a\n")
    with pytest.raises(ConfigError, match=rf"{path}: sorce is not .* did you mean --source\?"):
        read_options("plain", Plain, ["--config", str(path)])


def test_help_tells_every_field_and_its_default() -> None:
    page = help_page("plain", "does things", Plain)
    assert page.startswith("usage: minimoe-dist plain SOURCE [MORE …] [--FLAG VALUE …]\n")
    assert "--seeds N,N" in page and "(default 1)" in page and "--quick  " in page


def test_the_help_page_says_numbers_of_lists_of_bounded_numbers() -> None:
    page = help_page("evaluate", "measures", EvaluateOptions)
    assert "--batch_sizes N,N" in page and "--corpus TEXT … " in page


def test_a_pattern_that_begins_with_a_bracket_is_a_word() -> None:
    assert read_options("plain", Plain, ["a", "--paths", "[ab]*"]).paths == ["[ab]*"]


def test_help_does_not_call_every_list_a_path() -> None:
    page = help_page("finetune", "does things", FinetuneOptions)
    assert "--task TEXT … " in page and "--text_columns TEXT … " in page


def test_the_help_page_of_a_run_has_every_option_under_its_section() -> None:
    page = help_page("distill", "trains", DistillOptions)
    assert page.startswith("usage: minimoe-dist distill [RECIPE] [--FLAG VALUE …] [key.path=value")
    assert "srun python -m minimoe_dist distill" in page
    assert page.index("\ntraining:\n") < page.index("--learning_rate X") < page.index("\nparallel:")
