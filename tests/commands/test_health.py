"""What a run says of its own health: faults that are planted in small real runs, each by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from minimoe_dist import cli
from tests.commands import support
from tests.commands.support import Workshop
from tests.data.tasks.files import write_table

WEIGHTS = "model.safetensors"


def health(output_dir: Path) -> list[dict[str, Any]]:
    """The health lines of a run."""
    return [record for record in support.records(output_dir) if "health" in record]


def warnings(said: str) -> list[str]:
    """What the log's warnings say, behind their time and logger."""
    return [line.split(": ", 1)[1] for line in said.splitlines() if "WARNING" in line]


def changed_model(folder: Path, source: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    """A copy of a model whose tensors are changed by name."""
    shutil.copytree(source, folder)
    tensors = {name: change(name, t) for name, t in load_file(source / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def constant_teacher(workshop: Workshop) -> Path:
    """A teacher whose weights are all zero."""
    folder = workshop.folder / "constant"
    return changed_model(folder, workshop.teacher, lambda _, tensor: torch.zeros_like(tensor))


def test_a_healthy_run_says_nothing(workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe(tmp_path / "run", training={"health": {"window": 10}})
    assert "WARNING" not in support.finish(recipe)
    assert health(tmp_path / "run") == []


def test_a_constant_teacher_is_named_before_the_first_step(
    constant_teacher: Path, workshop: Workshop, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    statuses, said = support.run(recipe, f"--teacher_model_name_or_path={constant_teacher}")
    assert statuses == [2, 2]
    assert said.count("WARNING") == said.count("Traceback") == 0
    assert (
        f": step 1: the queries, keys, values of the teacher {constant_teacher} do not "
        "depend on what it reads: since step 1: look at the weights" in said.splitlines()[-1]
    )
    assert support.losses(tmp_path / "run") == {}
    (record,) = health(tmp_path / "run")
    assert (record["health"], record["step"]) == ("broken_teacher", 1)


@pytest.mark.parametrize(("reaction", "told"), [("warn", 1), ("off", 0)])
def test_a_constant_teacher_may_teach_where_options_say_so(
    reaction: str, told: int, constant_teacher: Path, workshop: Workshop, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run", training={"health": {"broken_teacher": reaction}})
    said = support.finish(
        recipe, f"--teacher_model_name_or_path={constant_teacher}", "--max_steps=2"
    )
    assert said.count("do not depend on what it reads") == told
    assert len(health(tmp_path / "run")) == told


@pytest.mark.parametrize(
    ("model_type", "signals"),
    [
        ("bert_tinybert", "embeddings, hidden states, queries, keys"),
        ("bert_minilm", "queries, keys, values"),
    ],
)
def test_every_objective_names_its_teachers_signals(
    model_type: str, signals: str, constant_teacher: Path, workshop: Workshop, tmp_path: Path
) -> None:
    students = [{"layer": 1, "hidden": 16, "heads": 4, "moe": "1,1"}]
    recipe = workshop.recipe(
        tmp_path / "run",
        model_type=model_type,
        students=students,
        parallel={"expert_parallel_size": 1},
    )
    teacher = f"--teacher_model_name_or_path={constant_teacher}"
    statuses, said = support.run(recipe, teacher, world_size=1)
    assert statuses == [2]
    assert f"the {signals} of the teacher" in said


def test_a_teacher_of_nan_is_named_before_the_first_step(
    workshop: Workshop, tmp_path: Path
) -> None:
    teacher = changed_model(
        tmp_path / "teacher", workshop.teacher, lambda _, t: torch.full_like(t, torch.nan)
    )
    recipe = workshop.recipe(tmp_path / "run", teacher={"model_name_or_path": str(teacher)})
    statuses, said = support.run(recipe)
    assert statuses == [2, 2]
    assert f"of the teacher {teacher} are not finite for 100 % of what it reads" in said
    assert health(tmp_path / "run")[0]["value"] == 0.0


def test_a_teacher_that_fails_now_and_then_is_named_at_the_first_step_that_it_spoils(
    workshop: Workshop, tmp_path: Path
) -> None:
    teacher = support.make_teacher(tmp_path / "poisoned", poisoned=True)
    corpus = support.make_corpus(tmp_path / "with_poison", teacher, poison=8)
    recipe = workshop.recipe(
        tmp_path / "run",
        teacher={"model_name_or_path": str(teacher)},
        data={"record_path_or_regex": str(corpus)},
    )
    said = support.finish(recipe)
    told = [line for line in warnings(said) if "of the teacher" in line]
    assert len(told) == 1
    first = min(
        s for s, row in support.losses(tmp_path / "run").items() if row["student"]["skipped_steps"]
    )
    assert told[0].startswith(f"step {first}: the queries, keys, values of the teacher {teacher}")
    assert said.index(told[0]) < said.index(f"step {first}: student: loss nan")


def routed_student(folder: Path, trained: Path, biases: list[float]) -> Path:
    """A trained student whose router adds `biases` to its logits."""

    def change(name: str, tensor: Tensor) -> Tensor:
        return tensor + torch.tensor(biases) if name.endswith("ffn_gate.bias") else tensor

    return changed_model(folder, trained / "export" / "student", change)


def routed_recipe(
    workshop: Workshop, tmp_path: Path, unbroken: Path, biases: list[float], **options: Any
) -> Path:
    student = routed_student(tmp_path / "routed", unbroken, biases)
    return workshop.recipe(
        tmp_path / "run",
        students=[
            {
                "layer": 1,
                "hidden": 16,
                "heads": 2,
                "moe": "1,4",
                "initial_weights": str(student),
            }
        ],
        objective={"balance_coefficient": 0.0},
        training={"learning_rate": 1e-6, "health": {"window": 10, **options}},
    )


def test_a_dead_expert_is_told_once(workshop: Workshop, unbroken: Path, tmp_path: Path) -> None:
    recipe = routed_recipe(workshop, tmp_path, unbroken, [0, 0, -50, 0])
    assert warnings(support.finish(recipe)) == [
        "step 10: student: layer 1 feed-forward expert 3 gets 0 % of the tokens (dead below "
        "0.25 %): since step 1"
    ]
    (record,) = health(tmp_path / "run")
    assert (record["layer"], record["block"], record["expert"]) == (1, "feed-forward", 3)


def test_an_overloaded_expert_is_told_beside_those_it_starves(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = routed_recipe(workshop, tmp_path, unbroken, [0, 50, 0, 0])
    dead, overloaded = sorted(warnings(support.finish(recipe)), key=lambda line: "over" in line)
    assert overloaded == (
        "step 10: student: layer 1 feed-forward expert 2 gets 100 % of the tokens (overloaded "
        "above 90 %): since step 1"
    )
    assert [f"expert {number} gets 0 %" in dead for number in (1, 2, 3, 4)] == [1, 0, 1, 1]


def test_a_dead_expert_ends_a_run_that_asks_for_it_behind_its_checkpoint(
    workshop: Workshop, unbroken: Path, tmp_path: Path
) -> None:
    recipe = routed_recipe(workshop, tmp_path, unbroken, [0, 0, -50, 0], dead_expert="stop")
    statuses, said = support.run(recipe, "--save_interval=7")
    assert statuses == [2, 2]
    assert "student: layer 1 feed-forward expert 3 gets 0 %" in said.splitlines()[-1]
    assert support.checkpoints(tmp_path / "run") == [7]
    assert "at step 7" in support.finish(recipe, "--save_interval=7", "--dead_expert=warn")


EXPLODING = {"learning_rate": 300.0, "warmup_proportion": 0.0, "max_grad_norm": 0}


@pytest.mark.parametrize("window", [100, 2])
def test_a_gradient_that_explodes_is_told_with_its_norm(
    window: int, workshop: Workshop, tmp_path: Path
) -> None:
    training = {**EXPLODING, "max_steps": 3, "health": {"window": window}}
    recipe = workshop.recipe(tmp_path / "run", training=training)
    said = support.finish(recipe)
    rows = {step: row["student"] for step, row in support.losses(tmp_path / "run").items()}
    first, second = rows[1]["gradient_norm"], rows[2]["gradient_norm"]
    assert [line for line in warnings(said) if "gradient" in line] == [
        f"step 2: student: the gradient's norm is {second:.3g} (exploding above "
        f"{10 * first:.3g}): since step 2"
    ]


def test_an_exploding_gradient_ends_a_run_that_asks_for_it(
    workshop: Workshop, tmp_path: Path
) -> None:
    training = {**EXPLODING, "save_interval": 1, "health": {"exploding_gradient": "stop"}}
    recipe = workshop.recipe(tmp_path / "run", training=training)
    statuses, said = support.run(recipe)
    assert statuses == [2, 2]
    assert "WARNING" not in said and "Traceback" not in said
    assert ": step 2: student: the gradient's norm is" in said.splitlines()[-1]
    assert support.checkpoints(tmp_path / "run") == [1]


def test_fine_tuning_tells_a_dead_expert_of_its_model(
    workshop: Workshop, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = routed_student(tmp_path / "routed", unbroken, [0, 0, -50, 0])
    rows = [(f"word{number % 2} word{number % 7}", str(number % 2)) for number in range(64)]
    for split in ("train", "dev"):
        write_table(tmp_path / "SST-2" / f"{split}.tsv", [("sentence", "label"), *rows])
    options = {
        "model_name_or_path": str(student), "output_dir": str(tmp_path / "run"), "task": "sst2",
        "data_dir": str(tmp_path), "max_length": 16, "batch_sizes": [4], "num_train_epochs": 7,
        "learning_rates": [1e-6], "patience": 0, "use_cpu": True,
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(options))
    told = warnings(support.finish(path, world_size=1, command="finetune"))
    found = [line.split(": ", 1)[1] for line in told if "expert" in line]
    expert = "model: layer 1 feed-forward expert 3 gets 0 % of the tokens (dead below 0.25 %)"
    assert found == [f"step 100: {expert}: since step 1"]
    # The log passes by; what was wrong stays with the scores.
    of_cell = f"seed 776, rate 1e-06, batch 4: {expert}, since step 1"
    assert cli.main(["status", str(tmp_path / "run"), "--json"]) == 0
    (status,) = json.loads(capsys.readouterr().out)
    assert status["health"] == [of_cell]
    assert cli.main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "r.html")]) == 0
    assert of_cell in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(("fill", "fault"), [(0.0, "do not depend on"), (torch.nan, "100 %")])
def test_fine_tuning_refuses_a_teacher_from_whose_predictions_nothing_can_be_learnt(
    fill: float, fault: str, workshop: Workshop, tmp_path: Path
) -> None:
    rows = [(f"word{number % 2} word{number % 7}", str(number % 2)) for number in range(64)]
    for split in ("train", "dev"):
        write_table(tmp_path / "SST-2" / f"{split}.tsv", [("sentence", "label"), *rows])
    options = {
        "model_name_or_path": str(workshop.teacher), "output_dir": str(tmp_path / "run"),
        "task": "sst2", "data_dir": str(tmp_path), "max_length": 16, "num_train_epochs": 1,
        "use_cpu": True,
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(options))
    support.finish(path, world_size=1, command="finetune")
    teacher = changed_model(
        tmp_path / "teacher",
        tmp_path / "run" / "export",
        lambda name, tensor: torch.full_like(tensor, fill) if "classifier" in name else tensor,
    )
    again = [f"--teacher={teacher}", f"--output_dir={tmp_path / 'again'}"]
    statuses, said = support.run(path, *again, command="finetune")
    assert statuses == [2, 2] and "Traceback" not in said
    last = said.splitlines()[-1]
    assert f"teacher: the predictions of the teacher {teacher} " in last and fault in last
    assert not list((tmp_path / "again").rglob("result.json"))
