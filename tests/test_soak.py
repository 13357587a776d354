"""The decisions of the long trial of reliability, and the page that it wrote."""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import __main__ as command
from benchmarks.soak import page, refusals
from benchmarks.soak.bad_inputs import BAD_INPUTS
from benchmarks.soak.clock import Clock
from benchmarks.soak.endurance import recorded_waits
from benchmarks.soak.fuzz import read_report
from benchmarks.soak.goals import (
    INPUTS,
    break_even,
    growth,
    is_missed,
    refusal_problem,
    rows,
)
from benchmarks.soak.ranks import cpu_count
from benchmarks.soak.refusals import run
from benchmarks.soak.shop import broken_checkpoints, last_step, lost_and_doubled, resumed_at

ROOT = Path(__file__).parents[1]
GOOD: dict[str, Any] = {
    "kills": {
        "others_gone": [0.1, 1.9],
        "others_gone_at_start": [0.1, 1.9],
        "repeated_after_signal": [0, 0],
        "repeated_after_crash": [3, 10],
        "save_interval": 10,
        "kinds": {"in a step": 150, "in a save": 50},
        "lives": 20,
        "differing": 0,
        "lost": 0,
        "doubled": 0,
    },
    "stopped": {"timeout": 4, "seconds": [4.5, 8.9], "named": 2},
    "starts": {"clean": [10.0, 12.0], "restart": [11.0, 14.9]},
    "corpora": {"kills": 9, "lives": 2, "differing": 0, "early_names": 0},
    "layouts": {"changes": [{"to": "one rank", "difference": 9e-7}]},
    "saves": {"waits": [0.01], "writes": [0.2], "step": 0.05, "megabytes": 90},
    "useful": {
        "cycles": 2, "useful": 400.0, "wall": 440.0, "restart": 14.0, "repeated": 2.0,
        "between": 100, "step": 2.0, "step_of_goal": 2.0,
    },
    "endurance": {
        "steps": 10_000, "saves": 200,
        "ranks": [{"memory": 0.009, "descriptors": 0, "threads": 0}] * 2,
    },
    "inputs": {"inputs": [{"name": "a", "command": "distill", "problem": "", "seconds": 1.0}]},
    "fuzz": {"cases": 100, "faults": []},
}  # fmt: skip


def verdicts(results: dict[str, Any]) -> list[str]:
    return [row.verdict for row in rows(results)]


def test_every_goal_may_be_met() -> None:
    assert set(verdicts(GOOD)) == {"met"}
    assert not is_missed(GOOD)


def test_what_was_not_tried_is_neither_met_nor_missed() -> None:
    assert set(verdicts({})) == {"not tried"}
    assert len(rows({})) == len(rows(GOOD))
    assert not is_missed({})


@pytest.mark.parametrize(
    ("trial", "changes"),
    [
        ("kills", {"others_gone": [0.1, 2.1]}),
        ("kills", {"others_gone_at_start": [2.1]}),
        ("kills", {"repeated_after_signal": [0, 1]}),
        ("kills", {"repeated_after_crash": [11]}),
        ("kills", {"lost": 1}),
        ("kills", {"doubled": 1}),
        ("kills", {"differing": 1}),
        ("stopped", {"seconds": [4.5, 9.1]}),
        ("stopped", {"named": 1}),
        ("starts", {"restart": [15.1]}),
        ("starts", {"clean": [3.0]}),
        ("corpora", {"differing": 1}),
        ("corpora", {"early_names": 1}),
        ("corpora", {"left_behind": 1}),
        ("layouts", {"changes": [{"to": "one rank", "difference": 2e-6}]}),
        ("layouts", {"changes": [{"to": "one rank", "difference": float("inf")}]}),
        ("saves", {"waits": [0.03]}),
        ("useful", {"wall": 450.0}),
        ("endurance", {"ranks": [{"memory": 0.011, "descriptors": 0, "threads": 0}]}),
        ("endurance", {"ranks": [{"memory": 0.0, "descriptors": 1, "threads": 0}]}),
        ("endurance", {"ranks": [{"memory": 0.0, "descriptors": 0, "threads": 1}]}),
        ("inputs", {"inputs": [{**GOOD["inputs"]["inputs"][0], "problem": "status 1"}]}),
        ("fuzz", {"faults": ["recipe"]}),
    ],
)
def test_each_goal_may_be_missed_alone(trial: str, changes: dict[str, Any]) -> None:
    results = {**GOOD, trial: {**GOOD[trial], **changes}}
    assert verdicts(results).count("missed") == 1
    assert is_missed(results)


def test_saves_cost_more_of_the_wall_the_shorter_the_steps() -> None:
    results = {"saves": {**GOOD["saves"], "step": 1e-4, "writes": [1.0]}}
    assert verdicts(results).count("missed") == 1


@pytest.mark.parametrize(
    ("status", "said", "seconds", "problem"),
    [
        (2, "x: --layer: give one\n", 1.0, ""),
        (None, "", 30.0, "still running"),
        (0, "done --layer\n", 1.0, "status 0"),
        (1, "x: --layer\n", 1.0, "status 1"),
        (2, "Traceback: --layer\n", 1.0, "a traceback"),
        (2, "--layer\n--layer\n", 1.0, "2 lines"),
        (2, "x: wrong\n", 1.0, "does not say '--layer'"),
        (2, "x: --layer\n", 5.1, "took 5.1 s"),
    ],
)
def test_a_refusal_is_one_line_that_names_what_is_wrong_in_seconds(
    status: int | None, said: str, seconds: float, problem: str
) -> None:
    assert refusal_problem(status, said, "--layer", seconds) == problem


def test_the_step_from_which_on_enough_time_is_useful() -> None:
    step = break_even(restart=15.0, repeated=2.5, between=100)
    assert step is not None
    assert 100 * step / (100 * step + 15.0 + 2.5 * step) == pytest.approx(0.9)
    assert break_even(restart=15.0, repeated=12.0, between=100) is None


def test_steps_that_are_too_short_say_nothing_of_useful_time() -> None:
    useful = {**GOOD["useful"], "step": 0.5, "useful": 100.0, "wall": 140.0}
    assert "too short to say" in verdicts({"useful": useful})
    assert not is_missed({"useful": useful})
    assert "met" in verdicts({"useful": {**useful, "wall": 101.0}})


def test_growth_leaves_the_warm_up_out() -> None:
    assert growth([1, 50, *[100] * 18]) == 0
    assert growth([10] * 10 + [100] * 80 + [103] * 10) == pytest.approx(0.03)


def test_bad_inputs_are_many_and_different() -> None:
    names = [bad.name for bad in BAD_INPUTS]
    assert len(names) == len(set(names)) >= INPUTS


def test_a_command_that_is_refused_says_so_in_one_line(tmp_path: Path) -> None:
    status, said, _ = run(["-m", "minimoe_dist", "distil"], tmp_path / "said")
    assert refusal_problem(status, said, "did you mean distill?", 0.0) == ""


def test_a_command_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "PATIENCE", 0.5)
    status, _, _ = run(["-c", "import time; time.sleep(60)"], tmp_path / "said")
    assert status is None


def records(folder: Path, *steps: int, tail: str = "") -> Path:
    lines = [json.dumps({"step": step, "students": {"student": step}}) + "\n" for step in steps]
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(lines) + tail)
    return folder


def test_the_last_step_is_that_of_a_whole_line(tmp_path: Path) -> None:
    assert last_step(tmp_path / "none") == 0
    assert last_step(records(tmp_path / "run", 1, 2, tail='{"step": 3')) == 2


def test_lost_and_doubled_steps_are_counted(tmp_path: Path) -> None:
    unbroken = records(tmp_path / "unbroken", 1, 2, 3)
    assert lost_and_doubled(records(tmp_path / "same", 1, 2, 3), unbroken) == (0, 0)
    assert lost_and_doubled(records(tmp_path / "run", 1, 2, 2), unbroken) == (1, 1)


def test_checkpoints_are_looked_at_by_their_hashes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step_00000010"
    folder.mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000020.partial").mkdir()
    (folder / "piece").write_bytes(b"whole")
    digest = "a2a3c20d8f0ddcd4cf2a1ecea4e3a0e4c9e95dcbd2a9d2b0d7ed4b9fd0c2f4ad"
    manifest = {"files": {"piece": {"sha256": digest}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert broken_checkpoints(tmp_path) == ["step_00000010"]


def test_what_a_run_says_of_its_saves_is_told(tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    summary.write_text("{}")
    assert recorded_waits(tmp_path) == []
    saving = {"saves": 4, "waited_seconds": 0.2, "writing_seconds": 3.0}
    summary.write_text(json.dumps({"saving": saving}))
    assert recorded_waits(tmp_path) == [0.05]
    told = rows({"saves": {**GOOD["saves"], "recorded": [0.05]}})
    assert any(row.measured.startswith("50 ms of ") for row in told)


def test_a_start_says_where_it_went_on() -> None:
    assert resumed_at("INFO resumed from /run/checkpoints/step_00000020 at step 20\n") == 20
    assert resumed_at("step 1/30\n") == 0


def test_fuzz_reports_are_summed() -> None:
    formats = {
        "manifest": {"files": 7, "read": 1, "refused": 6, "faults": 0},
        "recipe": {"files": 3, "read": 0, "refused": 2, "faults": 1, "fault": "too deep"},
    }
    found = read_report({"seed": 1, "formats": formats})
    assert found == {"cases": 10, "faults": ["recipe: too deep"]}


def options(folder: Path, **changes: Any) -> argparse.Namespace:
    given = {"minutes": 1.0, "seed": 1, "only": ["one", "two"], **changes}
    return argparse.Namespace(folder=folder, **given)


def test_a_trial_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, float]] = []

    def trial(name: str) -> Any:
        def try_it(workshop: object, clock: Clock, chooser: random.Random) -> dict[str, Any]:
            done.append((name, clock.seconds))
            if len(done) == 2:
                raise AssertionError("not yet")
            return {"drawn": chooser.random()}

        return try_it

    trials = {name: (trial(name), 0.5, "things") for name in ("one", "two", "three")}
    monkeypatch.setattr(command, "TRIALS", trials)
    monkeypatch.setattr(command, "make_workshop", lambda folder: None)
    monkeypatch.setattr(command, "preload", lambda: None)
    first = command.run_trials(options(tmp_path), tmp_path)
    assert first["two"]["faults"] == ["the trial ended early: not yet"]
    both = command.run_trials(options(tmp_path, only=["one", "three"]), tmp_path)
    assert [name for name, _ in done] == ["one", "two", "three"]
    assert both["one"] == first["one"]
    # What the first one left is the second one's.
    assert done[0][1] == pytest.approx(30, abs=1) and done[1][1] > 50
    other = command.run_trials(options(tmp_path, seed=2, only=["one"]), tmp_path)
    assert other["one"]["drawn"] != first["one"]["drawn"] and "three" not in other


def test_the_page_shows_the_numbers_beside_it() -> None:
    numbers = json.loads((ROOT / "docs" / page.NUMBERS).read_text("utf-8"))
    assert (ROOT / "docs" / page.PAGE).read_text("utf-8") == page.text(numbers)


def test_a_page_can_be_written_of_nothing_tried(tmp_path: Path) -> None:
    facts = {name: "x" for name in ("date", "revision", "seed", "machine", "python", "torch")}
    facts |= {
        "deepspeed": "x",
        "cores": cpu_count(),
        "load": 0.0,
        "minutes": 3.0,
        "load_after": 0.0,
    }
    written = page.write({"facts": facts}, tmp_path)
    assert "not tried" in written.read_text()
    assert (tmp_path / page.PICTURE).read_bytes().startswith(b"\x89PNG")
