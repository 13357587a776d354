"""Collects what a page shows: models with scores, sizes and costs, and runs with their curves.

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

from ..foreign import parse_json, read_json
from ..runs.evaluations import Evaluation
from ..runs.folder import EXPORT
from ..runs.health import Condition, conditions
from ..runs.launches import Start, read_starts
from ..runs.metrics import SavedMetrics, TrainingRecord
from ..runs.options import SavedRecipe
from ..runs.summaries import Summary
from ..runs.tuning import CellResult, TuningResults
from .runs import Run, basename

TEACHER, STUDENT = "teacher", "student"
_MOST_HEADER_BYTES = 100_000_000  # the library's own limit


@dataclass
class Model:
    """A teacher or a student, with the facts that runs tell of it."""

    key: str
    name: str
    role: str
    values: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Returns the model as the page's JSON has it."""
        scores = {"scores": self.scores} if self.scores else {}
        return {"name": self.name, "role": self.role, "path": self.key, **self.values, **scores}


def collect(runs: Sequence[Run]) -> dict[str, Any]:
    """Collects everything that a page shows of some runs.

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
            _add_scores(run, run.results, models)
    _add_shares(models, {key_of(str(r.folder.exports)): r.results for r in runs if r.results})
    return {
        "models": [model.as_json() for model in models.values()],
        "runs": [_describe(run) for run in runs],
        "notes": list(_notes(runs, models.values())),
    }


def key_of(path: str) -> str:
    """Returns what identifies a model: its real folder, or its name where it has none here."""
    return os.path.realpath(path) if os.path.isdir(path) or path.startswith("/") else path


def _role_of(key: str, model_type: object) -> str:
    """Infers the role of a model whose training is not among the runs: an export is a student."""
    is_student = str(model_type).startswith("minimoe") or EXPORT in Path(key).parts[-2:]
    return STUDENT if is_student else TEACHER


def _add_students(run: Run, models: dict[str, Model]) -> None:
    summary = run.summary
    if summary is None:
        return
    if summary.teacher is not None:
        key = key_of(summary.teacher)
        model = models.setdefault(key, Model(key, basename(summary.teacher), TEACHER))
        if summary.teacher_gmac is not None:
            model.values.setdefault("gmac_of_128", summary.teacher_gmac)
    for name, student in summary.students.items():
        path = str(run.folder.export(name))
        key = key_of(path if os.path.isdir(path) else student.export or path)
        title = f"{run.name}/{name}" if len(summary.students) > 1 else run.name
        model = models.setdefault(key, Model(key, "", STUDENT))
        # An assistant was met as a teacher before: it is a student of this run.
        model.name = f"{title}: {student.student or name}"
        model.role = STUDENT
        model.values |= _finite(
            gmac_of_128=student.student_gmac,
            parameters=student.student_parameters,
            heldout_loss_before=student.heldout_loss_before,
            heldout_loss_after=student.heldout_loss_after,
        )
        model.values["teacher"] = summary.teacher
        model.values["heldout_loss_of"] = _objective_of(run.recipe, summary.teacher)


def _objective_of(recipe: SavedRecipe, teacher: str | None) -> str:
    """Names what a run's held-out loss is made of; losses of other makings are not on one scale.

    With whole paths, as two teachers may have one name.
    """
    objective, parts = recipe.objective, []
    if objective.relation_weight and teacher is not None:
        layers = "tinybert" in (recipe.model_type or "")
        heads = objective.num_relation_heads
        relations = f"relations of {heads} heads" if heads else "relations"
        parts.append(f"{'layers' if layers else relations} to {teacher}")
        if objective.relation_weight != 1:
            parts[-1] = f"{objective.relation_weight:g} × {parts[-1]}"
        if objective.state_weight:
            parts.append(f"{objective.state_weight:g} × its last states")
    if objective.mlm_weight:
        parts.append(f"{objective.mlm_weight:g} × masked LM")
    corpora = recipe.data.heldout_path_or_regex or []
    where = f", on {' and '.join(corpus.path for corpus in corpora)}" if corpora else ""
    return " + ".join(parts) + where


def _finite(**values: float | None) -> dict[str, float]:
    """Returns the values that are finite numbers."""
    return {
        name: value for name, value in values.items() if value is not None and math.isfinite(value)
    }


def _add_evaluation(run: Run, evaluation: Evaluation, models: dict[str, Model]) -> None:
    paths = (evaluation.source, evaluation.model)
    keys = [key_of(path) for path in paths if path is not None]
    if run.results:
        keys = [key_of(run.results.model)]
    at_home = key_of(str(run.folder.export(evaluation.student)))
    key = next(
        (candidate for candidate in [at_home, *keys] if candidate in models), [at_home, *keys][-1]
    )
    if key not in models:
        name = f"{basename(([*keys, key])[0])}: {evaluation.description}".removesuffix(": ")
        models[key] = Model(key, name, _role_of(key, evaluation.model_type))
    measured = evaluation.as_json()
    for name in (
        "parameters", "gmac_of_128", "gmac_of_mean_length", "mean_length", "machine", "speed",
        "relations", "experts",
    ):  # fmt: skip
        if name in measured:
            models[key].values[name] = measured[name]
    scores = evaluation.task_scores
    if scores is not None:
        models[key].scores[scores.task] = {
            "metric": scores.metric,
            "mean": scores.scores.get(scores.metric),
            "deviation": None,
            "seeds": 1,
            "split": scores.split,
            "samples": scores.samples,
        }


def _add_scores(run: Run, results: TuningResults, models: dict[str, Model]) -> None:
    """Adds a fine-tuning's score: that of its best setting, over seeds."""
    key = key_of(results.model)
    if key not in models:
        models[key] = Model(key, basename(results.model), TEACHER)
        models[key].values.update(_sizes(run.folder.exports))
        models[key].role = _role_of(key, models[key].values.pop("model_type", ""))
    best = results.best_setting
    if best is None:
        return
    score = {
        "metric": results.metric,
        "mean": best.mean,
        "deviation": best.deviation,
        "seeds": len(best.scores or [1]),
        "learning_rate": best.learning_rate,
        "batch_size": best.batch_size,
        "dev_samples": results.dev_samples,
        "run": run.name,
    }
    if results.teacher:
        score["teacher"] = results.teacher
    task, scores = results.task, models[key].scores
    # An evaluation is of the best seed's model on the samples that chose it: the mean goes first.
    is_tuned = "run" in scores.get(task, {})
    if is_tuned and scores[task]["mean"] >= score["mean"]:
        return
    scores[task] = score


def _add_shares(models: Mapping[str, Model], tuned: Mapping[str, TuningResults]) -> None:
    """Adds each student's share of its teacher's score, where both were measured.

    The teacher is the one that its fine-tuning was distilled from (one of ``tuned``, results by
    their exports), else the one at the start of its chain, else the only one there is.
    """
    teachers = [model for model in models.values() if model.role == TEACHER]
    for model in models.values():
        for task, score in model.scores.items():
            results = tuned.get(key_of(str(score.get("teacher"))))
            teacher = models.get(key_of(results.model)) if results else None
            teacher = teacher or _first_teacher(model, models)
            if teacher is None and len(teachers) == 1:
                teacher = teachers[0]
            if teacher is None or teacher is model:
                continue
            best = teacher.scores.get(task)
            if best and best["metric"] == score["metric"]:
                score["held_against"] = teacher.name
                if best["mean"] > 0:  # of nothing, or of less, there is no share
                    score["share_of_teacher"] = score["mean"] / best["mean"]


def _first_teacher(model: Model, models: Mapping[str, Model]) -> Model | None:
    """Returns the teacher at the start of a student's chain, behind any assistants."""
    visited = {model.key}
    teacher = models.get(key_of(str(model.values.get("teacher"))))
    while teacher is not None and teacher.role == STUDENT and teacher.key not in visited:
        visited.add(teacher.key)
        teacher = models.get(key_of(str(teacher.values.get("teacher"))))
    return teacher


def _sizes(folder: Path) -> dict[str, Any]:
    """Reads type, compute and number of parameters from the files of a Hugging Face folder."""
    try:
        config = read_json(folder / "config.json")
        values: dict[str, Any] = {"model_type": config.get("model_type")}
        if config.get("model_type") != "minimoe-elastic":  # whose layers may be of many sizes
            hidden, inner = config["hidden_size"], config["intermediate_size"]
            token = config["num_hidden_layers"] * (4 * hidden**2 + 2 * hidden * inner)
            values["gmac_of_128"] = token * 128 / 1e9
        with (folder / "model.safetensors").open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _MOST_HEADER_BYTES:
                return {}
            header = parse_json(file.read(size).decode("utf-8"))
        shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
        values["parameters"] = sum(map(math.prod, shapes))
    except Exception:  # of files that are no model's, whatever they hold
        return {}
    return values


def _describe(run: Run) -> dict[str, Any]:
    """Returns a run's costs and curves."""
    values: dict[str, Any] = {"name": run.name, "folder": str(run.folder.path)}
    values["starts"] = [_start(start) for start in read_starts(run.folder.path)]
    results, summary, trained = run.results, run.summary, run.metrics.trained
    if results:
        values |= {
            "command": "finetune",
            "task": results.task,
            "metric": results.metric,
            "seconds": sum(cell.seconds for cell in results.cells),
            "trainings": len(results.cells),
            "epochs": [_epochs(cell, results.metric) for cell in results.cells],
            "health": [
                _condition(condition, words)
                for cell in results.cells
                for condition, words in cell.told()
            ],
        }
    elif summary or run.metrics:
        values |= {"command": "distill", "finished": summary is not None}
        if summary:
            values |= {
                "teacher": summary.teacher,
                "world_size": summary.world_size,
                "steps": summary.steps,
                "seconds": _seconds(summary, trained),
                "sequences_per_second": summary.sequences_per_second,
            }
        values["curves"] = list(_curves(run.metrics))
        values["experts"] = dict(_expert_loads(run.recipe, trained))
        values["health"] = [
            _condition(condition, condition.describe())
            for condition in conditions(run.metrics.health)
        ]
    return {name: value for name, value in values.items() if value not in (None, [], {})}


def _condition(condition: Condition, words: str) -> dict[str, Any]:
    began = condition.began
    return {
        "student": began.student,
        "since": began.since,
        "ended": condition.ended,
        "told": words,
    }


def _start(start: Start) -> dict[str, Any]:
    """Returns when and where a run was started, and how that ended."""
    values: dict[str, Any] = {
        "time": start.launch.time,
        "hosts": list(start.hosts),
        "world_size": start.launch.world_size,
    }
    if start.leave is not None:
        values |= {"seconds": start.seconds, "end": start.leave.reason, "step": start.leave.step}
    return values


def _epochs(cell: CellResult, metric: str) -> dict[str, Any]:
    return {
        "name": cell.label,
        "points": [
            [epoch.epoch, epoch.scores[metric]] for epoch in cell.epochs if metric in epoch.scores
        ],
    }


def _seconds(summary: Summary, trained: Sequence[TrainingRecord]) -> float | None:
    """Sums up the seconds of training alone: each record's sequences over their rate."""
    batch = summary.options.training.sequences_of_step(summary.world_size or 0)
    if not batch:
        return None
    return sum(
        record.steps * batch / record.sequences_per_second
        for record in trained
        if record.sequences_per_second
    )


def _curves(metrics: SavedMetrics) -> Iterator[dict[str, Any]]:
    last = metrics.trained[-1].students if metrics.trained else {}
    for name, student in last.items():
        part = "relation_loss" if student.learns_relations_alone else "loss"
        losses = [
            (record.step, record.students[name].loss_of(part))
            for record in metrics.trained
            if name in record.students
        ]
        heldout = [(record.step, record.heldout_loss.get(name)) for record in metrics.evaluated]
        yield {
            "student": name,
            "part": part,
            "training": [[step, loss] for step, loss in losses if loss is not None],
            "heldout": [[step, loss] for step, loss in heldout if loss is not None],
        }


def _expert_loads(
    recipe: SavedRecipe, trained: Sequence[TrainingRecord]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yields each student's tokens by block and expert, from the last record of training."""
    last = trained[-1].students if trained else {}
    experts = {student.name: student.moe for student in recipe.students}
    for name, student in last.items():
        if not student.tokens_per_expert:
            continue
        moe = [part for part in experts.get(name, "").split(",") if part]
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
                for place, tokens in enumerate(student.tokens_per_expert)
            ],
        )


def _notes(runs: Sequence[Run], models: Iterable[Model]) -> Iterator[str]:
    all_models = list(models)
    teachers = sorted({run.summary.teacher for run in runs if run.summary and run.summary.teacher})
    if len(teachers) > 1:
        names = list(map(basename, teachers))
        told = names if len(set(names)) == len(names) else teachers
        yield (
            f"The runs have different teachers ({', '.join(told)}): their relation losses are not "
            "on one scale."
        )
    unfinished = [run.name for run in runs if run.metrics and not run.summary and not run.results]
    if unfinished:
        yield f"Not finished yet, so without sizes and exports: {', '.join(unfinished)}."
    if not any(model.scores for model in all_models):
        yield "No task scores: no fine-tuning run is among the folders (minimoe-dist finetune)."
    yield from _missing_shares(all_models)
    if not any("speed" in model.values for model in all_models):
        yield "No latency, throughput or memory: nothing was evaluated (minimoe-dist evaluate)."
    if not any("relations" in model.values for model in all_models):
        yield (
            "No relation loss by relation and head: nothing was evaluated against a teacher "
            "(minimoe-dist evaluate)."
        )
    machines = {
        json.dumps(model.values["machine"], sort_keys=True)
        for model in all_models
        if "machine" in model.values
    }
    if len(machines) > 1:
        yield "Latencies come from different machines or thread counts and are not comparable."


def _missing_shares(models: Sequence[Model]) -> Iterator[str]:
    teachers = [model for model in models if model.role == TEACHER]
    for task in sorted({task for model in teachers for task in model.scores}):
        without = [
            model.name
            for model in models
            if model.role == STUDENT
            and task in model.scores
            and "held_against" not in model.scores[task]
        ]
        scoreless = {
            model.scores[task]["held_against"]
            for model in models
            if "held_against" in model.scores.get(task, {})
            and "share_of_teacher" not in model.scores[task]
        }
        if scoreless:
            yield (
                f"{task}: {', '.join(sorted(scoreless))} has no score above 0, so nobody's share "
                "of it is told."
            )
        if without:
            yield (
                f"{task}: which teacher {', '.join(without)} had is not known, so no share of its "
                "score is told: show the run that distilled it as well."
            )
