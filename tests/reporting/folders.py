"""Folders as commands leave them, with values chosen by hand."""

import json
from pathlib import Path
from typing import Any


def summary(teacher: str, *students: str, **changes: Any) -> dict[str, Any]:
    return {
        "teacher": teacher,
        "world_size": 2,
        "steps": 20,
        "sequences_per_second": 8.0,
        "teacher_gmac": 1.5,
        "students": {
            name: {
                "student": "MiniMoE 3L;192H 1,2E",
                "heldout_loss_before": 0.5,
                "heldout_loss_after": 0.25,
                "student_gmac": 0.25,
                "student_parameters": 1_234_567,
                "export": f"elsewhere/export/{name}",
            }
            for name in students
        },
        "options": {
            "model_type": "moebert_minilm",
            "students": [{"name": name, "moe": "1,2"} for name in students],
            "training": {"per_device_train_batch_size": 4, "num_grad_accum_steps": 2},
        },
        **changes,
    }


def record(step: int, *students: str) -> dict[str, Any]:
    return {
        "step": step,
        "steps": 10,
        "sequences_per_second": 8.0,
        "students": {
            name: {
                "loss": 1.0 / step,
                "relation_loss": 0.9 / step,
                "balance": 1.0,
                "gradient_norm": 0.1,
                "tokens_per_expert": [[30, 10], [20, 20]],
            }
            for name in students
        },
    }


def distilled(folder: Path, teacher: str, *students: str) -> Path:
    """A finished run of 20 steps with two records and two evaluations."""
    folder.mkdir(parents=True)
    names = students or ("student",)
    for name in names:
        (folder / "export" / name).mkdir(parents=True)
        (folder / "export" / name / "config.json").write_text('{"model_type": "minimoe"}')
    (folder / "summary.json").write_text(json.dumps(summary(teacher, *names)))
    lines = [{"step": 0, "heldout_loss": dict.fromkeys(names, 0.5)}]
    lines += [record(10, *names), record(20, *names)]
    lines += [{"step": 20, "heldout_loss": dict.fromkeys(names, 0.25)}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def tuned(
    folder: Path, model: str, *means: float, task: str = "sst2", teacher: str | None = None
) -> Path:
    """A fine-tuning of one setting for each mean, two seeds each, 0.01 above and below it."""
    (folder / "export").mkdir(parents=True)
    config = {
        "model_type": "bert", "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2,
    }  # fmt: skip
    (folder / "export" / "config.json").write_text(json.dumps(config))
    cells, settings = [], []
    for rate, mean in enumerate(means, start=1):
        scores = [mean - 0.01, mean + 0.01]
        settings.append(
            {
                "learning_rate": rate * 1e-5,
                "batch_size": 32,
                "scores": scores,
                "mean": mean,
                "deviation": 0.014,
            }
        )
        for seed, score in enumerate(scores):
            epochs = [
                {"epoch": 1, "train_loss": 0.7, "seconds": 30.0, "scores": {"accuracy": 0.5}},
                {"epoch": 2, "train_loss": 0.6, "seconds": 30.0, "scores": {"accuracy": score}},
            ]
            cells.append(
                {
                    "seed": seed,
                    "learning_rate": rate * 1e-5,
                    "batch_size": 32,
                    "epochs": epochs,
                    "best_epoch": 2,
                    "score": score,
                    "scores": {"accuracy": score},
                    "seconds": 60.0,
                    "diverged": False,
                }
            )
    results = {
        "format": 1,
        "task": task,
        "metric": "accuracy",
        "model": model,
        "teacher": teacher,
        "train_samples": 100,
        "dev_samples": 50,
        "cells": cells,
        "settings": settings,
        "best": {key: cells[-1][key] for key in cells[-1] if key != "epochs"},
        "export": str(folder / "export"),
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def evaluation(student: str, model: str, **changes: Any) -> dict[str, Any]:
    batches = [
        {
            "batch_size": size,
            "median_seconds": 0.01 * size,
            "fastest_seconds": 0.009 * size,
            "slowest_seconds": 0.02 * size,
            "sequences_per_second": 100.0,
            "peak_bytes": 2**20 * size,
        }
        for size in (1, 8, 32, 128)
    ]
    return {
        "kind": "evaluation",
        "student": student,
        "source": model,
        "model": model,
        "model_type": "minimoe",
        "description": "MiniMoE 3L;192H 1,2E",
        "parameters": 1_234_567,
        "gmac_of_128": 0.25,
        "mean_length": 64.0,
        "gmac_of_mean_length": 0.125,
        "machine": {"device": "cpu", "name": "a processor", "threads": 2},
        "speed": {"length": 128, "repeats": 10, "batches": batches},
        "relations": {
            "teacher": "some/teacher",
            "corpora": ["heldout"],
            "sequences": 64,
            "loss": 0.2,
            "by_head": {name: [0.1, 0.2, 0.3, 0.2] for name in ("query", "key", "value")},
        },
        "experts": [
            {"block": "layer 1 feed-forward", "tokens": [300, 100]},
            {"block": "layer 2 feed-forward", "tokens": [200, 200]},
        ],
        **changes,
    }
