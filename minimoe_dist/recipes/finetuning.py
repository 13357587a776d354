"""A run of ``minimoe-dist finetune`` on one task: its models and data, and its grid."""

import gc
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist
from torch import nn

from ..checkpoints.tasks import TaskModel, export_task_model, gives_signals, load_task_model
from ..config.commands import FinetuneOptions
from ..config.deepspeed_json import task_settings
from ..config.schema import HealthConfig
from ..corpus.tokenizing import embedding_rows, load_tokenizer
from ..data.tasks import Table, TaskData, similar_labels, unknown_in_words
from ..data.tasks.batches import steps_per_epoch
from ..data.tasks.encoding import EncodedTask, encode, unknown_share
from ..data.tasks.sources import folder_of, open_both, open_unlabelled
from ..errors import UserError
from ..exit_status import ExitStatus
from ..model_description import require_model
from ..runtime import Launch, logger
from ..train.distillation import Balance, Distiller
from ..train.engine import AdamW, StudentEngine
from ..train.finetuning import Tuning, TuningOptions
from ..train.finetuning_results import Cell, Grid, cell_result, data_facts
from ..train.health import HealthWatch, routers_of
from ..train.known_predictions import KnownPredictions, PredictionFiller
from ..train.loop import TrainingDivergedError, run_steps
from ..train.out_of_memory import naming_batch
from ..train.resuming import Checkpoints
from ..train.schedule import make_schedule
from ..train.scope import Scope
from ..train.task_objective import TaskObjective, TaskTeacher

_log = logger("finetune")
_MANY_UNKNOWN = 0.05


@dataclass(frozen=True)
class CellInputs:
    """The model, data and teacher that all cells of a task share."""

    source: TaskModel
    tokenizer: Any
    train: EncodedTask
    dev: EncodedTask
    references: list[Any]
    teacher: TaskTeacher | None
    known: KnownPredictions | None


class TaskRun:
    """One task: its grid, and what its cells share.

    Args:
        options: of the run.
        source: the task's name, or a table.
        launch: the processes.
        scope: of this rank.

    Raises:
        UserError: a file of the task is missing or has another layout.
    """

    def __init__(
        self, options: FinetuneOptions, source: str | Table, launch: Launch, scope: Scope
    ) -> None:
        self._options, self._launch, self._scope = options, launch, scope
        self._train, self._dev = open_both(source, options)
        self._unlabelled = open_unlabelled(self._train, options)
        self._epochs = options.epochs_of(self._train.task.kind)
        facts = {
            "epochs": self._epochs,
            **data_facts(self._train, self._dev, self._unlabelled),
            "model_contents": _contents(options.model_name_or_path, "model_name_or_path"),
            "teacher_contents": options.teacher and _contents(options.teacher, "teacher"),
            **_of_teacher(options, self._train.task.kind),
        }
        self._grid = Grid(folder_of(options, source), options, self._train.task, facts)

    def run(self) -> ExitStatus:
        """Trains the cells that remain, then sums up.

        Returns:
            ``STOPPED`` after a requested stop, ``FAILED`` where no cell had a finite loss.
        """
        remaining = self._grid.open()
        task = self._train.task
        if remaining:
            for data in (self._train, self._dev):
                _warn_of_unusable_rows(data)
            for labels in similar_labels(task.labels):
                spelt = ", ".join(map(ascii, labels))
                _log.warning("%s: %s are classes of their own", self._train.path, spelt)
            inputs = self._load_inputs()
            if inputs is None:
                return ExitStatus.STOPPED
            for number, cell in enumerate(remaining, start=1):
                _log.info("%s: cell %d of %d: %s", task.name, number, len(remaining), cell.label)
                rows = -(-cell.batch_size // self._launch.world_size)
                with naming_batch(
                    f"{rows} samples of up to {self._options.max_length} tokens a rank",
                    "lower batch_sizes or max_length, or take more ranks",
                ):
                    finished = self._tune(cell, inputs)
                gc.collect()  # what was closed is held in cycles
                if not finished:
                    return ExitStatus.STOPPED
        else:
            _log.info("%s: finished before", task.name)
        return ExitStatus.DONE if self._grid.finish(self._launch.world_size) else ExitStatus.FAILED

    def _tune(self, cell: Cell, inputs: CellInputs) -> bool:
        """Trains a cell, writes its result, and returns False after a requested stop."""
        tuning = self._make_tuning(cell, inputs)
        folder = self._grid.cell_folder(cell).checkpoints
        checkpoints = Checkpoints(folder, self._grid.facts_of(cell), self._scope.saving)
        diverged = False
        try:
            if not run_steps(tuning, tuning.options, checkpoints, self._scope.stop):
                return False
        except TrainingDivergedError as error:
            _log.warning("%s: %s", cell.label, error)
            diverged = True
        finally:
            tuning.close()
        if self._launch.rank == 0:
            if tuning.best_weights:
                export_task_model(
                    inputs.source,
                    tuning.best_weights,
                    self._grid.cell_folder(cell).model,
                    inputs.tokenizer,
                )
            self._grid.add(cell, cell_result(cell, tuning.state, diverged))
        dist.barrier()
        return True

    def _make_tuning(self, cell: Cell, inputs: CellInputs) -> Tuning:
        options, world_size, device = self._options, self._launch.world_size, self._scope.device
        rank_batch_size = -(-cell.batch_size // world_size)
        settings = task_settings(
            1 if options.precision == "bf16" else 0, options.precision, rank_batch_size, world_size
        )
        optimizer = AdamW(
            cell.learning_rate,
            options.weight_decay,
            max_gradient_norm=options.max_grad_norm,
        )
        model = inputs.source.copy(cell.seed)
        engine = StudentEngine("model", model, settings, optimizer, 1, device)
        steps = self._epochs * steps_per_epoch(len(inputs.train), cell.batch_size)
        distiller = Distiller(
            [engine],
            TaskObjective(inputs.teacher),
            make_schedule(
                options.lr_scheduler_type, cell.learning_rate, steps, options.warmup_proportion
            ),
            seed=cell.seed,
            device=device,
            balance=Balance(options.balance_coefficient),
        )
        return Tuning(
            distiller,
            inputs.train,
            inputs.dev,
            inputs.references,
            TuningOptions(
                cell.batch_size,
                options.eval_batch_size,
                self._epochs,
                options.patience,
                options.save_interval,
            ),
            HealthWatch(HealthConfig(), {engine.name: routers_of(model.config)}),
            teacher=options.teacher,
            known=inputs.known,
            seed=cell.seed,
            device=device,
            label=f"{self._train.task.name} {cell.label}",
            stream=sys.stderr if self._launch.rank == 0 else None,
        )

    def _load_inputs(self) -> CellInputs | None:
        """Reads what cells share; None where a stop was asked for."""
        options = self._options
        name = options.tokenizer_name_or_path or options.model_name_or_path
        tokenizer = load_tokenizer(name, options.do_lower_case)
        train = encode(self._train, tokenizer, options.max_length)
        dev = encode(self._dev, tokenizer, options.max_length)
        for data, encoded in ((self._train, train), (self._dev, dev)):
            _log_unseen_text(data, encoded, tokenizer, options.max_length)
        if self._unlabelled is not None:
            more = encode(self._unlabelled, tokenizer, options.max_length)
            _log_unseen_text(self._unlabelled, more, tokenizer, options.max_length)
            train = train.followed_by(more)
        source = load_task_model(
            options.model_name_or_path,
            self._train.task,
            with_relations=bool(options.relation_weight),
        )
        vocabulary = source.model.config.vocab_size
        rows = embedding_rows(tokenizer)
        if rows > vocabulary:
            raise UserError(
                f"tokenizer_name_or_path: {name} has ids up to {rows - 1}, the model rows of "
                f"embeddings for {vocabulary}; give the model's own tokenizer"
            )
        if options.relation_weight and not gives_signals(source.model):
            raise UserError(_no_signals_message("model_name_or_path", options.model_name_or_path))
        if source.fresh:
            _log.info(
                "%s has no trained %s: these start at random",
                options.model_name_or_path,
                " and ".join(sorted({_module_name(name) for name in source.fresh})),
            )
        teacher, known = self._load_teacher(), None
        if teacher is not None and not teacher.relation_weight:
            known = self._ask(teacher, train)
            if known is None:
                return None
            teacher = replace(teacher, model=None)  # whose memory is wanted elsewhere
        return CellInputs(source, tokenizer, train, dev, self._dev.labels, teacher, known)

    def _ask(self, teacher: TaskTeacher, train: EncodedTask) -> KnownPredictions | None:
        """Asks the teacher what it predicts, once for all cells; None after a requested stop."""
        assert teacher.model is not None
        return PredictionFiller(
            teacher.model,
            str(self._options.teacher),
            train,
            self._options.eval_batch_size,
            self._scope.device,
            sys.stderr if self._launch.rank == 0 else None,
        ).fill(self._scope.stop)

    def _load_teacher(self) -> TaskTeacher | None:
        options = self._options
        if options.teacher is None:
            return None
        with_relations = bool(options.relation_weight)
        loaded = load_task_model(options.teacher, self._train.task, with_relations=with_relations)
        head = sorted(name for name in loaded.fresh if not name.startswith("relation."))
        if head:
            raise UserError(
                f"teacher: {options.teacher} has no trained {head[0]}; fine-tune it on "
                f"{self._train.task.name} first"
            )
        if loaded.fresh or (with_relations and not gives_signals(loaded.model)):
            raise UserError(_no_signals_message("teacher", options.teacher))
        model: nn.Module = loaded.model.to(self._scope.device).requires_grad_(False)
        weight, temperature = options.of_teacher(self._train.task.kind)
        return TaskTeacher(
            model,
            weight,
            temperature,
            options.relation_weight,
            options.num_relation_heads,
        )


def _of_teacher(options: FinetuneOptions, kind: str) -> dict[str, float]:
    """Returns what a teacher's predictions count, as results have it; of none what it once was."""
    weight, temperature = options.of_teacher(kind) if options.teacher else (0.5, 1.0)
    return {"teacher_weight": weight, "temperature": temperature}


def _contents(path: str, option: str) -> str:
    return require_model(path, option, foreign=True).contents()


def _module_name(parameter: str) -> str:
    """Returns a parameter's module, as "pooler" of "bert.pooler.dense.weight"."""
    return parameter.removeprefix("bert.").removeprefix("model.").partition(".")[0]


def _no_signals_message(option: str, path: str) -> str:
    return (
        f"relation_weight: {option} {path} has no relation projections to compare (fine-tuning "
        "leaves them out); use relation_weight 0, or a plain model"
    )


def _log_unseen_text(data: TaskData, encoded: EncodedTask, tokenizer: Any, longest: int) -> None:
    """Logs what of a file the model does not get to see."""
    if encoded.cut:
        _log.info(
            "%s: %.3g %% of its samples are longer than %d tokens and lose their end%s",
            data.path,
            100 * encoded.cut / len(encoded),
            longest,
            "; words there count as untagged" if data.task.kind == "tagging" else "",
        )
    unknown = unknown_share(encoded, tokenizer)
    if unknown > _MANY_UNKNOWN:
        _log.warning(
            "%s: %.3g %% of its tokens are %s: the vocabulary does not know this text; a model of "
            "its language would",
            data.path,
            100 * unknown,
            tokenizer.unk_token,
        )


def _warn_of_unusable_rows(data: TaskData) -> None:
    if data.bad.count:
        _log.warning("%d rows left out; the first: %s", data.bad.count, data.bad.first)
    if data.task.unlearnt:
        _log.warning("%s: they count as wrong", unknown_in_words(data))
