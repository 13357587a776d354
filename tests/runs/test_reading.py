"""Files of a run that are damaged, foreign or of another version."""

import os
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.errors import UserError
from minimoe_dist.runs.metrics import SavedMetrics
from minimoe_dist.runs.reading import Record
from minimoe_dist.runs.summaries import StudentSummary, Summary


class Cake(Record):
    layers: int
    cream: float | None = None


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        Cake.read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert Cake.find(path) is None
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", ":1: not JSON"),
        (b'{"layers": 1,\n"cream" 2}', ":2: not JSON"),
        (b"[1]", ":1: not a JSON object"),
        (b'{"cream": 1}', "layers: is missing"),
        (b'{"layers": "many"}', "layers: Input should be a valid integer"),
        (b'{"layers": 1, "cream": []}', "cream: Input should be a valid number"),
        (b'{"layers": "\xff"}', "not UTF-8 text (byte 12)"),
        (b'{"layers": ' + b"1" * 5000 + b"}", "not JSON (Exceeds the limit"),
        (b'{"layers": ' + b"1" * 400 + b"}", "not JSON (a number of 400 digits)"),
        (b'{"layers": ' + b"[" * 100_000, "not JSON"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(
    content: bytes, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "cake.json"
    path.write_bytes(content)
    assert told in refusal(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cake.json")
    assert "is no file" in refusal(tmp_path / "cake.json")
    assert not SavedMetrics.find(tmp_path / "cake.json")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    assert "not there" in refusal(tmp_path / "nothing")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    assert "a link to nothing" in refusal(tmp_path / "dangling")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic links" in refusal(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    assert "Is a directory" in refusal(tmp_path / "folder")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    cake = Cake(layers=3, cream=float("nan"))
    cake.write(tmp_path / "cake.json")
    assert repr(Cake.read(tmp_path / "cake.json")) == repr(cake)


def test_what_is_not_given_is_not_written(tmp_path: Path) -> None:
    assert Cake(layers=3).as_json() == {"layers": 3}
    assert Cake(layers=3, cream=None).as_json() == {"layers": 3, "cream": None}


@pytest.mark.parametrize("values", [{"layers": 3}, {"layers": 3, "candles": 40}])
def test_files_of_earlier_and_later_versions_are_read(values: dict[str, Any]) -> None:
    assert Cake.of(values, "") == Cake(layers=3)


def test_options_stay_as_they_are_and_are_typed_where_they_are_read() -> None:
    options = {"seed": 3, "students": [{"name": "s", "moe": "1,4", "new": {}}], "later": [1]}
    summary = Summary.of({"students": {"s": {}}, "options": options}, "")
    assert summary.students == {"s": StudentSummary()}
    assert (summary.options.seed, summary.options.students[0].moe) == (3, "1,4")
    assert summary.as_json()["options"] == options


def test_an_option_of_the_wrong_kind_is_named_by_its_path() -> None:
    values = {"students": {}, "options": {"training": {"learning_rate": "fast"}}}
    with pytest.raises(UserError, match=r"options\.training\.learning_rate: Input should be"):
        Summary.of(values, "summary.json")
