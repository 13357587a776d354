"""Flat options of commands: words to values, refusals, help pages."""

from pathlib import Path

import pytest
from pydantic import Field

from minimoe_dist.config import ConfigError
from minimoe_dist.config.command_line import command_help, parse_command
from minimoe_dist.config.commands import (
    POSITIONAL,
    CommandOptions,
    EvaluateOptions,
    FinetuneOptions,
)


class Plain(CommandOptions):
    source: str = Field(description="what is read", json_schema_extra=POSITIONAL)
    more: list[str] = Field([], description="and more", json_schema_extra=POSITIONAL)
    seeds: list[int] = Field([1], description="random seeds")
    paths: list[str] = Field([], description="files")
    rate: float | None = Field(None, gt=0, description="a rate")
    quick: bool = Field(False, description="a switch")


class OfRecipe(CommandOptions):
    recipe: str = Field(description="a run", json_schema_extra=POSITIONAL)
    nodes: int = Field(1, description="machines")
    overrides: list[str] = Field([], description="changes of the run")


def test_words_without_a_flag_fill_positional_fields_in_order() -> None:
    options = parse_command("plain", Plain, ["a", "--rate", "0.5", "b", "c"])
    assert (options.source, options.more, options.rate) == ("a", ["b", "c"], 0.5)


def test_list_takes_commas() -> None:
    assert parse_command("plain", Plain, ["a", "--seeds", "3,4"]).seeds == [3, 4]


def test_list_takes_words_that_the_shell_spread() -> None:
    assert parse_command("plain", Plain, ["a", "--paths", "x", "y", "--quick"]).paths == ["x", "y"]


def test_switch_needs_no_value() -> None:
    assert parse_command("plain", Plain, ["--quick", "--source", "a"]).quick


def test_file_gives_what_flags_do_not(tmp_path: Path) -> None:
    (tmp_path / "o.yaml").write_text("source: a\nseeds: [7]\nrate: 2\n")
    words = ["--rate", "3", "--config", str(tmp_path / "o.yaml")]
    options = parse_command("plain", Plain, words)
    assert (options.source, options.seeds, options.rate) == ("a", [7], 3)


def test_overrides_and_flags_of_a_run_are_kept_in_order() -> None:
    words = ["r.yaml", "training.max_steps=3", "--layer", "4", "--nodes", "2"]
    options = parse_command("of", OfRecipe, words)
    assert (options.recipe, options.nodes) == ("r.yaml", 2)
    assert options.overrides == ["training.max_steps=3", "--layer=4"]


def test_a_misspelt_flag_of_a_run_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"--layr is not an option of of; did you mean --layer\?"):
        parse_command("of", OfRecipe, ["r.yaml", "--layr", "4"])


def test_config_names_the_recipe_where_there_is_one() -> None:
    options = parse_command("of", OfRecipe, ["--config", "r.yaml", "seed=1"])
    assert (options.recipe, options.overrides) == ("r.yaml", ["seed=1"])


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
        parse_command("plain", Plain, words)
    assert str(error.value) == message


def test_unknown_key_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "o.yaml"
    path.write_text("sorce: a\n")
    with pytest.raises(ConfigError, match=rf"{path}: sorce is not .* did you mean --source\?"):
        parse_command("plain", Plain, ["--config", str(path)])


def test_help_tells_every_field_and_its_default() -> None:
    page = command_help("plain", "does things", Plain)
    assert page.startswith("usage: minimoe-dist plain SOURCE MORE … [--FLAG VALUE …]\n")
    assert "--seeds N,N" in page and "(default 1)" in page and "--quick  " in page


def test_the_help_page_says_numbers_of_lists_of_bounded_numbers() -> None:
    page = command_help("evaluate", "measures", EvaluateOptions)
    assert "--batch_sizes N,N" in page and "--corpus TEXT … " in page


def test_a_pattern_that_begins_with_a_bracket_is_a_word() -> None:
    assert parse_command("plain", Plain, ["a", "--paths", "[ab]*"]).paths == ["[ab]*"]


def test_help_does_not_call_every_list_a_path() -> None:
    page = command_help("finetune", "does things", FinetuneOptions)
    assert "--task TEXT … " in page and "--text_columns TEXT … " in page
