"""The page: complete in itself, readable in a real browser, silent on what is not known."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.cli import main
from minimoe_dist.commands.report import _Watch
from minimoe_dist.runs import launches
from minimoe_dist.slurm.reports import RunReport
from tests.reporting import browser
from tests.reporting.folders import distilled, evaluation, tuned

TEACHER = "some/teacher"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two runs of several students, their fine-tunings, evaluations, and their teacher's."""
    folder = tmp_path_factory.mktemp("runs")
    tuned(folder / "teacher_sst2", TEACHER, 0.9)
    for run, students in (("first", ("dense", "moe")), ("second", ("one_with_a_long_name",))):
        distilled(folder / run, TEACHER, *students)
        for student in students:
            model = str(folder / run / "export" / student)
            tuned(folder / f"{run}_{student}", model, 0.8, 0.85)
            told = json.dumps(evaluation(student, model))
            (folder / run / f"evaluation_{student}.json").write_text(told)
    told = evaluation("teacher", TEACHER, model_type="bert")
    (folder / "teacher.json").write_text(json.dumps(told))
    target = folder / "out" / "page.html"
    command = ["report", str(folder), str(folder / "teacher.json"), "--output", str(target)]
    assert main([*command, "--title", "Students & <teachers>"]) == 0
    return target


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run that was neither evaluated nor fine-tuned."""
    folder = tmp_path_factory.mktemp("bare")
    distilled(folder / "run", TEACHER)
    assert main(["report", str(folder / "run"), "--output", str(folder / "page.html")]) == 0
    return (folder / "page.html").read_text("utf-8")


def test_nothing_is_fetched(page: Path) -> None:
    text = page.read_text("utf-8")
    assert not re.findall(r"https?:|//\w|@import|url\(|<script|<link|<img|<iframe", text)


def test_it_is_small(page: Path) -> None:
    assert page.stat().st_size < 500_000


def test_the_title_is_escaped(page: Path) -> None:
    assert "<h1>Students &amp; &lt;teachers&gt;</h1>" in page.read_text("utf-8")


class Elements(HTMLParser):
    """Counts start tags and collects the attributes of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.pictures: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag == "svg":
            self.pictures.append(dict(attributes))


def test_every_picture_has_words_and_a_table(page: Path) -> None:
    elements = Elements()
    elements.feed(page.read_text("utf-8"))
    assert elements.counts["svg"] > 10
    assert elements.counts["svg"] == elements.counts["table"] == elements.counts["details"]
    assert all(one["role"] == "img" and one["aria-label"] for one in elements.pictures)


@pytest.mark.parametrize(
    "heading",
    [
        "Quality against compute", "Share of the teacher's score kept", "Speed and memory",
        "Training curves", "Tokens of each expert", "Relation loss by relation and head",
        "What each run cost",
    ],
)  # fmt: skip
def test_all_sections_are_there(heading: str, page: Path) -> None:
    assert heading in page.read_text("utf-8").replace("&#39;", "'")


def test_the_json_beside_it_has_the_same_models(page: Path) -> None:
    facts = json.loads(page.with_suffix(".json").read_text())
    text = page.read_text("utf-8")
    assert len(facts["models"]) == 4
    assert all(f"<h3>{model['name']}</h3>" in text for model in facts["models"])


@pytest.mark.parametrize(
    "heading", ["Quality against compute", "Share of", "Speed", "Relation loss by relation and"]
)
def test_what_is_missing_is_a_sentence_and_no_empty_picture(heading: str, bare: str) -> None:
    assert f">{heading}" not in bare
    assert "No latency, throughput or memory: nothing was evaluated" in bare
    assert "NaN" not in bare and "None" not in bare


def test_losses_of_other_makings_share_no_picture(tmp_path: Path) -> None:
    for run, teacher in (("first", "/models/a/large"), ("second", "/models/b/large")):
        distilled(tmp_path / run, teacher, "one", "other")
    distilled(tmp_path / "third", "/models/b/large", "one", "other")
    path = tmp_path / "third" / "summary.json"
    summary = json.loads(path.read_text())
    summary["options"] |= {
        "objective": {"num_relation_heads": 8, "relation_weight": 0.5, "mlm_weight": 1.0},
        "data": {"heldout_path_or_regex": [{"path": "/corpora/news"}]},
    }
    path.write_text(json.dumps(summary))
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 0
    text = unescape((tmp_path / "page.html").read_text("utf-8"))
    for teacher in ("/models/a/large", "/models/b/large"):
        assert f"Held-out loss: relations to {teacher}<" in text
    made = "0.5 × relations of 8 heads to /models/b/large + 1 × masked LM, on /corpora/news"
    assert f"Held-out loss: {made}<" in text and f"Of {made}, after training" in text
    assert "different teachers (/models/a/large, /models/b/large)" in text


def test_output_must_be_html(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distilled(tmp_path / "run", TEACHER)
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page.pdf")]) == 2
    assert "no .html file" in capsys.readouterr().err


def test_unreadable_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    (run / "summary.json").write_text("{")
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 2
    said = capsys.readouterr().err
    assert "summary.json:1: not JSON" in said and said.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


@pytest.mark.skipif(browser.FOUND is None, reason=browser.NEEDED)
@pytest.mark.parametrize(("width", "dark"), [(400, True), (820, False), (1400, False)])
def test_a_browser_shows_it_without_overlap(
    width: int, dark: bool, page: Path, tmp_path: Path
) -> None:
    found = browser.look(page, width, dark=dark, scratch=tmp_path)
    assert found["width"] == width
    assert found["content"] <= width, "scrolls sideways"
    assert found["problems"] == []
    assert found["smallest"] >= 9.0  # pixels
    light = [sum(map(int, re.findall(r"\d+", found[one])[:3])) for one in ("page", "ink")]
    assert (light[0] < light[1]) == dark


def test_a_watched_page_follows_a_run_to_its_end(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", TEACHER)
    summary, lines = run / "summary.json", (run / "metrics.jsonl").read_text().splitlines(True)
    aside = summary.rename(tmp_path / "aside")
    (run / "metrics.jsonl").unlink()
    (run / "starts.jsonl").write_text("")
    page = tmp_path / "page.html"
    command = ["report", str(run), "--output", str(page), "--watch", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "minimoe_dist", *command], stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: process.poll() is not None or page.exists(), seconds=3, fails=False)
        assert process.poll() is None and not page.exists()  # there is nothing to show yet
        (run / "metrics.jsonl").write_text("".join(lines[:2]))
        wait_for(page.exists)
        text = page.read_text("utf-8")
        assert '<meta http-equiv="refresh" content="1">' in text
        assert re.search(r'<p class="state">run: not running, step \d+', text)
        (run / "metrics.jsonl").write_text("".join(lines))
        aside.rename(summary)
        assert process.wait(60) == 0
        said = process.stderr.read()
    assert "not yet: " in said and "all runs are over" in said
    text = page.read_text("utf-8")
    assert "refresh" not in text and 'class="state"' not in text


def wait_for(is_so: Callable[[], bool], seconds: float = 60, fails: bool = True) -> None:
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert is_so() or not fails


def test_a_watched_run_must_have_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", str(tmp_path / "none"), "--output", str(tmp_path / "p.html")]
    assert main([*words, "--watch", "5"]) == 2
    assert "no such folder" in capsys.readouterr().err


def state_of(folder: Path, **fields: Any) -> RunReport:
    values: dict[str, Any] = dict.fromkeys(RunReport.__dataclass_fields__)
    return RunReport(**values | {"folder": str(folder), "starts": ["once"]} | fields)


def test_a_watch_ends_where_nothing_more_can_come(tmp_path: Path) -> None:
    paths, watch = [str(tmp_path)], _Watch()
    done, dead = state_of(tmp_path, state="finished"), state_of(tmp_path, state="not running")
    assert watch.is_over(paths, [done], 0.0)
    assert not watch.is_over(paths, [state_of(tmp_path, state="running")], 0.0)
    assert not watch.is_over(paths, [state_of(tmp_path, state="not running", starts=[])], 1e9)
    assert not watch.is_over(paths, [done, dead], 0.0)
    assert not watch.is_over(paths, [done, dead], 60.0)
    assert watch.is_over(paths, [done, dead], 300.0)
    assert not watch.is_over(paths, [state_of(tmp_path, state="running")], 301.0)  # again
    assert not watch.is_over(paths, [dead], 302.0)
    assert watch.is_over([], [], 0.0)  # evaluations alone


def test_a_watch_waits_for_the_next_stage_of_a_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINIMOE_LAUNCH", raising=False)
    stage = state_of(tmp_path / "first", state="finished")
    launches.begin(tmp_path, world_size=1, command=[], host="here")
    assert not _Watch().is_over([str(tmp_path)], [stage], 0.0)
    launches.leave("finished", 0)
    assert _Watch().is_over([str(tmp_path)], [stage], 0.0)
