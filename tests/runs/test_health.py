"""Lines of what was wrong with a run, joined to conditions with a beginning and an end."""

import json
from pathlib import Path

from minimoe_dist.runs.health import HealthRecord, conditions
from minimoe_dist.runs.metrics import SavedMetrics, drop_after

DEAD = {
    "health": "dead_expert", "student": "s", "layer": 2, "block": "feed-forward", "expert": 3,
    "value": 0.0, "limit": 0.0025,
}  # fmt: skip
BEGAN = {**DEAD, "step": 40, "since": 21}
OVER = {**DEAD, "step": 80, "since": 21, "is_over": True, "value": 0.1}
OTHER = {**DEAD, "step": 60, "since": 41, "expert": 4}


def read(path: Path, *lines: dict[str, object]) -> list[str]:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [condition.describe() for condition in conditions(SavedMetrics.read(path).health)]


def test_a_condition_has_a_beginning_and_an_end(tmp_path: Path) -> None:
    words = "s: layer 2 feed-forward expert {} gets 0 % of the tokens (dead below 0.25 %), {}"
    assert read(tmp_path / "metrics", BEGAN, OTHER, OVER) == [
        words.format(3, "from step 21, over at step 80"),
        words.format(4, "since step 41"),
    ]


def test_what_comes_again_is_a_condition_of_its_own(tmp_path: Path) -> None:
    assert len(read(tmp_path / "metrics", BEGAN, OVER, {**BEGAN, "step": 120, "since": 101})) == 2


def test_what_a_resumed_run_finds_again_is_the_same_condition(tmp_path: Path) -> None:
    found = read(tmp_path / "metrics", BEGAN, {**BEGAN, "step": 70, "since": 51}, OVER)
    assert len(found) == 1 and "from step 21, over at step 80" in found[0]


def test_a_restart_drops_the_conditions_that_it_will_find_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    read(path, BEGAN, OTHER, OVER)
    drop_after(path, 60)
    assert [record.step for record in SavedMetrics.read(path).health] == [40, 60]


def test_a_condition_of_another_version_has_its_name(tmp_path: Path) -> None:
    assert read(
        tmp_path / "metrics", {"step": 3, "health": "sloth", "since": 2, "student": "s"}
    ) == ["s: sloth, since step 2"]


def test_only_what_is_known_is_written() -> None:
    record = HealthRecord.model_validate(BEGAN)
    assert record.as_json() == BEGAN
