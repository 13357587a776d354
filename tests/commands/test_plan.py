"""``minimoe-dist plan`` as a user meets it: tables, files, and errors of one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minimoe_dist import cli
from minimoe_dist.exit_status import ExitStatus

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "configs" / "recipes"
RECIPE = str(RECIPES / "minimoe_3l_384h_1_4e.yaml")


def test_a_plan_shows_memory_time_and_what_to_take(capsys):
    assert cli.main(["plan", RECIPE, "--machine", "8xh100", "--tokens", "1000000000"]) == 0
    said = capsys.readouterr().out
    for words in ("memory of a rank", "time of a step", "whole run", "Recommended: --zero_stage"):
        assert words in said


@pytest.mark.parametrize(
    "recipe",
    [
        "bert_mlm_3l_384h",
        "bert_xlarge_chinese_minimoe_ta",
        "minimoe_3l_384h_4_4e",
        "tinybert_3l_384h",
    ],
)
def test_a_shipped_recipe_can_be_planned(recipe, tmp_path, capsys):
    out = tmp_path / "plan.json"
    given = ["plan", str(RECIPES / f"{recipe}.yaml"), "--machine", "8xh100", "--output", str(out)]
    assert cli.main(given) == 0
    assert all(plan["recommended"]["fits"] for plan in json.loads(out.read_text()))


def test_this_machine_has_as_many_processes_as_the_recipe_needs(tmp_path, capsys):
    out = tmp_path / "plan.json"
    given = ["plan", str(RECIPES / "demo.yaml"), "--tokens", "1000000", "--output", str(out)]
    assert cli.main(given) == 0
    (plan,) = json.loads(out.read_text())
    assert plan["recipe"]["layout"]["expert_parallel_size"] == 2
    assert "Recommended: --zero_stage" in capsys.readouterr().out


def test_overrides_change_what_is_planned(tmp_path, capsys):
    out = tmp_path / "plan.json"
    given = ["plan", RECIPE, "--machine", "8xa100", "--layer", "12", "parallel.zero_stage=2"]
    assert cli.main([*given, "--output", str(out)]) == 0
    (plan,) = json.loads(out.read_text())
    assert plan["recipe"]["layout"]["zero_stage"] == 2
    assert plan["parameters"]["student"] > 50_000_000


def test_a_picture_of_memory_is_drawn(tmp_path, capsys):
    out = tmp_path / "plan.png"
    assert cli.main(["plan", RECIPE, "--machine", "8xh100", "--output", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--machine", "8xh10"], "did you mean 8xh100?"),
        (
            [
                *("--machine", "8xh100", "--memory_gib", "2.01"),
                "--per_device_train_batch_size",
                "1",
            ],
            "nothing fits 8xh100",
        ),
        (
            ["--machine", "8xh100", "--expert_parallel_size", "4", "--ranks_per_node", "6"],
            "6 processes",
        ),
        (["--machine", "8xh100", "--output", "plan.txt"], "ends with .json or .png"),
        (["--machine", "8xh100", "--teacher_model_name_or_path", "some/model"], "not known here"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(given, words, capsys):
    assert cli.main(["plan", RECIPE, *given]) == ExitStatus.REFUSED
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_what_is_wrong_is_said_before_torch_is_imported():
    code = (
        "import sys; from minimoe_dist import cli; "
        f"cli.main(['plan', {RECIPE!r}, '--machine', '8xh10']); "
        "print(sorted({'torch', 'transformers', 'deepspeed'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "[]", found.stderr
