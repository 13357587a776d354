"""Builds what trains from a run's options: engines of its students, their step, its loop."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.writing import Ranks
from ..config import RunConfig, deepspeed_settings
from ..models.pretrained import encoder_dtype
from ..runs.folder import RunFolder
from ..runtime import Launch, logger
from ..train.agreement import decided_by_rank_0
from ..train.distillation import Balance, Distiller, Part
from ..train.engine import AdamW, StudentEngine
from ..train.fastest_passes import choose_passes
from ..train.kernels import use_layer_norms
from ..train.loop import LoopOptions
from ..train.resuming import Checkpoints
from ..train.schedule import make_schedule
from .model_types import Lesson, make_student

_log = logger("building")


def with_precision(config: RunConfig, device: torch.device) -> RunConfig:
    """Chooses a run's precision where it is open, for rank 0's device; a collective."""
    parallel = config.parallel
    if parallel.precision != "auto":
        return config
    dtype = encoder_dtype("auto", device) if parallel.zero_stage else torch.float32
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    precision = decided_by_rank_0(lambda: names[dtype])
    _log.info("precision auto: %s", precision)
    update = {"parallel": parallel.model_copy(update={"precision": precision})}
    return config.model_copy(update=update)


def make_distiller(
    config: RunConfig,
    lesson: Lesson,
    launch: Launch,
    device: torch.device,
    total_steps: int,
    mark: Callable[[Part], None] | None = None,
) -> Distiller:
    """Puts the students of a run under DeepSpeed, and makes their step.

    Args:
        config: the run; its precision is not open.
        lesson: what is taught.
        launch: the processes.
        device: of this rank.
        total_steps: of the learning rate's schedule.
        mark: see :class:`Distiller`.

    Raises:
        UserError: a student's options do not fit.
    """
    training = config.training
    optimizer = AdamW(
        training.learning_rate,
        training.weight_decay,
        (training.adam_beta1, training.adam_beta2),
        training.adam_epsilon,
        training.max_grad_norm,
        config.parallel.adamw,
        training.expert_rate_factor,
        training.router_rate_factor,
    )
    settings = deepspeed_settings(config, launch.world_size)
    students = []
    for index, options in enumerate(config.students):
        model = make_student(config, index, lesson)
        use_layer_norms(config.parallel.layer_norm, model)
        size = 1 if model.config.is_dense else config.parallel.expert_parallel_size
        students.append(StudentEngine(options.name, model, settings, optimizer, size, device))
    schedule = make_schedule(
        training.lr_scheduler_type,
        training.learning_rate,
        total_steps,
        training.warmup_proportion,
    )
    objective = lesson.objective
    compiles = config.parallel.compile == "auto"
    return Distiller(
        students,
        objective,
        schedule,
        seed=config.seed,
        device=device,
        balance=Balance(config.objective.balance_coefficient, config.compat == "seed"),
        passes=choose_passes(students, objective, config.seed, device, compiles),
        max_length=config.data.max_length,
        mark=mark,
    )


def loop_options(config: RunConfig, total_steps: int, device: torch.device) -> LoopOptions:
    """Returns when a run evaluates and saves, and when it gives up."""
    training = config.training
    return LoopOptions(
        total_steps,
        training.eval_interval,
        training.save_interval,
        max_bad_steps=training.max_bad_steps,
        reads_behind=device.type == "cuda",
    )


def run_checkpoints(
    config: RunConfig, ranks: Ranks, total_steps: int, contents: Mapping[str, Any]
) -> Checkpoints:
    """Opens a run's checkpoints; options, corpora, teacher and global batch must not change.

    Args:
        config: the run.
        ranks: the processes, as they save.
        total_steps: of the run.
        contents: JSON of what its corpora and its teacher are, wherever they lie.
    """
    return Checkpoints(
        RunFolder(Path(config.output_dir)).checkpoints,
        {
            **config.model_dump(mode="json"),
            "global_batch_size": config.global_batch_size(ranks.world_size),
            "total_steps": total_steps,
            **contents,
        },
        ranks,
        keep=config.training.keep_checkpoints,
        ends_at_failed_save=config.training.ends_at_failed_save,
        begins_anew=config.resume == "never",
        allow_changed_options=config.allow_changed_options,
    )
