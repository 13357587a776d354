"""Runs are found where they are, and what cannot be read is named with file and line."""

import json
from pathlib import Path

import pytest

from minimoe_dist.reporting.runs import find_export, read_runs
from tests.reporting.folders import distilled, evaluation, record, tuned


def test_a_run_has_what_its_folder_holds(tmp_path: Path) -> None:
    folder = distilled(tmp_path / "run", "some/teacher")
    (folder / "evaluation.json").write_text(json.dumps(evaluation("student", "x")))
    (run,) = read_runs([str(folder)])
    assert (run.name, run.summary.steps, len(run.metrics.trained)) == ("run", 20, 2)
    assert run.evaluations["student"].parameters == 1_234_567


def test_a_folder_of_runs_stands_for_all_of_them(tmp_path: Path) -> None:
    distilled(tmp_path / "chain" / "assistant", "some/teacher")
    distilled(tmp_path / "chain" / "student", "some/teacher")
    tuned(tmp_path / "tuned" / "sst2", "some/teacher", 0.9)
    names = [run.name for run in read_runs([str(tmp_path)])]
    assert names == ["assistant", "student", "sst2"]


def test_a_summary_beside_a_run_is_no_run(tmp_path: Path) -> None:
    distilled(tmp_path / "demo" / "distill", "some/teacher")
    (tmp_path / "demo" / "summary.json").write_text('{"student": "MiniMoE", "export": "x"}')
    (run,) = read_runs([str(tmp_path / "demo")])
    assert run.folder.path == tmp_path / "demo" / "distill"


def test_a_run_named_twice_is_there_once(tmp_path: Path) -> None:
    folder = str(distilled(tmp_path / "run", "some/teacher"))
    assert len(read_runs([folder, folder])) == 1


def test_names_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    for one in ("a", "b"):
        distilled(tmp_path / one / "distill", "some/teacher")
    names = [run.name for run in read_runs([str(tmp_path / "a"), str(tmp_path / "b")])]
    assert names == ["a/distill", "b/distill"]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    folder = distilled(tmp_path / "run", "some/teacher")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record(30, "student"))[:25])
    (run,) = read_runs([str(folder)])
    assert [record.step for record in run.metrics.trained] == [10, 20]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", '{"a": 1,\n"b" 2}', r"summary\.json:2: not JSON"),
        ("summary.json", "[1]", r"summary\.json:1: not a JSON object"),
        ("metrics.jsonl", '{"step": 1}\nnonsense\n{"step": 2}\n', r"metrics\.jsonl:2: not a rec"),
        ("metrics.jsonl", '{"steps": 1}\n', r"metrics\.jsonl:1: not a record"),
        ("results.json", "{", r"results\.json:1: not JSON"),
        ("evaluation.json", "", r"evaluation\.json:1: not JSON"),
    ],
)
def test_unreadable_files_are_named_with_their_line(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    folder = distilled(tmp_path / "run", "some/teacher")
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_runs([str(folder)])
    assert "\n" not in str(caught.value)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the folder of a run"):
        read_runs([str(tmp_path)])


def test_a_missing_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        read_runs(["nowhere"])


def test_a_file_that_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json:1: not an evaluation"):
        read_runs([str(tmp_path / "other.json")])


def test_an_export_knows_its_run(tmp_path: Path) -> None:
    folder = distilled(tmp_path / "run", "some/teacher")
    for source in (folder, folder / "export" / "student", tmp_path):
        export = find_export(str(source))
        assert export.folder.samefile(folder / "export" / "student")
        assert export.run is not None and export.run.summary.steps == 20


def test_a_fine_tuned_export_knows_its_results(tmp_path: Path) -> None:
    export = find_export(str(tuned(tmp_path / "sst2", "some/teacher", 0.9)))
    assert export.folder == tmp_path / "sst2" / "export"
    assert export.run is not None and export.run.results.task == "sst2"


def test_a_folder_of_several_runs_is_no_export(tmp_path: Path) -> None:
    for one in ("a", "b"):
        distilled(tmp_path / one, "some/teacher")
    with pytest.raises(ValueError, match="holds 2 runs with exports: give one run's folder"):
        find_export(str(tmp_path))


def test_a_fine_tuned_export_is_known_by_the_run_above_it(tmp_path: Path) -> None:
    folder = tuned(tmp_path / "run", "some/teacher", 0.9)
    export = find_export(str(folder / "export"))
    of_run = find_export(str(folder))
    assert export.run is not None and of_run.run is not None
    assert export.run.results == of_run.run.results
    assert export.name == find_export(str(folder)).name == "run"
