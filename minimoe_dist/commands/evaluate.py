"""``minimoe-dist evaluate``: measures what a model costs, and how near it is to its teacher."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.folders import exported_parameters, load_model
from ..config.commands import EvaluateOptions
from ..model_description import require_model
from ..models.compute import sequence_gmac
from ..models.measuring import describe_machine, measure_latency
from ..recipes.against_teacher import compare_with_teacher
from ..recipes.saved_students import opened_model
from ..reporting.runs import Export
from ..runs.evaluations import (
    BatchSpeed,
    Evaluation,
    Machine,
    Speed,
    TunedScores,
)
from ..runs.folder import RunFolder
from ..runs.tuning import TuningResults
from ..runtime import Launch, logger, prepare_environment
from ..train.task_scores import score_on_task

_log = logger("evaluate")


def run(options: EvaluateOptions, launch: Launch) -> int:
    """Measures a model and writes the evaluation as JSON.

    Returns:
        0.
    """
    device = torch.device(prepare_environment(options.use_cpu))
    with opened_model(options.source, options.student, options.step) as export:
        path = Path(options.output) if options.output else _default_output(export)
        evaluation = _evaluate(options, launch, device, export)
    path.parent.mkdir(parents=True, exist_ok=True)
    evaluation.write(path)
    _log.info("evaluation in %s", path)
    return 0


def _evaluate(
    options: EvaluateOptions, launch: Launch, device: torch.device, export: Export
) -> Evaluation:
    model = load_model(export.folder).to(device)
    config: Any = model.config
    tuned = export.run.results if export.run is not None else None
    measured: dict[str, Any] = {}
    if tuned is not None:
        measured["fine_tuning"] = _tuned(tuned)
    if options.task is not None or options.dataset is not None:
        scores = measured["task_scores"] = score_on_task(
            model, export.folder, options, tuned, device
        )
        _log.info("%s", ", ".join(f"{k} {v:.4f}" for k, v in scores.scores.items()))
    if options.speed:
        measured["speed"] = _speed(model, options, _length(options, export))
    comparison = compare_with_teacher(export, options, launch, device)
    if comparison is not None:
        measured |= {
            "mean_length": comparison.mean_length,
            "relations": comparison.relations,
            "gmac_of_mean_length": sequence_gmac(config, comparison.mean_length),
        }
        if comparison.experts:
            measured["experts"] = comparison.experts
    return Evaluation(
        kind="evaluation",
        student=export.name,
        source=options.source,
        model=str(export.folder if export.checkpoint is None else export.checkpoint / export.name),
        step=export.step,
        model_type=config.model_type,
        description=_description(export, config),
        parameters=exported_parameters(export.folder),
        gmac_of_128=sequence_gmac(config),
        machine=Machine.model_validate(describe_machine(device)),
        **measured,
    )


def _tuned(results: TuningResults) -> TunedScores:
    """Sums up a fine-tuning run: its best model, and its best setting over seeds."""
    best, setting = results.best, results.best_setting
    return TunedScores(
        task=results.task,
        metric=results.metric,
        best=best.scores if best else None,
        mean=setting.mean if setting else None,
        deviation=setting.deviation if setting else None,
        seeds=len(setting.scores) if setting else 0,
        dev_samples=results.dev_samples,
    )


def _default_output(export: Export) -> Path:
    if export.run is None:
        return RunFolder(Path()).evaluation()
    if export.step is not None:
        return export.run.folder.evaluation_of_step(export.name, export.step)
    several = len(export.run.students) > 1
    return export.run.folder.evaluation(export.name if several else None)


def _description(export: Export, config: Any) -> str:
    if export.step is not None:
        return f"{_size(config)} after step {export.step}"
    if export.run is not None and export.name in export.run.students:
        return export.run.students[export.name].student or export.name
    return _size(config)


def _size(config: Any) -> str:
    size = f"{config.num_hidden_layers}L;{config.hidden_size}H"
    if getattr(config, "attention_experts", 1) == getattr(config, "feedforward_experts", 1) == 1:
        return f"{config.model_type} {size}"
    return f"MiniMoE {size} {config.attention_experts},{config.feedforward_experts}E"


def _length(options: EvaluateOptions, export: Export) -> int:
    """Returns the length of measured sequences: what was given, or as many as the model takes."""
    longest = require_model(str(export.folder), "source", foreign=True).longest_sequence
    return options.length if "length" in options.model_fields_set else min(options.length, longest)


def _speed(model: nn.Module, options: EvaluateOptions, length: int) -> Speed:
    batches = []
    for latency in measure_latency(
        model, sorted(options.batch_sizes), length=length, repeats=options.repeats
    ):
        _log.info(
            "batch %d of length %d: median %.2f ms, %.1f sequences/s",
            latency.batch_size,
            length,
            1000 * latency.median_seconds,
            latency.sequences_per_second,
        )
        batches.append(BatchSpeed.model_validate(asdict(latency)))
    return Speed(length=length, repeats=options.repeats, batches=batches)
