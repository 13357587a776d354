"""``minimoe-dist bench`` on real processes: files that it leaves, plans made of them, refusals."""

import json
import sys

import pytest
import torch
import yaml

from minimoe_dist import cli
from minimoe_dist.exit_status import ExitStatus
from tests.commands.support import Workshop, execute, run
from tests.planning.recipes import write_teacher


def bench(recipe, folder, *given, world_size=1):
    """Runs it; returns what ``bench.json`` has, and what was printed."""
    flags = ["--output", str(folder), "--steps", "2", "--seconds", "0", *given]
    statuses, said = run(recipe, *flags, world_size=world_size, command="bench")
    assert set(statuses) == {0}, said
    return json.loads((folder / "bench.json").read_text()), said


@pytest.fixture(scope="module")
def alone(workshop: Workshop, tmp_path_factory):
    """A recipe and what was found of it on one process."""
    folder = tmp_path_factory.mktemp("bench")
    recipe = workshop.recipe(folder / "run", parallel={"expert_parallel_size": 1})
    return (recipe, folder / "out", *bench(recipe, folder / "out"))


def test_the_step_is_told_by_part(alone):
    found = alone[2]["step"]
    assert list(found["parts"]) == [
        "placing", "teacher", "student forward", "student backward", "update", "metrics",
    ]  # fmt: skip
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"])
    assert list(found["planned"]) == [
        "teacher", "student forward", "student backward", "update",
    ]  # fmt: skip


def test_what_stood_for_the_recipe_is_said(alone, workshop):
    assert alone[2]["recipe"]["teacher"] == f"{workshop.teacher}, its own weights"
    assert "as in the corpus" in alone[2]["recipe"]["no padding"]


def test_one_process_has_no_link_and_says_so(alone):
    assert alone[2]["link"] is None
    assert "not measured: one process" in alone[3]


def test_tables_fit_a_terminal_of_80_columns(alone):
    tables = [line for line in alone[3].splitlines() if line and line[0] in "┃│┏┌├└┡"]
    assert tables
    assert max(map(len, tables)) <= 80


def test_a_picture_is_drawn(alone):
    assert (alone[1] / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_plan_of_the_machine_file_meets_the_measured_step(alone, tmp_path, capsys):
    recipe, folder, found, _ = alone
    out = tmp_path / "plan.json"
    given = ["plan", str(recipe), "--machine", str(folder / "machine.yaml")]
    assert cli.main([*given, "--output", str(out)]) == 0
    (plan,) = json.loads(out.read_text())
    assert plan["recipe"]["step_seconds"] == pytest.approx(found["step"]["seconds"], rel=0.15)


def test_models_and_corpora_that_are_not_there_are_stood_in_for(workshop, tmp_path):
    recipe = workshop.recipe(
        tmp_path / "run",
        teacher={"model_name_or_path": write_teacher(tmp_path / "sizes")},
        students=[{"layer": 1, "hidden": 16, "heads": 2, "initial_weights": "runs/none/yet"}],
        data={"record_path_or_regex": "corpora/none"},
        parallel={"expert_parallel_size": 1},
    )
    found, _ = bench(recipe, tmp_path / "out", "--filled", "0.5")
    assert found["recipe"]["teacher"].endswith("random weights of its sizes")
    assert found["recipe"]["student student"].endswith("from a random start")
    assert found["recipe"]["no padding"].endswith("(as given)")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bench.json", "bench.png", "machine.yaml",
    ]  # fmt: skip


def test_two_ranks_measure_their_link(workshop, tmp_path):
    found, said = bench(workshop.recipe(tmp_path / "run"), tmp_path / "out", world_size=2)
    machine = yaml.safe_load((tmp_path / "out" / "machine.yaml").read_text())
    assert found["ranks"] == machine["ranks_per_node"] == 2
    assert set(found["link"]) == {
        "latency", "all-reduce of 1 MiB", "all-reduce of 16 MiB",
        "all-to-all of 1 MiB", "all-to-all of 16 MiB",
    }  # fmt: skip
    assert machine["link_gb_per_second"] == pytest.approx(
        found["link"]["all-reduce of 16 MiB"] / 1e9, rel=0.001
    )
    assert "exchange of experts" in found["step"]["planned"]
    assert said.count("This machine") == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--teacher_model_name_or_path", "some/model"], "the sizes of some/model are not known"),
        (["--expert_parallel_size", "2"], "2 does not divide the 1 processes"),
        (["--teacher.relation_layer", "9"], "teacher.relation_layer: 9, but"),
        (["--teacher.layout", "tensor", "--teacher.parallel_size", "3"], "parallel_size: 3"),
        (["--filled", "1.5"], "filled"),
        (["--output", "{file}"], "is a file; give another folder"),
        (
            [
                *("--model_type", "sparsebert_minilm", "--moe", "1,1", "--sparsity", "50"),
                *("--initial_weights", "runs/none"),
            ],
            "runs/none is not there",
        ),
        (["--step", "3"], "did you mean --steps?"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(given, words, workshop, tmp_path, capsys):
    recipe = workshop.recipe(
        tmp_path / "run",
        parallel={"expert_parallel_size": 1},
    )
    filled = [word.format(file=recipe) for word in given]
    assert cli.main(["bench", str(recipe), *filled]) == ExitStatus.REFUSED
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_is_measured_by_its_own_clock(workshop, tmp_path):
    parallel = {"expert_parallel_size": 1, "use_cpu": False, "compile": "off"}
    recipe, out = workshop.recipe(tmp_path / "run", parallel=parallel), tmp_path / "out"
    given = ["--steps", "2", "--seconds", "0", "--output", str(out)]
    done = execute([sys.executable, "-m", "minimoe_dist", "bench", str(recipe), *given])
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "bench.json").read_text())
    assert 0 < found["recorded_launch"] < found["launch"]
    assert {"float32", "bfloat16", "float16"} <= {one["dtype"] for one in found["products"]}
    assert abs(found["step"]["off"]) < 0.15
