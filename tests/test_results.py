"""The results' page shows the numbers that lie beside it."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

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
