import json
import warnings

import pytest
from PIL import Image

from minimoe_dist.runs.metrics import SavedMetrics
from minimoe_dist.runs.tuning import TuningResults
from minimoe_dist.train.curves import draw_curves, draw_task_curves


def _record(step: int, students: dict[str, list[list[int]]], loss: float | None):
    return {
        "step": step,
        "students": {
            name: {"relation_loss": loss, "tokens_per_expert": blocks}
            for name, blocks in students.items()
        },
    }


@pytest.mark.parametrize(
    "students", [{"one": [[3, 5], [8, 0]]}, {"one": [[1, 2, 3, 4]], "plain": []}, {}]
)
def test_a_picture_has_a_panel_for_the_losses_and_one_a_student_with_experts(students, tmp_path):
    records = [{"step": 0, "heldout_loss": dict.fromkeys(students, 1.0)}]
    records += [_record(step, students, 1.0 / step) for step in (1, 2)] if students else []
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    draw_curves(SavedMetrics.read(path), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        panels = 1 + sum(bool(blocks) for blocks in students.values())
        assert image.size == (panels * 550, 396)
        assert len(image.getcolors(1 << 20)) > 10


def test_a_loss_that_was_not_finite_leaves_a_gap(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [_record(1, {"one": []}, 1.0), _record(2, {"one": []}, None)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    draw_curves(SavedMetrics.read(path), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_each_sub_model_has_a_line_with_its_size(tmp_path):
    path = tmp_path / "metrics.jsonl"
    losses = {"one": 1.0, "one_2l_32h": 0.9, "one_1l_16h": 1.1}
    records = [{"step": step, "heldout_loss": losses} for step in (0, 2)]
    records.insert(1, _record(1, {"one": []}, 1.0))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    draw_curves(SavedMetrics.read(path), tmp_path / "curves.svg")
    picture = (tmp_path / "curves.svg").read_text("utf-8")
    assert "<!-- 2l_32h -->" in picture and "<!-- 1l_16h -->" in picture


def test_a_chinese_tasks_picture_is_drawn_in_the_font_that_is_there(tmp_path):
    epochs = [{"epoch": n, "train_loss": 1 / n, "scores": {"accuracy": 0.5}} for n in (1, 2)]
    cell = {"learning_rate": 1e-5, "batch_size": 8, "seed": 1, "epochs": epochs}
    results = {"task": "评论", "model": "m", "metric": "accuracy", "cells": [cell]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_task_curves(TuningResults.model_validate(results), tmp_path / "curves.svg")
    picture = (tmp_path / "curves.svg").read_text("utf-8")
    assert "<!-- dev -->" in picture and "<!-- 2 -->" in picture and "<!-- 1.2 -->" not in picture


def test_a_line_stands_where_something_began_to_be_wrong(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [_record(step, {"one": []}, 1.0) for step in range(1, 9)]
    pictures = []
    for wrong in ([], [{"step": 4, "health": "exploding_gradient", "since": 4, "student": "one"}]):
        path.write_text("".join(json.dumps(record) + "\n" for record in records + wrong))
        draw_curves(SavedMetrics.read(path), tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as image:
            colors = [color for _, color in image.convert("RGB").getcolors(1 << 20)]
        pictures.append(any(red > max(green, blue) + 60 for red, green, blue in colors))
    assert pictures == [False, True]
