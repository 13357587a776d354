"""Models of several runs are put together rightly, and nothing is made up."""

import json
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.reporting.facts import collect
from minimoe_dist.reporting.runs import read_runs
from minimoe_dist.reporting.sections import sections
from tests.reporting.folders import distilled, evaluation, tuned

TEACHER = "some/teacher"


def facts_of(*folders: Path) -> dict[str, Any]:
    return collect(read_runs([str(folder) for folder in folders]))


def by_role(facts: dict[str, Any], role: str) -> list[dict[str, Any]]:
    return [one for one in facts["models"] if one["role"] == role]


def test_a_run_gives_its_student_and_its_teacher(tmp_path: Path) -> None:
    facts = facts_of(distilled(tmp_path / "run", TEACHER))
    (teacher,), (student,) = by_role(facts, "teacher"), by_role(facts, "student")
    assert (teacher["name"], teacher["gmac_of_128"]) == ("teacher", 1.5)
    assert student["heldout_loss_after"] == 0.25 and student["parameters"] == 1_234_567
    assert "scores" not in student and "speed" not in student


def test_fine_tuning_belongs_to_the_student_and_is_held_against_the_teachers(
    tmp_path: Path,
) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    student = tuned(tmp_path / "s", str(run / "export" / "student"), 0.8, 0.72)
    teacher = tuned(tmp_path / "t", TEACHER, 0.9)
    facts = facts_of(run, student, teacher)
    assert len(facts["models"]) == 2
    score = by_role(facts, "student")[0]["scores"]["sst2"]
    assert (score["mean"], score["seeds"], score["learning_rate"]) == (0.8, 2, 1e-5)
    assert score["share_of_teacher"] == pytest.approx(0.8 / 0.9)
    assert "share_of_teacher" not in by_role(facts, "teacher")[0]["scores"]["sst2"]


def test_curves_of_fine_tuning_are_of_the_score_that_decides(tmp_path: Path) -> None:
    folder = tuned(tmp_path / "ner", TEACHER, 0.9)
    results = json.loads((folder / "results.json").read_text())
    results["metric"] = "chunk_f1"
    for cell in results["cells"]:
        for record in cell["epochs"]:
            record["scores"] = {"accuracy": 0.97, "chunk_f1": 0.1 * record["epoch"]}
        cell["scores"] = cell["epochs"][-1]["scores"]
    (folder / "results.json").write_text(json.dumps(results))
    (run,) = facts_of(folder)["runs"]
    assert run["epochs"][0]["points"] == [[1, 0.1], [2, 0.2]]


def test_a_plain_student_is_one_where_its_own_run_is_not_shown(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    student, teacher = str(run / "export" / "student"), tuned(tmp_path / "t", TEACHER, 0.9)
    tuned(tmp_path / "s", student, 0.8)
    told = evaluation("s", str(tmp_path / "s" / "export"), model_type="bert")
    (tmp_path / "s" / "evaluation.json").write_text(json.dumps(told))
    (found,) = by_role(facts_of(tmp_path / "s", teacher), "student")
    assert found["scores"]["sst2"]["share_of_teacher"] == pytest.approx(0.8 / 0.9)


def test_a_link_to_a_model_is_the_model(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    (tmp_path / "link").symlink_to(run)
    score = tuned(tmp_path / "s", str(tmp_path / "link" / "export" / "student"), 0.8)
    (student,) = by_role(facts_of(run, score), "student")
    assert student["scores"]["sst2"]["mean"] == 0.8


def test_a_mean_over_seeds_goes_before_the_evaluation_of_the_best_one(tmp_path: Path) -> None:
    folder = tuned(tmp_path / "t", TEACHER, 0.9)
    scores = {"task": "sst2", "metric": "accuracy", "split": "dev", "samples": 50}
    told = evaluation("t", TEACHER, task_scores={**scores, "scores": {"accuracy": 0.91}})
    (folder / "evaluation.json").write_text(json.dumps(told))
    score = facts_of(folder)["models"][0]["scores"]["sst2"]
    assert (score["mean"], score["seeds"]) == (0.9, 2)


def test_a_student_whose_teacher_is_not_known_is_told(tmp_path: Path) -> None:
    student = distilled(tmp_path / "run", TEACHER) / "export" / "student"
    folders = [tuned(tmp_path / "s", str(student), 0.8)]
    folders += [tuned(tmp_path / name, f"some/{name}", 0.9) for name in ("one", "other")]
    assert any(
        "which teacher student had is not known" in one for one in facts_of(*folders)["notes"]
    )


def test_another_task_has_no_share(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    student = tuned(tmp_path / "s", str(run / "export" / "student"), 0.8)
    teacher = tuned(tmp_path / "t", TEACHER, 0.9, task="rte")
    score = by_role(facts_of(run, student, teacher), "student")[0]["scores"]["sst2"]
    assert "share_of_teacher" not in score


@pytest.mark.parametrize("mean", [0.0, -0.02])
def test_of_a_teacher_that_scores_nothing_there_is_no_share(tmp_path: Path, mean: float) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    student = tuned(tmp_path / "s", str(run / "export" / "student"), -0.01)
    facts = facts_of(run, student, tuned(tmp_path / "t", TEACHER, mean))
    assert "share_of_teacher" not in by_role(facts, "student")[0]["scores"]["sst2"]
    assert "sst2: teacher has no score above 0, so nobody's share of it is told." in facts["notes"]
    assert not any("is not known" in note for note in facts["notes"])


def test_a_student_of_an_assistant_is_held_against_the_first_teacher(tmp_path: Path) -> None:
    first = distilled(tmp_path / "assistant", TEACHER)
    second = distilled(tmp_path / "last", str(first / "export" / "student"))
    scores = [
        tuned(tmp_path / "t", TEACHER, 0.9),
        tuned(tmp_path / "a", str(first / "export" / "student"), 0.85),
        tuned(tmp_path / "s", str(second / "export" / "student"), 0.8),
    ]
    facts = facts_of(first, second, *scores)
    last = next(one for one in facts["models"] if one["name"].startswith("last"))
    assert last["scores"]["sst2"]["held_against"] == "teacher"
    assert last["scores"]["sst2"]["share_of_teacher"] == pytest.approx(0.8 / 0.9)
    assert len(by_role(facts, "teacher")) == 1


def test_a_model_distilled_on_a_task_is_held_against_that_teacher(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    teacher = tuned(tmp_path / "t", "another/teacher", 0.95)
    model = str(run / "export" / "student")
    student = tuned(tmp_path / "s", model, 0.8, teacher=str(teacher / "export"))
    score = by_role(facts_of(run, teacher, student), "student")[0]["scores"]["sst2"]
    assert score["share_of_teacher"] == pytest.approx(0.8 / 0.95)


def test_an_evaluation_belongs_to_its_student(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    model = str(run / "export" / "student")
    (run / "evaluation.json").write_text(json.dumps(evaluation("student", model)))
    facts = facts_of(run)
    assert len(facts["models"]) == 2
    assert by_role(facts, "student")[0]["gmac_of_mean_length"] == 0.125


def test_an_evaluation_of_a_teacher_belongs_to_the_teacher(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    told = evaluation("model", TEACHER, model_type="bert")
    (tmp_path / "teacher.json").write_text(json.dumps(told))
    facts = facts_of(run, tmp_path / "teacher.json")
    assert len(facts["models"]) == 2
    assert by_role(facts, "teacher")[0]["parameters"] == 1_234_567


def test_different_teachers_are_said(tmp_path: Path) -> None:
    facts = facts_of(distilled(tmp_path / "a", TEACHER), distilled(tmp_path / "b", "other/one"))
    assert any("different teachers (one, teacher)" in note for note in facts["notes"])


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    notes = " ".join(facts_of(distilled(tmp_path / "run", TEACHER))["notes"])
    for words in ("No task scores", "No latency", "No relation loss by relation"):
        assert words in notes


def test_training_time_leaves_pauses_out(tmp_path: Path) -> None:
    (run,) = facts_of(distilled(tmp_path / "run", TEACHER))["runs"]
    # Two records of 10 steps of 4 × 2 × 2 sequences at 8 a second.
    assert run["seconds"] == pytest.approx(40.0)


def test_an_unfinished_run_shows_its_curves(tmp_path: Path) -> None:
    folder = distilled(tmp_path / "run", TEACHER)
    (folder / "summary.json").unlink()
    facts = facts_of(folder)
    assert facts["runs"][0]["curves"][0]["training"] == [[10, 0.09], [20, 0.045]]
    assert facts["models"] == []
    assert any("Not finished yet" in note for note in facts["notes"])


def test_expert_blocks_are_named_by_layer_and_kind(tmp_path: Path) -> None:
    (run,) = facts_of(distilled(tmp_path / "run", TEACHER))["runs"]
    names = [block["block"] for block in run["experts"]["student"]]
    assert names == ["layer 1 feed-forward", "layer 2 feed-forward"]


def test_facts_are_json(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", TEACHER, "one", "two")
    facts = facts_of(run, tuned(tmp_path / "s", str(run / "export" / "one"), 0.8))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_a_loss_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    summary = json.loads((run / "summary.json").read_text())
    summary["students"]["student"]["heldout_loss_after"] = float("nan")
    (run / "summary.json").write_text(json.dumps(summary))
    (student,) = by_role(facts_of(run), "student")
    assert "heldout_loss_after" not in student and "heldout_loss_before" in student


def test_what_was_wrong_is_told_below_the_curve_and_marked_on_it(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    dead = {"step": 20, "health": "dead_expert", "since": 11, "student": "student", "layer": 1}
    dead |= {"block": "feed-forward", "expert": 2, "value": 0.0, "limit": 0.005}
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps(dead) + "\n")
    facts = facts_of(run)
    told = "student: layer 1 feed-forward expert 2 gets 0 % of the tokens (dead below 0.5 %)"
    assert facts["runs"][0]["health"][0]["told"] == f"{told}, since step 11"
    (curves,) = (one for one in sections(facts) if one.title == "Training curves")
    (picture,) = curves.pictures
    assert picture.note == f"{told}, since step 11."
    marks = picture.header.index("something was wrong from here")
    assert [row[0] for row in picture.rows if row[marks]] == ["20"]


def test_starts_of_a_run_are_drawn_with_their_ends(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    lines = []
    for number, (reason, step) in enumerate(
        [("failed: rank 1 has died on n2: …", 7), ("finished", 30)]
    ):
        common = {"id": f"a{number}"}
        lines += [
            {
                **common,
                "event": "launch",
                "world_size": 2,
                "host": "n1",
                "time": f"2026-01-01T0{number}:00:00+00:00",
            },
            {**common, "event": "hosts", "hosts": ["n1", "n2"]},
            {
                **common,
                "event": "leave",
                "reason": reason,
                "step": step,
                "time": f"2026-01-01T0{number}:01:30+00:00",
            },
        ]
    (run / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    assert not any(one.title.startswith("Starts") for one in sections(facts_of(run)))  # one alone
    (run / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = facts_of(run)
    assert facts["runs"][0]["starts"][0] == {
        "time": "2026-01-01T00:00:00+00:00",
        "hosts": ["n1", "n2"],
        "world_size": 2,
        "seconds": 90.0,
        "end": "failed: rank 1 has died on n2: …",
        "step": 7,
    }
    (section,) = (one for one in sections(facts) if one.title == "Starts and how they ended")
    svg = section.pictures[0].svg
    assert "1: 2 ranks on 2 hosts" in svg and "90 s, failed at step 7" in svg
    assert "90 s, finished at step 30" in svg
