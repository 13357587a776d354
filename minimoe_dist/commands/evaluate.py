"""``minimoe-dist evaluate``: what a model costs here, and how near it is to its teacher."""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.folders import exported_parameters, load_model
from ..config import RunConfig, load_run_config
from ..config.commands import EvaluateOptions
from ..errors import UserError
from ..models.compute import sequence_gmac
from ..models.experts import Route, Router
from ..models.measuring import describe_machine, measure_latency
from ..models.teacher import RelationTeacher, load_teacher
from ..objectives.relations_by_head import relation_loss_by_head
from ..recipes.corpora import open_data
from ..reporting.runs import Export, find_export
from ..runs.evaluations import (
    BatchSpeed,
    Evaluation,
    ExpertLoad,
    Machine,
    Relations,
    Speed,
    TunedScores,
)
from ..runs.folder import RunFolder
from ..runs.options import RecipeOptions
from ..runs.tuning import TuningResults
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
    tuned = export.run.results if export.run is not None else None
    found: dict[str, Any] = {}
    if tuned is not None:
        found["fine_tuning"] = _tuned(tuned)
    if options.task is not None or options.dataset is not None:
        scores = found["task_scores"] = score_on_task(model, export.folder, options, tuned, device)
        _log.info("%s", ", ".join(f"{k} {v:.4f}" for k, v in scores.scores.items()))
    if options.speed:
        found["speed"] = _speed(model, options)
    against = _against_teacher(export, options, launch, device)
    if against is not None:
        found |= {
            "mean_length": against.mean_length,
            "relations": against.relations,
            "gmac_of_mean_length": sequence_gmac(config, against.mean_length),
        }
        if against.experts:
            found["experts"] = against.experts
    evaluation = Evaluation(
        kind="evaluation",
        student=export.name,
        source=options.source,
        model=str(export.folder),
        model_type=config.model_type,
        description=_description(export, config),
        parameters=exported_parameters(export.folder),
        gmac_of_128=sequence_gmac(config),
        machine=Machine.model_validate(describe_machine(device)),
        **found,
    )
    path = Path(options.output) if options.output else _default_output(export)
    path.parent.mkdir(parents=True, exist_ok=True)
    evaluation.write(path)
    _log.info("evaluation in %s", path)
    return 0


def _tuned(results: TuningResults) -> TunedScores:
    """Of a fine-tuning run: its best model, and its best setting over seeds."""
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
    several = len(export.run.students) > 1
    return export.run.folder.evaluation(export.name if several else None)


def _description(export: Export, config: Any) -> str:
    if export.run is not None and export.name in export.run.students:
        return export.run.students[export.name].student or export.name
    size = f"{config.num_hidden_layers}L;{config.hidden_size}H"
    if getattr(config, "attention_experts", 1) == getattr(config, "feedforward_experts", 1) == 1:
        return f"{config.model_type} {size}"
    return f"MiniMoE {size} {config.attention_experts},{config.feedforward_experts}E"


def _speed(model: nn.Module, options: EvaluateOptions) -> Speed:
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
        batches.append(BatchSpeed.model_validate(asdict(latency)))
    return Speed(length=options.length, repeats=options.repeats, batches=batches)


@dataclass(frozen=True)
class _AgainstTeacher:
    """Relation loss and load of experts on held-out text."""

    mean_length: float
    relations: Relations
    experts: list[ExpertLoad]


def _against_teacher(
    export: Export, options: EvaluateOptions, launch: Launch, device: torch.device
) -> _AgainstTeacher | None:
    """What held-out text tells; None without text or teacher."""
    config = _measuring_run(export, options)
    if config is None:
        _log.info("no teacher or no held-out corpus: relations and experts are left out")
        return None
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
    relations = Relations(
        teacher=config.teacher.model_name_or_path,
        corpora=[corpus.path for corpus in config.data.heldout_path_or_regex or ()],
        sequences=sequences,
        loss=float(means.mean()),
        by_head=dict(zip(_RELATIONS, means.tolist(), strict=True)),
    )
    _log.info("held-out relation loss %.4f on %d pairs", relations.loss, sequences)
    experts = [
        ExpertLoad(block=name, tokens=[round(count) for count in counts.tolist()])
        for name, counts in loads.items()
    ]
    return _AgainstTeacher(tokens / max(1, sequences), relations, experts)


def _check_heads(heads: int, student: RelationTeacher, teacher: RelationTeacher) -> None:
    for name, model in (("model", student), ("teacher", teacher)):
        if model.hidden_size % heads:
            raise UserError(
                f"--num_relation_heads: {heads} does not divide the {name}'s hidden size "
                f"{model.hidden_size}; choose a divisor of both"
            )


def _measuring_run(export: Export, options: EvaluateOptions) -> RunConfig | None:
    """The run whose held-out text and teacher are measured with."""
    saved = export.run.recipe if export.run else RecipeOptions()
    teacher = options.teacher or saved.teacher.model_name_or_path
    corpora = [{"path": one, "weight": 1.0} for one in options.corpus]
    corpora = corpora or [one.model_dump() for one in saved.data.heldout_path_or_regex or ()]
    if not teacher or not corpora:
        return None
    if saved.tree:
        tree = copy.deepcopy(saved.tree)
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
