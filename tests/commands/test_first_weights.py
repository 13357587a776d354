"""Runs whose students start from weights of their teacher's."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minimoe_dist.checkpoints.export import load_student
from minimoe_dist.checkpoints.published import save_published
from minimoe_dist.checkpoints.state_map import save_state_map
from minimoe_dist.cli import main
from minimoe_dist.exit_status import ExitStatus
from tests.commands import support
from tests.commands.support import Workshop

STUDENTS = [
    {"name": "plain", "layer": 2, "hidden": 16, "heads": 2, "moe": "1,1", "start": "teacher"},
    {"name": "experts", "layer": 1, "hidden": 16, "heads": 2, "moe": "1,4", "start": "teacher"},
]
TAUGHT = "bert.encoder.layer.0.intermediate.dense.weight"
FITTED = "its start is fitted to the teacher's states"


def summaries(output_dir: Path) -> dict[str, dict[str, Any]]:
    return json.loads((output_dir / "summary.json").read_text())["students"]


def heldout_before(output_dir: Path) -> dict[str, float]:
    return {name: each["heldout_loss_before"] for name, each in summaries(output_dir).items()}


@pytest.fixture(scope="module")
def started(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two ranks, whose students started from the teacher."""
    folder = tmp_path_factory.mktemp("starts") / "run"
    said = support.finish(workshop.recipe(folder, students=STUDENTS))
    assert said.count(FITTED) == 2
    assert "of the variance of the teacher's states" in said
    for student in STUDENTS:
        line = rf"^start of {student['name']}: step (\d+)/\1, 0:00:00 left$"
        assert re.search(line, said, re.MULTILINE), said
    return folder


def test_students_begin_nearer_to_their_teacher(
    started: Path, workshop: Workshop, tmp_path: Path
) -> None:
    random = [{**student, "start": "split"} for student in STUDENTS]
    few = {"max_steps": 1}
    support.finish(workshop.recipe(tmp_path / "random", students=random, training=few))
    ours, theirs = heldout_before(started), heldout_before(tmp_path / "random")
    assert set(ours) == {"plain", "experts"}
    for name, loss in ours.items():
        assert loss < 0.75 * theirs[name]
    for student in summaries(started).values():
        assert student["heldout_loss_after"] < student["heldout_loss_before"]


def test_a_start_is_kept_with_what_it_was_made_of(started: Path) -> None:
    for name, layers in (("plain", 2), ("experts", 1)):
        record = json.loads((started / "first_weights" / f"{name}.json").read_text())
        assert len(record["found"]["layers"]) == layers
        assert record["made_of"]["student"]["name"] == name
        # Starts that were made before the options were are not made again.
        assert not {"neurons", "start_tokens"} & {*record["made_of"]["student"]}
        assert (started / "first_weights" / name / "tokenizer_config.json").is_file()


def test_blocks_may_have_more_neurons_or_fewer(workshop: Workshop, tmp_path: Path) -> None:
    sizes = {"plain": 100, "experts": 24}
    students = [{**student, "neurons": sizes[student["name"]]} for student in STUDENTS]
    said = support.finish(
        workshop.recipe(tmp_path / "run", students=students, training={"max_steps": 1})
    )
    assert said.count(FITTED) == 2
    for name, neurons in sizes.items():
        exported = json.loads((tmp_path / "run/export" / name / "config.json").read_text())
        assert exported["intermediate_size"] == neurons


def test_a_start_is_fitted_to_as_many_tokens_as_are_asked_for(
    started: Path, workshop: Workshop, tmp_path: Path
) -> None:
    def tokens(output_dir: Path, name: str) -> int:
        record = json.loads((output_dir / "first_weights" / f"{name}.json").read_text())
        return int(record["found"]["tokens"])

    wanted = {"plain": 200, "experts": 900}
    students = [{**student, "start_tokens": wanted[student["name"]]} for student in STUDENTS]
    batch = {"max_steps": 1, "per_device_eval_batch_size": 2}
    support.finish(workshop.recipe(tmp_path / "run", students=students, training=batch))
    for name, least in wanted.items():
        longest = 2 * 32  # tokens of a batch
        assert least <= tokens(tmp_path / "run", name) < least + longest
        assert tokens(started, name) > 2 * least


def test_going_on_fits_nothing_again(workshop: Workshop, tmp_path: Path) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    support.finish(workshop.recipe(whole, students=STUDENTS))
    recipe = workshop.recipe(halved, students=STUDENTS)
    with support.start(recipe) as ranks:
        ranks.until_step(12)
        ranks.until_saved()
        ranks.signal(signal.SIGKILL)
    said = support.finish(recipe)
    assert FITTED not in said and "resum" in said.lower()
    for name in ("plain", "experts"):
        one, other = (
            load_file(folder / "export" / name / "model.safetensors") for folder in (whole, halved)
        )
        assert all((one[key] == other[key]).all() for key in one)


@pytest.mark.parametrize("change", ["seed", "compat", "damage"])
def test_a_start_of_something_else_is_made_again(
    change: str, workshop: Workshop, tmp_path: Path
) -> None:
    few = {"max_steps": 1}
    recipe = workshop.recipe(
        tmp_path / "run",
        students=STUDENTS[:1],
        training=few,
        parallel={"expert_parallel_size": 1},
    )
    support.finish(recipe)
    start = tmp_path / "run" / "first_weights" / "plain"
    before = load_file(start / "model.safetensors")
    if change == "seed":
        said = support.finish(recipe, "--seed=5", "--resume=never")
    elif change == "compat":
        said = support.finish(recipe, "--compat=seed", "--resume=never")
    else:
        start.with_name("plain.json").write_text("{")
        said = support.finish(recipe, "--resume=never")
    assert FITTED in said
    after = load_file(start / "model.safetensors")
    same = all((before[key] == after[key]).all() for key in before)
    assert same is (change != "seed")


def test_a_broken_teacher_is_named(workshop: Workshop, tmp_path: Path) -> None:
    teacher = support.make_teacher(tmp_path / "teacher", poisoned=True)
    statuses, said = support.run(
        workshop.recipe(
            tmp_path / "run", students=STUDENTS[1:], teacher={"model_name_or_path": str(teacher)}
        )
    )
    assert set(statuses) == {2}
    line = f"students.experts.start: teacher {teacher} gives no weights: its embeddings are not all"
    assert line in said and "Traceback" not in said
    assert not (tmp_path / "run" / "first_weights" / "experts.json").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"initial_weights": "FOLDER"},
            "students.0.initial_weights: is what start: teacher would replace",
        ),
        (
            {"model_name_or_path": "FOLDER"},
            "students.0.model_name_or_path: is what start: teacher would replace",
        ),
    ],
)
def test_other_origins_are_refused(
    changes: dict[str, str],
    reason: str,
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {name: str(workshop.teacher) for name in changes}
    students = [{**STUDENTS[0], **given}]
    recipe = workshop.recipe(tmp_path / "run", students=students)
    assert main(["distill", "--config", str(recipe), "--dry_run"]) != 0
    assert reason in capsys.readouterr().err


def test_a_teacher_with_experts_gives_no_weights(
    started: Path, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = {"model_name_or_path": str(started / "export" / "experts")}
    recipe = workshop.recipe(tmp_path / "run", students=STUDENTS[1:], teacher=teacher)
    assert main(["distill", "--config", str(recipe), "--dry_run"]) != 0
    assert (
        "students.experts.start: teacher takes over weights of a plain" in capsys.readouterr().out
    )


def test_an_assistant_gives_its_weights_too(
    started: Path, workshop: Workshop, tmp_path: Path
) -> None:
    teacher = {"model_name_or_path": str(started / "export" / "plain")}
    student = {**STUDENTS[1], "hidden": 8}
    support.finish(
        workshop.recipe(
            tmp_path / "run", students=[student], teacher=teacher, training={"max_steps": 2}
        )
    )
    assert (tmp_path / "run" / "export" / "experts" / "config.json").is_file()


CLUSTERED = "its routers are fitted to clusters of"


def clusters(plain: Path, **changes: Any) -> dict[str, Any]:
    """Experts that are copies of a plain student, on clusters of tokens."""
    given = {"start": "clusters", "initial_weights": str(plain), "router_noise": 0.0, **changes}
    return {**STUDENTS[1], "layer": 2, **given}


def test_experts_go_on_from_a_plain_student_with_clusters_of_their_own(
    started: Path, workshop: Workshop, tmp_path: Path
) -> None:
    plain, run = tmp_path / "plain", tmp_path / "run"
    shutil.copytree(started / "export" / "plain", plain)
    fixed = {"router_rate_factor": 0, "max_steps": 6}
    recipe = workshop.recipe(run, students=[clusters(plain)], training=fixed)
    said = support.finish(recipe)
    assert "its routers move" not in said
    assert re.search(r"^start of \w+: step (\d+)/\1, 0:00:00 left$", said, re.MULTILINE), said
    assert said.count(CLUSTERED) == 1 and "a chosen expert has on the mean a probability" in said
    first, after = (
        load_file(folder / "model.safetensors")
        for folder in (run / "first_weights" / "experts", run / "export" / "experts")
    )
    routers = [name for name in first if "ffn_gate" in name]
    assert len(routers) == 4
    assert all(first[name].equal(after[name]) for name in routers), "they stay as they begin"
    assert not first[TAUGHT].equal(after[TAUGHT])
    record = json.loads((run / "first_weights" / "experts.json").read_text())
    assert [one["layer"] for one in record["found"]["blocks"]] == [1, 2]
    for block in record["found"]["blocks"]:
        assert block["largest"] < 0.3 and block["probability"] > 0.4
    # What is there already is not made again ...
    again = ("--resume=never", "--max_steps=1")
    assert CLUSTERED not in support.finish(recipe, *again)
    # ... but of another plain student in the same place.
    path = plain / "model.safetensors"
    weights = load_file(path)
    save_file({name: 1.01 * value for name, value in weights.items()}, path, {"format": "pt"})
    assert CLUSTERED in support.finish(recipe, *again)
    # So it is where the plain student's map of last states comes to it later.
    save_state_map({"state_map.weight": torch.ones(32, 16)}, plain)
    assert CLUSTERED in support.finish(recipe, *again)


@pytest.mark.parametrize("relation_weight", [0, 1])
def test_a_head_that_has_learnt_masked_tokens_goes_along_to_clusters(
    relation_weight: int, workshop: Workshop, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {
        "objective": {"mlm_weight": 1, "relation_weight": relation_weight},
        "data": {"data_type": "bert_mlm"},
        "parallel": {"expert_parallel_size": 1},
    }
    plain = {**STUDENTS[0], "start": "split"}
    first = workshop.recipe(tmp_path / "first", students=[plain], **sections)
    support.finish(first, world_size=1)
    ends = support.heldout(tmp_path / "first")[30]["plain"]
    begins = support.heldout(tmp_path / "first")[0]["plain"]
    export = tmp_path / "first" / "export" / "plain"
    few = {"max_steps": 1, "router_rate_factor": 0}
    second = workshop.recipe(
        tmp_path / "second", students=[clusters(export)], training=few, **sections
    )
    support.finish(second, world_size=1)
    # A drawn head would have it begin where the first began.
    found = support.heldout(tmp_path / "second")[0]["experts"]
    assert found < ends + 0.5 * (begins - ends)


def test_the_teacher_of_clusters_may_be_a_published_student(
    started: Path, workshop: Workshop, tmp_path: Path
) -> None:
    teacher = tmp_path / "published"
    shutil.copytree(workshop.teacher, teacher, ignore=shutil.ignore_patterns("*.safetensors"))
    (teacher / "config.json").unlink()
    save_published(load_student(started / "export" / "experts"), teacher)
    student = clusters(started / "export" / "plain")
    few = {"max_steps": 1}
    recipe = workshop.recipe(
        tmp_path / "run",
        students=[student],
        teacher={"model_name_or_path": str(teacher)},
        training=few,
    )
    said = support.finish(recipe)
    assert CLUSTERED in said and "its routers move" in said


def test_clusters_are_of_the_configuration_that_a_student_names(
    workshop: Workshop, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(workshop.teacher, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 48}))
    few, alone = {"max_steps": 1}, {"expert_parallel_size": 1}
    plain = {**STUDENTS[0], "start": "split", "model_name_or_path": str(base)}
    first = workshop.recipe(tmp_path / "first", students=[plain], training=few, parallel=alone)
    support.finish(first, world_size=1)
    student = clusters(tmp_path / "first" / "export" / "plain", model_name_or_path=str(base))
    second = workshop.recipe(tmp_path / "second", students=[student], training=few, parallel=alone)
    support.finish(second, world_size=1)
    exported = json.loads((tmp_path / "second" / "export" / "experts" / "config.json").read_text())
    assert exported["max_position_embeddings"] == 48


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"initial_weights": None}, "'clusters' needs a plain student; give its folder"),
        ({"moe": "1,1"}, "'clusters' is for students with experts"),
        ({"initial_weights": "EXPERTS"}, "start: clusters wants a plain student"),
        ({"layer": 1}, "students.experts.layer: "),
    ],
)
def test_what_cannot_be_copied_to_clusters_is_refused(
    changes: dict[str, Any],
    words: str,
    started: Path,
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if changes.get("initial_weights") == "EXPERTS":
        changes = {"layer": 1, "initial_weights": str(started / "export" / "experts")}
    student = clusters(started / "export" / "plain", **changes)
    alone = {"expert_parallel_size": 1}
    recipe = workshop.recipe(tmp_path / "run", students=[student], parallel=alone)
    assert main(["distill", "--config", str(recipe), "--dry_run"]) != 0
    said = capsys.readouterr()
    assert words in said.err + said.out


def test_a_broken_plain_student_has_no_clusters(
    started: Path, workshop: Workshop, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(started / "export" / "plain", plain)
    path = plain / "model.safetensors"
    weights = load_file(path)
    weights["encoder.layer.0.output.dense.bias"][0] = float("inf")
    save_file(weights, path, {"format": "pt"})
    statuses, said = support.run(workshop.recipe(tmp_path / "run", students=[clusters(plain)]))
    assert set(statuses) == {2} and "Traceback" not in said
    assert f"students.experts.start: copies of {plain} have no clusters: what its layer 2" in said


@pytest.mark.parametrize("model_type", ["bert_tinybert", "bert_mlm"])
def test_types_without_relations_start_otherwise(
    model_type: str, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = workshop.recipe(
        tmp_path / "run", model_type=model_type, students=STUDENTS[:1],
        parallel={"expert_parallel_size": 1},
    )  # fmt: skip
    assert main(["distill", "--config", str(recipe), "--dry_run"]) != 0
    assert f"'teacher' has no place in a {model_type} run" in capsys.readouterr().err


_NO_ROOM = """
import sys
from minimoe_dist.checkpoints.export import load_student
from minimoe_dist.checkpoints.published import save_published
from minimoe_dist.checkpoints.state_map import save_state_map
from minimoe_dist.cli import main
from minimoe_dist.models import inheritance

def no_room(*_):
    raise RuntimeError("can't allocate memory: you tried to allocate 8589934592 bytes.")

inheritance.inherit = no_room
sys.exit(main(["distill", "--config", sys.argv[1]]))
"""


def test_memory_that_does_not_suffice_for_the_fit_is_told_with_its_own_remedy(
    workshop: Workshop, tmp_path: Path
) -> None:
    alone = {"expert_parallel_size": 1}
    recipe = workshop.recipe(tmp_path / "run", students=STUDENTS, parallel=alone)
    done = subprocess.run(
        [sys.executable, "-c", _NO_ROOM, str(recipe)], capture_output=True, text=True
    )
    assert done.returncode == ExitStatus.REFUSED, done.stderr
    assert "out of memory for 8.00 GiB more with the states that students' starts" in done.stderr
    assert "are fitted to: lower students.start_tokens or give students another" in done.stderr


_ENDLESS_FIT = """
import sys, time
from minimoe_dist.checkpoints.export import load_student
from minimoe_dist.checkpoints.published import save_published
from minimoe_dist.checkpoints.state_map import save_state_map
from minimoe_dist.cli import main
from minimoe_dist.models import inheritance

fit = inheritance.inherit

def endless(student, teacher, batches, layer, seed, go_on):
    found = fit(student, teacher, batches, layer, seed, go_on)
    while student.config.feedforward_experts > 1:
        go_on()
        time.sleep(0.05)
    return found

inheritance.inherit = endless
sys.exit(main(["distill", "--config", sys.argv[1]]))
"""


def test_a_stop_is_heeded_between_parts_of_the_fit(workshop: Workshop, tmp_path: Path) -> None:
    alone, few = {"expert_parallel_size": 1}, {"max_steps": 1}
    recipe = workshop.recipe(tmp_path / "run", students=STUDENTS, parallel=alone, training=few)
    run = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS_FIT, str(recipe)], stderr=subprocess.PIPE, text=True
    )
    starts = tmp_path / "run" / "first_weights"
    try:
        while not (starts / "plain.json").exists():
            assert run.poll() is None
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == ExitStatus.STOPPED, said
    assert "stopped: the next start fits what is missing" in said and "Traceback" not in said
    assert not (starts / "experts.json").exists()
    said = support.finish(recipe, world_size=1)
    assert said.count(FITTED) == 1, "what was fitted before the stop is kept"
