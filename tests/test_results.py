"""The results' page shows the numbers that lie beside it."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from minimoe_dist.data.tasks import Table, open_table, open_task

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text("utf-8")


def benchmark(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


@pytest.fixture
def study_page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark(monkeypatch, "study_page")


@pytest.fixture
def study_tasks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark(monkeypatch, "study_tasks")


@pytest.fixture
def study_chinese(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark(monkeypatch, "study_chinese")


def test_the_table_of_students_is_that_of_the_numbers(study_page) -> None:
    numbers = json.loads((ROOT / "docs" / "results" / "distillation.json").read_text("utf-8"))
    assert study_page.table(numbers) in PAGE


def test_a_student_is_held_against_the_plain_one_of_its_size_seed_and_stage(study_page) -> None:
    def student(run: str, words: str, loss: float, seed: int = 1) -> dict[str, object]:
        return {"run": run, "seed": seed, "student": words, "heldout_loss": loss}

    other = student("seed_1/longer", "MiniMoE 3L;8H 1,4E", 0.3)
    results = {
        "students": [
            student("seed_1/ladder", "MiniLM 3L;8H", 0.5),
            student("seed_2/longer", "MiniLM 3L;8H", 0.6, seed=2),
            student("seed_1/longer", "MiniLM 3L;8H", 0.4),
            student("seed_1/longer", "MiniLM 4L;8H", 0.35),
            other,
        ]
    }
    assert study_page.against_plain(other, results) == pytest.approx(-0.25)
    assert study_page.against_plain(results["students"][0], results) is None


def test_the_table_of_tasks_is_that_of_the_numbers(study_tasks) -> None:
    numbers = json.loads((ROOT / "docs" / "results" / "tasks.json").read_text("utf-8"))
    assert study_tasks.table(numbers) in PAGE


def test_the_table_of_chinese_files_is_that_of_the_numbers(study_chinese) -> None:
    numbers = json.loads((ROOT / "docs" / "results" / "chinese.json").read_text("utf-8"))
    assert study_chinese.table(numbers) in PAGE


def test_names_become_characters_with_tags(study_chinese) -> None:
    line = "邓/nr  小平/nr  在/p  北京/ns  。/w  中共中央/nt"
    first, second = study_chinese.sentences_of(line)
    assert list(study_chinese.columns(first, study_chinese.bio)) == [
        "邓\tB-PER", "小\tI-PER", "平\tI-PER", "在\tO", "北\tB-LOC", "京\tI-LOC", "。\tO",
    ]  # fmt: skip
    assert list(study_chinese.columns(second, study_chinese.bmes)) == [
        "中\tB-ORG", "共\tM-ORG", "中\tM-ORG", "央\tE-ORG",
    ]  # fmt: skip


def test_cut_files_are_read_as_tasks(study_chinese, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(study_chinese, "TRAINED", 6)
    monkeypatch.setattr(study_chinese, "SCORED", 2)
    for name in ("neg", "pos"):
        path = tmp_path / "sentiment" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f'{name}，"{n}"\n' for n in range(4)), "utf-8")
    (tmp_path / "tag").mkdir()
    (tmp_path / "tag" / "199801.txt").write_text("上海/ns  好/a  。/w\n" * 8, "utf-8")
    study_chinese.cut_files(tmp_path, tmp_path / "out")
    table = Table(str(tmp_path / "out" / "reviews"), ("review",), "sentiment")
    assert len(open_table(table, "train")) == 6
    assert open_table(table, "dev").task.labels == ("negative", "positive")
    names = open_task("ner", tmp_path / "out" / "names_bmes", "dev")
    assert names.texts == [tuple("上海好。")] * 2
