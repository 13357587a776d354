"""Runs whose students learn their teacher's last states beside its relations."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from minimoe_dist.checkpoints.state_map import has_state_map, save_state_map
from minimoe_dist.cli import main
from tests.commands import support
from tests.commands.support import Workshop
from tests.commands.test_relation_cache import cached

STUDENTS = [
    {"name": "plain", "layer": 2, "hidden": 16, "heads": 2, "moe": "1,1", "start": "teacher"},
    {"name": "student", "layer": 2, "hidden": 16, "heads": 2, "moe": "1,4", "start": "teacher"},
]
LEARNT = {"students": STUDENTS, "objective": {"state_weight": 0.5}}


@pytest.fixture(scope="module")
def learnt(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two ranks."""
    folder = tmp_path_factory.mktemp("states") / "run"
    support.finish(workshop.recipe(folder, **LEARNT))
    return folder


def test_the_loss_is_the_weighted_sum_of_both_parts(learnt: Path) -> None:
    steps = support.losses(learnt)
    for numbers in steps.values():
        for name, weight in (("plain", 0.0), ("student", 0.01)):
            one = numbers[name]
            parts = one["relation_loss"] + 0.5 * one["last_states_loss"]
            assert one["loss"] == pytest.approx(parts + weight * one["balance"], rel=1e-5)
    for name in ("plain", "student"):
        first, last = (steps[step][name]["last_states_loss"] for step in (1, 30))
        assert last < 0.95 * first


def test_exports_have_neither_its_map_nor_maps_behind_the_layers(learnt: Path) -> None:
    for name in ("plain", "student"):
        assert not any(
            key.startswith(("state_map.", "relation.")) for key in support.weights(learnt, name)
        )
    config = json.loads((learnt / "export" / "student" / "config.json").read_text())
    assert (config["relation_projections"], config["state_width"]) == (False, None)
    assert config["feedforward_experts"] == 4


def test_experts_of_attention_keep_maps_behind_the_layers(
    workshop: Workshop, tmp_path: Path
) -> None:
    students = [{**STUDENTS[1], "moe": "2,4", "start": "split"}]
    objective = {"state_weight": 0.5}
    few = {"max_steps": 2}
    support.finish(
        workshop.recipe(tmp_path / "run", students=students, objective=objective, training=few)
    )
    assert any(key.startswith("relation.") for key in support.weights(tmp_path / "run"))


def test_a_killed_run_goes_on_bit_for_bit(learnt: Path, workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe(tmp_path / "run", **LEARNT)
    with support.start(recipe) as ranks:
        ranks.until_step(12)
        ranks.until_saved()
        ranks.signal(signal.SIGKILL)
    support.finish(recipe)
    support.assert_same_run(learnt, tmp_path / "run")


def test_a_cache_keeps_them_beside_the_relations(workshop: Workshop, tmp_path: Path) -> None:
    teacher = {"model_name_or_path": str(workshop.teacher), "dtype": "float32"}
    few = {**LEARNT, "training": {"max_steps": 6}}
    support.finish(workshop.recipe(tmp_path / "plain", **few, teacher=teacher))
    support.finish(cached(workshop, tmp_path / "run", "float32", **few))
    ours, theirs = (support.losses(tmp_path / name) for name in ("run", "plain"))
    for step, numbers in theirs.items():
        for name, one in numbers.items():
            for part in ("relation_loss", "last_states_loss"):
                assert ours[step][name][part] == pytest.approx(one[part], rel=1e-6)
    # A run of relations alone takes none of them for its own.
    support.finish(
        cached(workshop, tmp_path / "other", "float32", training={"max_steps": 6}),
        "--state_weight=0",
    )
    facts = [json.loads(path.read_text()) for path in tmp_path.glob("cache/*/cache.json")]
    assert sorted(one.get("signals", 3) for one in facts) == [3, 4]


def test_a_start_that_was_fitted_for_them_is_made_again_without_them(
    workshop: Workshop, tmp_path: Path
) -> None:
    """Experts without last states have maps behind their layers: their start is another."""
    few = {"students": STUDENTS, "training": {"max_steps": 1}}
    recipe = workshop.recipe(tmp_path / "run", **few)
    support.finish(recipe, "--state_weight=0.5")
    said = support.finish(recipe, "--resume=never")
    assert said.count("its start is fitted to the teacher's states") == 2


def test_a_start_has_a_map_that_was_fitted_too(
    learnt: Path, workshop: Workshop, tmp_path: Path
) -> None:
    """The first step's error is less than that of a map that was drawn, for the same student."""
    students = [{**one, "start": "split"} for one in STUDENTS]
    for one in students:
        one["initial_weights"] = str(tmp_path / "starts" / one["name"])
    shutil.copytree(learnt / "first_weights", tmp_path / "starts")
    for path in tmp_path.glob("starts/*.state_map.safetensors"):
        path.unlink()
    few = {**LEARNT, "students": students, "training": {"max_steps": 1}}
    assert len(list((learnt / "first_weights").glob("*.state_map.safetensors"))) == 2
    support.finish(workshop.recipe(tmp_path / "run", **few))
    fitted, drawn = support.losses(learnt)[1], support.losses(tmp_path / "run")[1]
    for name in ("plain", "student"):
        assert fitted[name]["last_states_loss"] < 0.9 * drawn[name]["last_states_loss"]
        assert fitted[name]["last_states_loss"] < 1.0
        assert fitted[name]["relation_loss"] == pytest.approx(
            drawn[name]["relation_loss"], rel=1e-6
        )


def test_a_damaged_map_is_named(learnt: Path, workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(learnt / "first_weights", tmp_path / "starts")
    path = tmp_path / "starts" / "student.state_map.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    start = str(tmp_path / "starts" / "student")
    student = {**STUDENTS[1], "start": "split", "initial_weights": start}
    recipe = workshop.recipe(tmp_path / "run", **{**LEARNT, "students": [student]})
    statuses, said = support.run(recipe)
    assert statuses[0] == 2 and f"{path}: cannot be read" in said


@pytest.mark.parametrize(("start", "nearness"), [("copies", 0.05), ("clusters", 0.005)])
def test_copies_go_on_where_their_plain_student_ended(
    start: str, nearness: float, learnt: Path, workshop: Workshop, tmp_path: Path
) -> None:
    plain = {**STUDENTS[0], "start": "split", "dropout": 0.0}
    plain["initial_weights"] = str(learnt / "export" / "plain")
    copies = {**plain, "name": "copies", "moe": "1,4", "start": start, "copy_noise": 0.0}
    rate = {"max_steps": 1, "expert_rate_factor": 0.5}
    recipe = workshop.recipe(
        tmp_path / "run", **{**LEARNT, "students": [plain, copies], "training": rate}
    )
    support.finish(recipe)
    before = support.heldout(tmp_path / "run")[0]
    assert before["plain"] == pytest.approx(support.heldout(learnt)[30]["plain"], rel=1e-5)
    assert before["copies"] == pytest.approx(before["plain"], rel=nearness)
    # Their map is beside their folder, and what they are tuned with is not what they learnt with.
    assert (tmp_path / "run" / "export" / "copies.state_map.safetensors").is_file()
    for name in ("plain", "copies"):
        config = json.loads((tmp_path / "run" / "export" / name / "config.json").read_text())
        assert config["hidden_dropout_prob"] == 0.1


def test_a_models_experts_and_parameters_are_told_as_they_are(learnt: Path, tmp_path: Path) -> None:
    export, output = str(learnt / "export" / "student"), tmp_path / "evaluation.json"
    assert main(["evaluate", export, "--output", str(output), "--use_cpu", "true"]) == 0
    found = json.loads(output.read_text())
    assert [one["block"] for one in found["experts"]] == [
        "layer 1 feed-forward", "layer 2 feed-forward",
    ]  # fmt: skip
    assert all(sum(one["tokens"]) > 0 for one in found["experts"])
    told = json.loads((learnt / "summary.json").read_text())["students"]["student"]
    kept = sum(value.numel() for value in support.weights(learnt).values())
    assert told["student_parameters"] == kept


def test_another_dropout_is_no_reason_to_fit_a_start_again(
    workshop: Workshop, tmp_path: Path
) -> None:
    recipe = workshop.recipe(tmp_path / "run", **{**LEARNT, "training": {"max_steps": 1}})
    fitted = "its start is fitted to the teacher's states"
    assert support.finish(recipe).count(fitted) == 2
    assert fitted not in support.finish(recipe, "--resume=never", "--dropout=0.0")
    (tmp_path / "run" / "first_weights" / "plain.state_map.safetensors").unlink()
    assert support.finish(recipe, "--resume=never").count(fitted) == 1


def test_a_plain_teacher_that_learnt_relations_alone_is_warned_of(
    learnt: Path, workshop: Workshop, tmp_path: Path
) -> None:
    few = {**LEARNT, "students": STUDENTS[:1], "training": {"max_steps": 1}}
    few["parallel"] = {"expert_parallel_size": 1}
    for teacher, state_weight, warns in (("taught", "0.5", False), ("bare", "0", True)):
        first = workshop.recipe(tmp_path / teacher, **few)
        support.finish(first, f"--state_weight={state_weight}", world_size=1)
        path = str(tmp_path / teacher / "export" / "plain")
        students = [{**STUDENTS[0], "layer": 1, "start": "split"}]
        second = workshop.recipe(
            tmp_path / f"of_{teacher}", **{**few, "students": students},
            teacher={"model_name_or_path": path},
        )  # fmt: skip
        said = support.finish(second, world_size=1)
        assert ("learnt relations alone" in said) is warns


def test_a_map_is_beside_its_folder_however_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state_map({"state_map.weight": torch.ones(3, 2)}, tmp_path / "student")
    assert has_state_map(tmp_path / "student")
    (tmp_path / "student").mkdir()
    monkeypatch.chdir(tmp_path / "student")
    assert has_state_map(Path("."))
    assert not has_state_map(Path("/"))
    save_state_map({}, tmp_path / "student")
    assert not has_state_map(Path("."))
