"""Measures how near a model is to a teacher on held-out text, and how experts share tokens."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import RunConfig, load_run_config
from ..config.commands import EvaluateOptions
from ..model_description import require_model
from ..models.experts import Route, Router
from ..models.teacher import load_teacher
from ..objectives.relations_by_head import relation_loss_by_head
from ..preflight.evaluate import corpora_of, relation_heads_of, teacher_of
from ..reporting.runs import Export
from ..runs.evaluations import ExpertLoad, Relations
from ..runs.options import SavedRecipe
from ..runtime import Launch, logger
from .corpora import open_data

_RELATIONS = ("query", "key", "value")
_BATCH = 16
_log = logger("evaluate")


@dataclass(frozen=True)
class TeacherComparison:
    """The relation loss and the load of experts on held-out text.

    Attributes:
        mean_length: tokens of a sequence.
        relations: the loss in nats a row, and by relation head.
        experts: tokens of each expert, by block; empty for models without.
    """

    mean_length: float
    relations: Relations
    experts: list[ExpertLoad]


def compare_with_teacher(
    export: Export, options: EvaluateOptions, launch: Launch, device: torch.device
) -> TeacherComparison | None:
    """Compares a model with a teacher on held-out text; None without text or teacher.

    Args:
        export: the model.
        options: teacher, corpora, length, relation heads and number of sequences, where they are
            not those of the run that the model came from.
        launch: the process.
        device: of this process.

    Raises:
        UserError: a corpus is of another vocabulary.
    """
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
    # Wholly: its last layer's routers stand behind the maps that its signals may be of.
    student = load_teacher(str(export.folder), with_states=True, device=device)
    loads = _count_tokens(student)
    sums = torch.zeros(3, heads, dtype=torch.float64)
    tokens = sequences = 0
    for micro in data.heldout_batches(config, launch):
        batch = micro.to(device)
        mask = batch.attention_mask
        inputs = batch.inputs()
        query, key, value, _ = student(**inputs)
        sums += relation_loss_by_head((query, key, value), teacher(**inputs), mask, heads)
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
    return TeacherComparison(tokens / max(1, sequences), relations, experts)


def _measuring_run(export: Export, options: EvaluateOptions) -> RunConfig | None:
    """Makes the run whose held-out text and teacher are measured with; None without either."""
    saved = export.run.recipe if export.run else SavedRecipe()
    teacher, corpora = teacher_of(options, saved), corpora_of(options, saved)
    if teacher is None or not corpora:
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
        models = (
            require_model(str(export.folder), "source"),
            require_model(teacher, "--teacher", teaches=True),
        )
        lengths = [model.longest_sequence for model in models]
        tree["data"]["max_length"] = min(tree["data"]["max_length"], *lengths)
    if options.teacher:
        tree["teacher"] |= {"model_name_or_path": options.teacher, "relation_layer": -1}
    # Training text is not read here, and need not be there any more.
    tree["data"] |= {"record_path_or_regex": corpora, "heldout_path_or_regex": corpora}
    if options.max_length is not None:
        tree["data"]["max_length"] = options.max_length
    tree["objective"]["num_relation_heads"] = relation_heads_of(options, saved)
    tree["training"] |= {
        "eval_sequences": options.num_sequences,
        "per_device_eval_batch_size": _BATCH,
    }
    return RunConfig.model_validate(tree)


def _count_tokens(model: nn.Module) -> dict[str, Tensor]:
    """Counts the tokens of each expert, by block ("layer 1 feed-forward"), as passes run."""
    loads: dict[str, Tensor] = {}

    def count(block: str, route: Route) -> None:
        loads[block] = loads[block] + route.statistics.token_count.detach().cpu()

    for name, module in model.named_modules():
        if isinstance(module, Router):
            number = int(name.split(".layer.")[1].split(".")[0]) + 1
            kind = "attention" if name.endswith("attn_gate") else "feed-forward"
            block = f"layer {number} {kind}"
            loads[block] = torch.zeros(module.out_features)
            module.register_forward_hook(lambda _, __, route, block=block: count(block, route))
    return loads
