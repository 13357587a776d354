"""What a page shows, as plain values: models with scores, sizes and costs; runs with their curves.

The same values are the page's JSON. Models of several runs are put together by their folders: a
student's fine-tuning belongs to the student, a teacher's to the teacher. What is not known is left
out, never filled in.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .runs import Run

TEACHER, STUDENT = "teacher", "student"


@dataclass
class Model:
    """A teacher or a student, with what its runs say of it."""

    key: str
    name: str
    role: str
    values: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        scores = {"scores": self.scores} if self.scores else {}
        return {"name": self.name, "role": self.role, "path": self.key, **self.values, **scores}


def collect(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that a page shows of some runs.

    Returns:
        ``models``, ``runs`` (each with its curves and costs) and ``notes`` (what is missing, or
        must be known to compare).
    """
    models: dict[str, Model] = {}
    for run in runs:
        _add_students(run, models)
    for run in runs:
        for evaluation in run.evaluations.values():
            _add_evaluation(run, evaluation, models)
    for run in runs:
        if run.results:
            _add_scores(run, models)
    _add_shares(models, {key_of(str(r.folder / "export")): r.results for r in runs if r.results})
    return {
        "models": [model.as_json() for model in models.values()],
        "runs": [_describe(run) for run in runs],
        "notes": list(_notes(runs, models.values())),
    }


def key_of(path: str) -> str:
    """What tells one model from another: its real folder, or its name elsewhere."""
    return os.path.realpath(path) if os.path.isdir(path) or path.startswith("/") else path


def _role_of(key: str, model_type: object) -> str:
    """Of a model whose own training is not among the runs: what a run exported is a student."""
    is_student = str(model_type).startswith("minimoe") or "export" in Path(key).parts[-2:]
    return STUDENT if is_student else TEACHER


def _add_students(run: Run, models: dict[str, Model]) -> None:
    teacher = run.summary.get("teacher")
    if teacher is not None:
        model = models.setdefault(
            key_of(str(teacher)), Model(key_of(str(teacher)), _basename(str(teacher)), TEACHER)
        )
        if "teacher_gmac" in run.summary:
            model.values.setdefault("gmac_of_128", run.summary["teacher_gmac"])
    for name, entry in run.students.items():
        path = str(run.folder / "export" / name)
        key = key_of(path if os.path.isdir(path) else str(entry.get("export", path)))
        several = len(run.students) > 1
        told = str(entry.get("student", name))
        model = models.setdefault(key, Model(key, "", STUDENT))
        # An assistant was met as a teacher before: it is a student of this run.
        model.name = f"{run.name}/{name}: {told}" if several else f"{run.name}: {told}"
        model.role = STUDENT
        for ours, theirs in (
            ("gmac_of_128", "student_gmac"),
            ("parameters", "student_parameters"),
            ("heldout_loss_before", "heldout_loss_before"),
            ("heldout_loss_after", "heldout_loss_after"),
        ):
            value = entry.get(theirs)
            if value is not None and math.isfinite(value):
                model.values[ours] = value
        model.values["teacher"] = teacher


def _add_evaluation(run: Run, evaluation: Mapping[str, Any], models: dict[str, Model]) -> None:
    keys = [key_of(str(evaluation[name])) for name in ("source", "model") if name in evaluation]
    if run.results:
        keys = [key_of(str(run.results.get("model")))]
    at_home = key_of(str(run.folder / "export" / str(evaluation["student"])))
    key = next((one for one in [at_home, *keys] if one in models), keys[-1])
    if key not in models:
        name = f"{_basename(keys[0])}: {evaluation.get('description', '')}".removesuffix(": ")
        models[key] = Model(key, name, _role_of(key, evaluation.get("model_type")))
    for name in (
        "parameters", "gmac_of_128", "gmac_of_mean_length", "mean_length", "machine", "speed",
        "relations", "experts",
    ):  # fmt: skip
        if name in evaluation:
            models[key].values[name] = evaluation[name]
    told = evaluation.get("task_scores")
    if told:
        models[key].scores[told["task"]] = {
            "metric": told["metric"],
            "mean": told["scores"][told["metric"]],
            "deviation": None,
            "seeds": 1,
            "split": told["split"],
            "samples": told["samples"],
        }


def _add_scores(run: Run, models: dict[str, Model]) -> None:
    """A fine-tuning's result: of its best setting, over seeds."""
    results = run.results
    key = key_of(str(results.get("model", run.folder)))
    if key not in models:
        models[key] = Model(key, _basename(str(results.get("model", run.name))), TEACHER)
        models[key].values.update(_sizes(run.folder / "export"))
        models[key].role = _role_of(key, models[key].values.pop("model_type", ""))
    best = best_setting(results)
    if best is None:
        return
    score = {
        "metric": results.get("metric"),
        "mean": best["mean"],
        "deviation": best.get("deviation"),
        "seeds": len(best.get("scores") or [1]),
        "learning_rate": best.get("learning_rate"),
        "batch_size": best.get("batch_size"),
        "dev_samples": results.get("dev_samples"),
        "run": run.name,
    }
    if results.get("teacher"):
        score["teacher"] = results["teacher"]
    task, former = str(results.get("task")), models[key].scores
    # An evaluation is of the best seed's model on the samples that chose it: the mean goes first.
    is_tuned = "run" in former.get(task, {})
    if is_tuned and former[task]["mean"] >= score["mean"]:
        return
    former[task] = score


def best_setting(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The learning rate and batch size with the best mean over seeds; None without any score."""
    settings = [one for one in results.get("settings") or () if one.get("mean") is not None]
    return max(settings, key=lambda one: one["mean"], default=None)


def _add_shares(models: Mapping[str, Model], tuned: Mapping[str, Mapping[str, Any]]) -> None:
    """Each student's share of its teacher's score, where both were measured.

    The teacher is the one that its fine-tuning was distilled from (one of ``tuned``, results by
    their exports), else the one at the start of its chain, else the only one there is.
    """
    teachers = [model for model in models.values() if model.role == TEACHER]
    for model in models.values():
        for task, score in model.scores.items():
            told = tuned.get(key_of(str(score.get("teacher"))), {})
            own = models.get(key_of(str(told.get("model")))) or _first_teacher(model, models)
            if own is None and len(teachers) == 1:
                own = teachers[0]
            wanted = own.scores.get(task) if own is not None and own is not model else None
            if own and wanted and wanted["mean"] and wanted["metric"] == score["metric"]:
                score["share_of_teacher"] = score["mean"] / wanted["mean"]
                score["held_against"] = own.name


def _first_teacher(model: Model, models: Mapping[str, Model]) -> Model | None:
    """The teacher of a student, behind its assistants if there were any."""
    seen = {model.key}
    found = models.get(key_of(str(model.values.get("teacher"))))
    while found is not None and found.role == STUDENT and found.key not in seen:
        seen.add(found.key)
        found = models.get(key_of(str(found.values.get("teacher"))))
    return found


def _sizes(folder: Path) -> dict[str, Any]:
    """Type, compute and parameters of a Hugging Face folder, as its files tell."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        found: dict[str, Any] = {"model_type": config.get("model_type")}
        if config.get("model_type") != "minimoe-elastic":  # whose layers may be of many sizes
            hidden, inner = config["hidden_size"], config["intermediate_size"]
            token = config["num_hidden_layers"] * (4 * hidden**2 + 2 * hidden * inner)
            found["gmac_of_128"] = token * 128 / 1e9
        with (folder / "model.safetensors").open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
    except (OSError, ValueError, KeyError, struct.error):
        return {}
    shapes = [one["shape"] for name, one in header.items() if name != "__metadata__"]
    found["parameters"] = sum(_product(shape) for shape in shapes)
    return found


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _describe(run: Run) -> dict[str, Any]:
    """A run's costs and curves."""
    found: dict[str, Any] = {"name": run.name, "folder": str(run.folder)}
    trained = [one for one in run.records if "students" in one]
    if run.results:
        cells = run.results.get("cells") or []
        found |= {
            "command": "finetune",
            "task": run.results.get("task"),
            "metric": run.results.get("metric"),
            "seconds": sum(float(cell.get("seconds") or 0) for cell in cells),
            "trainings": len(cells),
            "epochs": [_epochs(cell, str(run.results.get("metric"))) for cell in cells],
        }
    elif run.summary or trained:
        found |= {"command": "distill", "finished": bool(run.summary)}
        found |= {k: run.summary[k] for k in ("teacher", "world_size", "steps") if k in run.summary}
        found["seconds"] = _seconds(run, trained)
        found["sequences_per_second"] = run.summary.get("sequences_per_second")
        found["curves"] = list(_curves(run, trained))
        found["experts"] = dict(_expert_loads(run, trained))
    return {name: value for name, value in found.items() if value not in (None, [], {})}


def _epochs(cell: Mapping[str, Any], metric: str) -> dict[str, Any]:
    told = f"seed {cell.get('seed')}, rate {cell.get('learning_rate'):g}"
    return {
        "name": f"{told}, batch {cell.get('batch_size')}",
        "points": [
            [one["epoch"], one["scores"].get(metric)]
            for one in cell.get("epochs") or ()
            if one.get("scores", {}).get(metric) is not None
        ],
    }


def _seconds(run: Run, trained: Sequence[Mapping[str, Any]]) -> float | None:
    """Of training alone: each record's sequences over their rate."""
    training, world = run.options.get("training", {}), run.summary.get("world_size")
    if not training or not world:
        return None
    batch = training["per_device_train_batch_size"] * training["num_grad_accum_steps"] * world
    rates = [(one.get("steps", 0), one.get("sequences_per_second")) for one in trained]
    return sum(steps * batch / rate for steps, rate in rates if rate)


def _curves(run: Run, trained: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    names = trained[-1]["students"] if trained else {}
    for name in names:
        parts = [
            part for part in ("relation_loss", "loss") if part in trained[-1]["students"][name]
        ]
        part = parts[0] if "mlm_loss" not in trained[-1]["students"][name] else "loss"
        yield {
            "student": name,
            "part": part,
            "training": [
                [one["step"], one["students"][name][part]]
                for one in trained
                if one["students"].get(name, {}).get(part) is not None
            ],
            "heldout": [
                [one["step"], one["heldout_loss"][name]]
                for one in run.records
                if one.get("heldout_loss", {}).get(name) is not None
            ],
        }


def _expert_loads(
    run: Run, trained: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Of the last record of training, by student; blocks are named as far as options tell."""
    last = trained[-1]["students"] if trained else {}
    recipes = {one["name"]: one for one in run.options.get("students", ()) if "name" in one}
    for name, student in last.items():
        blocks = student.get("tokens_per_expert") or []
        if not blocks:
            continue
        moe = [part for part in str(recipes.get(name, {}).get("moe", "")).split(",") if part]
        kinds = [
            kind
            for kind, count in zip(("attention", "feed-forward"), moe, strict=False)
            if count != "1"
        ]
        yield (
            name,
            [
                {
                    "block": f"layer {place // len(kinds) + 1} {kinds[place % len(kinds)]}"
                    if kinds
                    else f"block {place + 1}",
                    "tokens": tokens,
                }
                for place, tokens in enumerate(blocks)
            ],
        )


def _notes(runs: Sequence[Run], models: Iterable[Model]) -> Iterator[str]:
    everyone = list(models)
    teachers = sorted({str(run.summary["teacher"]) for run in runs if "teacher" in run.summary})
    if len(teachers) > 1:
        yield (
            f"The runs have different teachers ({', '.join(map(_basename, teachers))}): their "
            "relation losses are not on one scale."
        )
    unfinished = [run.name for run in runs if run.records and not run.summary and not run.results]
    if unfinished:
        yield f"Not finished yet, so without sizes and exports: {', '.join(unfinished)}."
    if not any(model.scores for model in everyone):
        yield "No task scores: no fine-tuning run is among the folders (minimoe-dist finetune)."
    yield from _unknown_shares(everyone)
    if not any("speed" in model.values for model in everyone):
        yield "No latency, throughput or memory: nothing was evaluated (minimoe-dist evaluate)."
    if not any("relations" in model.values for model in everyone):
        yield (
            "No relation loss by relation and head: nothing was evaluated against a teacher "
            "(minimoe-dist evaluate)."
        )
    machines = {
        json.dumps(model.values["machine"], sort_keys=True)
        for model in everyone
        if "machine" in model.values
    }
    if len(machines) > 1:
        yield "Latencies come from different machines or thread counts and are not comparable."


def _unknown_shares(models: Sequence[Model]) -> Iterator[str]:
    teachers = [model for model in models if model.role == TEACHER]
    for task in sorted({task for model in teachers for task in model.scores}):
        without = [
            model.name
            for model in models
            if model.role == STUDENT
            and task in model.scores
            and "share_of_teacher" not in model.scores[task]
        ]
        if without:
            yield (
                f"{task}: which teacher {', '.join(without)} had is not known, so no share of its "
                "score is told: show the run that distilled it as well."
            )


def _basename(path: str) -> str:
    return path if path.startswith("package:") else path.rstrip("/").rpartition("/")[2] or path
