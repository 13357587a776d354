"""The results' page shows the numbers that lie beside it."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text("utf-8")


@pytest.fixture
def study_page(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import study_page

    yield study_page
    sys.modules.pop("study_page")


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
