"""``minimoe-dist finetune``: a model on tasks, over a grid of seeds, learning rates and batches.

Each cell of the grid leaves ``cells/NAME/result.json`` when it is done; the best one's model is
``export``. Started again, the run goes on at the first cell that is not done, and in it where it
was saved.
"""

import gc
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checkpoints import run as checkpoints
from ..checkpoints.tasks import (
    TaskModel,
    export_task_model,
    gives_signals,
    load_task_model,
)
from ..checkpoints.tensors import save_tensors
from ..config.commands import FinetuneOptions
from ..config.deepspeed_json import task_settings
from ..corpus.tokenizing import embedding_rows, load_tokenizer
from ..data.tasks import Table, TaskData, unknown_in_words
from ..data.tasks.batches import steps_per_epoch
from ..data.tasks.encoding import EncodedTask, encode, unknown_share
from ..data.tasks.sources import folder_of, open_both, sources
from ..errors import UserError
from ..exit_status import ExitStatus
from ..runtime import Launch, logger
from ..train.agreement import decided_by_rank_0
from ..train.distillation import Balance, Distiller
from ..train.engine import AdamW, StudentEngine
from ..train.finetuning import Tuner, TuningOptions, TuningState
from ..train.finetuning_results import Cell, Grid, cell_result, data_facts
from ..train.loop import TrainingDivergedError
from ..train.progress import Progress
from ..train.schedule import make_schedule
from ..train.scope import Scope, only_run_in, started
from ..train.task_objective import TaskObjective, TaskTeacher

_log = logger("finetune")
_TAG_EPOCHS, _EPOCHS = 3, 10
_MANY_UNKNOWN = 0.05


def run(options: FinetuneOptions, launch: Launch) -> int:
    """Fine-tunes on every task that the options name.

    Returns:
        0 when done, 75 after a requested stop (saved; start again to go on), 1 when no cell of a
        task had a finite loss.
    """
    statuses = []
    with started(launch, use_cpu=options.use_cpu, timeout_seconds=options.timeout_seconds) as scope:
        for source in sources(options):
            with only_run_in(folder_of(options, source)):
                status = _TaskRun(options, source, launch, scope).to_the_end()
            if status == ExitStatus.STOPPED:
                scope.stop.ignore_from_now_on()
                return ExitStatus.STOPPED
            statuses.append(status)
    return max(statuses)


@dataclass(frozen=True)
class _Material:
    """What all cells of a task share."""

    source: TaskModel
    tokenizer: Any
    train: EncodedTask
    dev: EncodedTask
    references: list[Any]
    teacher: TaskTeacher | None


class _TaskRun:
    """One task: its grid, and what its cells share."""

    def __init__(
        self, options: FinetuneOptions, source: str | Table, launch: Launch, scope: Scope
    ) -> None:
        self.options, self.launch, self.scope = options, launch, scope
        self.train, self.dev = open_both(source, options)
        kind = self.train.task.kind
        self.epochs = options.num_train_epochs or (_TAG_EPOCHS if kind == "tagging" else _EPOCHS)
        facts = {"epochs": self.epochs, **data_facts(self.train, self.dev)}
        self.grid = Grid(folder_of(options, source), options, self.train.task, facts)

    def to_the_end(self) -> int:
        """Trains the cells that are left, then sums up."""
        left = self.grid.open()
        task = self.train.task
        if left:
            for data in (self.train, self.dev):
                _warn_of_bad_rows(data)
            material = self._material()
            for number, cell in enumerate(left, start=1):
                _log.info("%s: cell %d of %d: %s", task.name, number, len(left), cell.words)
                done = self._tune(cell, material)
                gc.collect()  # what was closed is held in cycles
                if not done:
                    _log.info("stopped in %s and saved", cell.words)
                    return ExitStatus.STOPPED
        else:
            _log.info("%s: finished before", task.name)
        return ExitStatus.DONE if self.grid.finish(self.launch.world_size) else ExitStatus.FAILED

    def _material(self) -> _Material:
        options = self.options
        name = options.tokenizer_name_or_path or options.model_name_or_path
        tokenizer = load_tokenizer(name, options.do_lower_case)
        train = encode(self.train, tokenizer, options.max_length)
        dev = encode(self.dev, tokenizer, options.max_length)
        for data, encoded in ((self.train, train), (self.dev, dev)):
            _tell_of_losses(data, encoded, tokenizer, options.max_length)
        source = load_task_model(
            options.model_name_or_path,
            self.train.task,
            with_relations=bool(options.relation_weight),
        )
        vocabulary = source.model.config.vocab_size
        if embedding_rows(tokenizer) > vocabulary:
            raise UserError(
                f"tokenizer_name_or_path: {name} has ids up to {embedding_rows(tokenizer) - 1}, "
                "the model rows of embeddings for "
                f"{vocabulary}; give the model's own tokenizer"
            )
        if options.relation_weight and not gives_signals(source.model):
            raise UserError(_no_signals("model_name_or_path", options.model_name_or_path))
        if source.fresh:
            _log.info(
                "%s has no trained %s: these start at random",
                options.model_name_or_path,
                " and ".join(sorted({_part_of(name) for name in source.fresh})),
            )
        return _Material(source, tokenizer, train, dev, self.dev.labels, self._teacher())

    def _teacher(self) -> TaskTeacher | None:
        options = self.options
        if options.teacher is None:
            return None
        with_relations = bool(options.relation_weight)
        loaded = load_task_model(options.teacher, self.train.task, with_relations=with_relations)
        head = sorted(name for name in loaded.fresh if not name.startswith("relation."))
        if head:
            raise UserError(
                f"teacher: {options.teacher} has no trained {head[0]}; fine-tune it on "
                f"{self.train.task.name} first"
            )
        if loaded.fresh or (with_relations and not gives_signals(loaded.model)):
            raise UserError(_no_signals("teacher", options.teacher))
        model: nn.Module = loaded.model.to(self.scope.device).requires_grad_(False)
        return TaskTeacher(
            model,
            options.teacher_weight,
            options.temperature,
            options.relation_weight,
            options.num_relation_heads,
        )

    def _tune(self, cell: Cell, material: _Material) -> bool:
        """Trains a cell; False after a requested stop."""
        tuner = self._tuner(cell, material)
        cell_run = _CellRun(self, cell, tuner)
        cell_run.resume()
        diverged = False
        try:
            while not tuner.state.ended(tuner.options):
                if not tuner.epoch(self.scope.stop):
                    cell_run.save()
                    return False
                cell_run.say()
                interval = self.options.save_interval
                if interval and tuner.state.done % interval == 0:
                    cell_run.try_to_save()
        except TrainingDivergedError as error:
            _log.warning("%s: %s", cell.words, error)
            diverged = True
        finally:
            tuner.close()
        if self.launch.rank == 0:
            result = cell_result(cell, tuner.state, diverged)
            if tuner.best_weights:
                folder = self.grid.cell_folder(cell).model
                export_task_model(material.source, tuner.best_weights, folder, material.tokenizer)
            self.grid.add(cell, result)
        dist.barrier()
        return True

    def _tuner(self, cell: Cell, material: _Material) -> Tuner:
        options, world_size = self.options, self.launch.world_size
        share = -(-cell.batch_size // world_size)
        settings = task_settings(
            1 if options.precision == "bf16" else 0, options.precision, share, world_size
        )
        optimizer = AdamW(
            cell.learning_rate,
            options.weight_decay,
            max_gradient_norm=options.max_grad_norm,
        )
        model = material.source.copy(cell.seed)
        engine = StudentEngine("model", model, settings, optimizer, 1, self.scope.device)
        steps = self.epochs * steps_per_epoch(len(material.train), cell.batch_size)
        distiller = Distiller(
            [engine],
            TaskObjective(material.teacher),
            make_schedule(
                options.lr_scheduler_type, cell.learning_rate, steps, options.warmup_proportion
            ),
            seed=cell.seed,
            device=self.scope.device,
            balance=Balance(options.balance_coefficient),
        )
        is_speaker = self.launch.rank == 0
        return Tuner(
            distiller,
            material.train,
            material.dev,
            material.references,
            TuningOptions(cell.batch_size, options.eval_batch_size, self.epochs, options.patience),
            seed=cell.seed,
            device=self.scope.device,
            progress=Progress(sys.stderr, steps, 0, "fine-tuning") if is_speaker else None,
        )


class _CellRun:
    """A cell's place on the disk while it is under way."""

    def __init__(self, task_run: _TaskRun, cell: Cell, tuner: Tuner) -> None:
        self._launch = task_run.launch
        self._facts = task_run.grid.facts_of(cell)
        self._folder = task_run.grid.cell_folder(cell)
        self._tuner = tuner
        self._written: Path | None = None  # the best weights' file, by this process
        self._words = f"{task_run.train.task.name} {cell.words}"

    def try_to_save(self) -> None:
        """Saves, or says that it could not, with which training goes on; a collective."""
        try:
            self.save()
        except OSError as error:
            step = self._tuner.state.step
            _log.error("step %d was not saved (%s); training goes on", step, error)

    def save(self) -> None:
        """Writes the state of the training, and the best weights so far; a collective.

        Raises:
            OSError: the disk is full or broken; earlier checkpoints are untouched.
        """
        tuner = self._tuner
        decided_by_rank_0(self._write_best)
        state = {"step": tuner.state.step, "state": tuner.state.as_json(), "facts": self._facts}
        ranks = checkpoints.Ranks(self._launch.rank, self._launch.world_size, dist.barrier)
        checkpoints.save_checkpoint(self._folder.checkpoints, [tuner.engine], state, ranks)

    def _write_best(self) -> None:
        """Writes the best weights if they are new.

        Raises:
            OSError: it could not.
        """
        best = self._best(self._tuner.state.best_epoch)
        if not self._tuner.best_weights or best == self._written:
            return
        try:
            self._folder.path.mkdir(parents=True, exist_ok=True)
            # An earlier checkpoint may name this file too.
            save_tensors(self._tuner.best_weights, best)
            self._written = best
        except OSError as error:
            raise OSError(f"{best}: {error}") from error

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint of the cell, if there is one; a collective."""
        best_weights: dict[str, Tensor] = {}

        def newest() -> tuple[Path, dict[str, Any]] | None:
            nonlocal best_weights
            try:
                found, best_weights = self._newest()
            except checkpoints.CheckpointError as error:
                _log.warning("%s; %s begins anew", error, self._words)
                return None
            return found

        found = decided_by_rank_0(newest)
        if found is not None:
            checkpoint, state = found
            checkpoints.load_checkpoint(checkpoint, [self._tuner.engine])
            self._tuner.resume(TuningState(**state), best_weights)
            _log.info("%s: resumed behind step %d", self._words, state["step"])

    def _newest(self) -> tuple[tuple[Path, dict[str, Any]] | None, dict[str, Tensor]]:
        """A checkpoint and its state, if there is one; and the best weights.

        Raises:
            CheckpointError: there are some, but none that can be used.
        """
        checkpoint = checkpoints.newest_whole_checkpoint(self._folder.checkpoints)
        if checkpoint is None:
            return None, {}
        saved = checkpoints.read_progress(checkpoint)
        if saved["facts"] != self._facts:
            raise checkpoints.CheckpointError(f"{checkpoint}: saved with other options")
        epoch = saved["state"]["best_epoch"]
        try:
            best_weights = load_file(self._best(epoch)) if epoch else {}
        except (OSError, SafetensorError) as error:
            raise checkpoints.CheckpointError(f"{self._best(epoch)}: unreadable") from error
        return (checkpoint, saved["state"]), best_weights

    def say(self) -> None:
        """One line an epoch."""
        self._tuner.say(self._words)

    def _best(self, epoch: int) -> Path:
        return self._folder.best_weights(epoch)


def _part_of(parameter: str) -> str:
    """As "pooler" of "bert.pooler.dense.weight"."""
    return parameter.removeprefix("bert.").partition(".")[0]


def _no_signals(option: str, path: str) -> str:
    return (
        f"relation_weight: {option} {path} has no relation projections to compare (fine-tuning "
        "leaves them out); use relation_weight 0, or a plain model"
    )


def _tell_of_losses(data: TaskData, encoded: EncodedTask, tokenizer: Any, longest: int) -> None:
    """What of a file the model does not get to see."""
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


def _warn_of_bad_rows(data: TaskData) -> None:
    if data.bad.count:
        _log.warning("%d rows left out; the first: %s", data.bad.count, data.bad.first)
    if data.task.unlearnt:
        _log.warning("%s: they count as wrong", unknown_in_words(data))
