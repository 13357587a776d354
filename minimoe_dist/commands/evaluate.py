"""``minimoe-dist evaluate``: what a model costs here, and how near it is to its teacher."""

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.folders import exported_parameters, load_model
from ..config import RunConfig, load_run_config
from ..config.commands import EvaluateOptions
from ..durable import write_json
from ..errors import UserError
from ..models.compute import sequence_gmac
from ..models.experts import Route, Router
from ..models.measuring import describe_machine, measure_latency
from ..models.teacher import RelationTeacher, load_teacher
from ..objectives.relations_by_head import relation_loss_by_head
from ..recipes.corpora import open_data
from ..reporting.facts import best_setting
from ..reporting.runs import EVALUATION, Export, find_export
from ..runtime import Launch, logger, prepare_environment
from ..train.task_scores import score_on_task

_RELATIONS = ("query", "key", "value")
_DEFAULT_HEADS = 32
_BATCH = 16
_log = logger("evaluate")


def run(options: EvaluateOptions, launch: Launch) -> int:
    """Measures and writes the JSON.

    Returns:
        0.
    """
    device = torch.device(prepare_environment(options.use_cpu))
    export = find_export(options.source, options.student)
    model = load_model(export.folder).to(device)
    config: Any = model.config
    found: dict[str, Any] = {
        "kind": "evaluation",
        "student": export.name,
        "source": options.source,
        "model": str(export.folder),
        "model_type": config.model_type,
        "description": _description(export, config),
        "parameters": exported_parameters(export.folder),
        "gmac_of_128": sequence_gmac(config),
        "machine": describe_machine(device),
    }
    if export.run is not None and export.run.results:
        found["fine_tuning"] = _tuned(export.run.results)
    if options.task is not None or options.dataset is not None:
        tuned = export.run.results if export.run is not None else {}
        found["task_scores"] = score_on_task(model, export.folder, options, tuned, device)
        _log.info(
            "%s", ", ".join(f"{k} {v:.4f}" for k, v in found["task_scores"]["scores"].items())
        )
    if options.speed:
        found["speed"] = _speed(model, options)
    found.update(_against_teacher(export, options, launch, device))
    if "mean_length" in found:
        found["gmac_of_mean_length"] = sequence_gmac(config, found["mean_length"])
    path = Path(options.output) if options.output else _default_output(export)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    _log.info("evaluation in %s", path)
    return 0


def _tuned(results: Mapping[str, Any]) -> dict[str, Any]:
    """Of a fine-tuning run: its best model, and its best setting over seeds."""
    best, setting = results.get("best") or {}, best_setting(results) or {}
    return {
        "task": results["task"],
        "metric": results["metric"],
        "best": best.get("scores"),
        "mean": setting.get("mean"),
        "deviation": setting.get("deviation"),
        "seeds": len(setting.get("scores") or ()),
        "dev_samples": results["dev_samples"],
    }


def _default_output(export: Export) -> Path:
    if export.run is None:
        return Path(EVALUATION)
    several = len(export.run.students) > 1
    return export.run.folder / (f"evaluation_{export.name}.json" if several else EVALUATION)


def _description(export: Export, config: Any) -> str:
    if export.run is not None and export.name in export.run.students:
        return str(export.run.students[export.name].get("student", export.name))
    size = f"{config.num_hidden_layers}L;{config.hidden_size}H"
    if getattr(config, "attention_experts", 1) == getattr(config, "feedforward_experts", 1) == 1:
        return f"{config.model_type} {size}"
    return f"MiniMoE {size} {config.attention_experts},{config.feedforward_experts}E"


def _speed(model: nn.Module, options: EvaluateOptions) -> dict[str, Any]:
    batches = []
    for latency in measure_latency(
        model, sorted(options.batch_sizes), length=options.length, repeats=options.repeats
    ):
        _log.info(
            "batch %d of length %d: median %.2f ms, %.1f sequences/s",
            latency.batch_size,
            options.length,
            1000 * latency.median_seconds,
            latency.sequences_per_second,
        )
        batches.append(asdict(latency))
    return {"length": options.length, "repeats": options.repeats, "batches": batches}


def _against_teacher(
    export: Export, options: EvaluateOptions, launch: Launch, device: torch.device
) -> dict[str, Any]:
    """Relation loss and load of experts on held-out text; nothing without text or teacher."""
    config = _measuring_run(export, options)
    if config is None:
        _log.info("no teacher or no held-out corpus: relations and experts are left out")
        return {}
    data = open_data(config)
    heads = config.objective.num_relation_heads
    teacher = load_teacher(
        config.teacher.model_name_or_path,
        relation_layer=config.teacher.relation_layer,
        dtype=config.teacher.dtype,
        device=device,
    )
    student = load_teacher(str(export.folder), device=device)
    _check_heads(heads, student, teacher)
    loads = _count_tokens(student)
    sums = torch.zeros(3, heads, dtype=torch.float64)
    tokens = sequences = 0
    for micro in data.heldout_batches(config, launch):
        batch = micro.to(device)
        mask = batch.attention_mask
        given, wanted = student(**batch.inputs()), teacher(**batch.inputs())
        sums += relation_loss_by_head(given, wanted, mask, heads)
        tokens += int(mask.sum())
        sequences += len(mask)
    means = sums / max(1, tokens)
    found: dict[str, Any] = {
        "mean_length": tokens / max(1, sequences),
        "relations": {
            "teacher": config.teacher.model_name_or_path,
            "corpora": [one.path for one in config.data.heldout_path_or_regex or ()],
            "sequences": sequences,
            "loss": float(means.mean()),
            "by_head": dict(zip(_RELATIONS, means.tolist(), strict=True)),
        },
    }
    _log.info("held-out relation loss %.4f on %d pairs", found["relations"]["loss"], sequences)
    if loads:
        found["experts"] = [
            {"block": name, "tokens": [round(one) for one in counts.tolist()]}
            for name, counts in loads.items()
        ]
    return found


def _check_heads(heads: int, student: RelationTeacher, teacher: RelationTeacher) -> None:
    for name, model in (("model", student), ("teacher", teacher)):
        if model.hidden_size % heads:
            raise UserError(
                f"--num_relation_heads: {heads} does not divide the {name}'s hidden size "
                f"{model.hidden_size}; choose a divisor of both"
            )


def _measuring_run(export: Export, options: EvaluateOptions) -> RunConfig | None:
    """The run whose held-out text and teacher are measured with."""
    saved: Mapping[str, Any] = export.run.options if export.run else {}
    teacher = options.teacher or saved.get("teacher", {}).get("model_name_or_path")
    data = saved.get("data", {})
    corpora = [{"path": one, "weight": 1.0} for one in options.corpus]
    corpora = corpora or data.get("heldout_path_or_regex") or []
    if not teacher or not corpora:
        return None
    if saved:
        tree = copy.deepcopy(dict(saved))
    else:
        overrides = [
            f"teacher.model_name_or_path={teacher}",
            f"data.record_path_or_regex={corpora[0]['path']}",
            "output_dir=.",
        ]
        tree = load_run_config(None, overrides).model_dump(mode="json")
        tree["objective"]["num_relation_heads"] = _DEFAULT_HEADS
    if options.teacher:
        tree["teacher"] |= {"model_name_or_path": options.teacher, "relation_layer": -1}
    # Training text is not read here, and need not be there any more.
    tree["data"] |= {"record_path_or_regex": corpora, "heldout_path_or_regex": corpora}
    if options.max_length is not None:
        tree["data"]["max_length"] = options.max_length
    if options.num_relation_heads is not None:
        tree["objective"]["num_relation_heads"] = options.num_relation_heads
    tree["training"] |= {
        "eval_sequences": options.num_sequences,
        "per_device_eval_batch_size": _BATCH,
    }
    return RunConfig.model_validate(tree)


def _count_tokens(model: nn.Module) -> dict[str, Tensor]:
    """Sums that grow with each pass: tokens of each expert, by block ("layer 1 feed-forward")."""
    loads: dict[str, Tensor] = {}

    def count(block: str, route: Route) -> None:
        loads[block] = loads[block] + route.statistics.token_count.detach().cpu()

    for name, module in model.named_modules():
        if isinstance(module, Router):
            number = int(name.split(".layer.")[1].split(".")[0]) + 1
            kind = "attention" if name.endswith("attn_gate") else "feed-forward"
            block = f"layer {number} {kind}"
            loads[block] = torch.zeros(module.out_features)
            module.register_forward_hook(lambda _, given, route, block=block: count(block, route))
    return loads
