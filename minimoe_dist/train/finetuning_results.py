"""The grid of a fine-tuning run on the disk: its cells, their results, the best one's model."""

import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from ..config.changes import changed_options, join_changes
from ..config.commands import FinetuneOptions
from ..data.tasks import Task, TaskData, unlearnt_rows
from ..durable import check_replaceable, hash_file, remove_folder, replace_folder, set_aside
from ..errors import UserError
from ..runs.folder import CellFolder, RunFolder
from ..runs.options import SavedTuning
from ..runs.tuning import (
    BestResult,
    CellRecord,
    CellResult,
    SettingResult,
    TuningResults,
    cell_label,
)
from ..runtime import logger
from .agreement import decided_by_rank_0
from .curves import draw_task_curves
from .finetuning import TuningState

FORMAT = 1
_MOST_TOLD = 10  # lines of what was wrong
_log = logger("finetune")
# What tells a cell from another one, and what changes no result.
_IGNORED_OPTIONS = {
    "output_dir", "task", "data_dir", "dataset", "dev", "seeds", "learning_rates", "batch_sizes",
    "grid", "num_train_epochs", "eval_batch_size", "save_interval", "resume", "use_cpu",
    "timeout_seconds", "strict", "model_name_or_path", "teacher", "unlabelled",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    seed: int
    learning_rate: float
    batch_size: int

    @property
    def name(self) -> str:
        """The name of the cell's folder."""
        return f"seed{self.seed}_lr{self.learning_rate:g}_batch{self.batch_size}"

    @property
    def label(self) -> str:
        """The cell's settings, for people."""
        return cell_label(self.seed, self.learning_rate, self.batch_size)


def data_facts(train: TaskData, dev: TaskData, unlabelled: TaskData | None) -> dict[str, Any]:
    """Returns what a result depends on besides options: the contents of its files."""
    facts = {
        "train_sha256": hash_file(train.path)["sha256"],
        "dev_sha256": hash_file(dev.path)["sha256"],
        "train_samples": len(train),
        "dev_samples": len(dev),
        "rows_left_out": {"train": train.bad.count, "dev": dev.bad.count},
    }
    if unlabelled is not None:
        # Absent without such a file, as in results from before there were any.
        facts["unlabelled_sha256"] = hash_file(unlabelled.path)["sha256"]
        facts["unlabelled_samples"] = len(unlabelled)
    unlearnt = unlearnt_rows(dev)
    # Absent where there are none, as in results from before such rows counted.
    return {**facts, "rows_of_unknown_labels": unlearnt} if unlearnt else facts


def cell_result(cell: Cell, state: TuningState, diverged: bool) -> CellResult:
    """Makes a finished cell's entry of ``results.json``."""
    best = state.epochs[state.best_epoch - 1] if state.best_epoch else None
    return CellResult.model_validate(
        {
            "seed": cell.seed,
            "learning_rate": cell.learning_rate,
            "batch_size": cell.batch_size,
            "epochs": state.epochs,
            "best_epoch": state.best_epoch or None,
            # Not the first of the scores: one that was resumed has them in another order.
            "score": state.best_score if best else None,
            "scores": best["scores"] if best else None,
            "seconds": sum(epoch["seconds"] for epoch in state.epochs),
            "diverged": diverged,
            "health": state.health,
        }
    )


class Grid:
    """The cells of one task in a folder.

    Args:
        folder: of the task's results.
        options: of the run.
        task: with its labels.
        facts: what all cells hang on besides options (:func:`data_facts`).
    """

    def __init__(
        self, folder: Path, options: FinetuneOptions, task: Task, facts: dict[str, Any]
    ) -> None:
        self.folder, self.task = RunFolder(folder), task
        self._options = options
        option_facts = {
            name: value for name, value in options.as_json().items() if name not in _IGNORED_OPTIONS
        }
        self._facts = {**option_facts, "task": task.name, "labels": list(task.labels), **facts}
        self._results: dict[Cell, CellResult] = {}

    def cells(self) -> Iterator[Cell]:
        """Yields all cells; seeds of one setting follow each other."""
        for batch_size in self._options.batch_sizes:
            for learning_rate in self._options.learning_rates:
                for seed in self._options.seeds:
                    yield Cell(seed, learning_rate, batch_size)

    def cell_folder(self, cell: Cell) -> CellFolder:
        """Returns where a cell writes; its model goes there first."""
        return self.folder.cell(cell.name)

    def facts_of(self, cell: Cell) -> dict[str, Any]:
        """Returns what a cell's result is a function of."""
        return {**self._facts, "cell": cell.name}

    def open(self) -> list[Cell]:
        """Reads finished cells, and returns those that remain; a collective.

        Raises:
            UserError: a finished cell was trained with other options.
        """

        def read_finished() -> dict[Cell, CellResult]:
            if self._options.resume == "never":
                self._set_aside()
            return self._finished()

        self._results = decided_by_rank_0(read_finished)
        return [cell for cell in self.cells() if cell not in self._results]

    def _finished(self) -> dict[Cell, CellResult]:
        """Returns the results of the cells that need no more training.

        Of a grid that changed the best one may be a cell whose model made way for a better one's.
        """
        self._results = self._read_all()
        best = self._best()
        if best is not None and not self._has_model(best):
            _log.warning("%s: its model is not there any more: trained again", best.label)
            del self._results[best]
        return self._results

    def _read_all(self) -> dict[Cell, CellResult]:
        return {cell: result for cell in self.cells() if (result := self._read(cell))}

    def _set_aside(self) -> None:
        if self.folder.cells.is_dir():
            _log.warning("resume never: earlier cells are now in %s", set_aside(self.folder.cells))

    def _read(self, cell: Cell) -> CellResult | None:
        path = self.cell_folder(cell).result
        saved = CellRecord.find(path)
        if saved is None:
            return None
        changes = changed_options(saved.facts, self.facts_of(cell))
        if changes:
            raise UserError(
                f"{path}: was trained with other options ({join_changes(changes)}): give the "
                "former ones, --resume never, or another output_dir"
            )
        return saved.result

    def add(self, cell: Cell, result: CellResult) -> None:
        """Writes a finished cell; its model stays if it is the best one so far. On rank 0."""
        folder = self.cell_folder(cell)
        folder.path.mkdir(parents=True, exist_ok=True)
        CellRecord(facts=self.facts_of(cell), result=result).write(folder.result)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        self._results[cell] = result
        self._keep_best()

    def _best(self) -> Cell | None:
        """Returns the first cell with the best score, of several one whose model is there."""
        scores = {
            cell: score
            for cell in self.cells()
            if cell in self._results and (score := self._results[cell].score) is not None
        }
        return max(scores, key=lambda cell: (scores[cell], self._has_model(cell)), default=None)

    def _has_model(self, cell: Cell) -> bool:
        return self.cell_folder(cell).model.is_dir() or self._exported() == cell

    def _exported(self) -> Cell | None:
        """Returns whose model is in ``export``; ``results.json`` tells, and goes while it moves."""
        results = TuningResults.find(self.folder.results)
        best = results.best if results else None
        return Cell(best.seed, best.learning_rate, best.batch_size) if best else None

    def _keep_best(self) -> None:
        best = self._best()
        for cell in self._results:
            if cell != best:
                remove_folder(self.cell_folder(cell).model)

    def finish(self, world_size: int) -> bool:
        """Moves the best model to ``export``, sums up and shows a table; a collective.

        Returns:
            Whether there is a model at all.
        """
        return decided_by_rank_0(lambda: self._sum_up(world_size))

    def _sum_up(self, world_size: int) -> bool:
        # Read again, so that every start's order of cells is the grid's.
        self._results = self._read_all()
        best, folder = self._best(), self.folder
        if best is not None and self.cell_folder(best).model.is_dir():
            check_replaceable(folder.exports)
            folder.results.unlink(missing_ok=True)
            replace_folder(self.cell_folder(best).model, folder.exports)
        results = self.results(world_size)
        results.write(folder.results)
        draw_task_curves(results, folder.curves)
        show(results)
        _log.info("results in %s, best model in %s", folder.results, folder.exports)
        return best is not None

    def results(self, world_size: int) -> TuningResults:
        """Makes what stands in ``results.json``; the best cell comes as its row of the table."""
        best = self._best()
        winner = (
            self._results[best].model_dump(exclude={"epochs", "health"})
            if best is not None
            else None
        )
        return TuningResults(
            format=FORMAT,
            task=self.task.name,
            kind=self.task.kind,
            labels=list(self.task.labels),
            metrics=list(self.task.metrics),
            metric=self.task.metrics[0],
            model=self._options.model_name_or_path,
            teacher=self._options.teacher,
            train_samples=self._facts["train_samples"],
            dev_samples=self._facts["dev_samples"],
            unlabelled_samples=self._facts.get("unlabelled_samples", 0),
            rows_left_out=self._facts["rows_left_out"],
            rows_of_unknown_labels=self._facts.get("rows_of_unknown_labels", 0),
            cells=list(self._results.values()),
            settings=list(self._settings()),
            best=winner and BestResult(**winner),
            export=str(self.folder.exports),
            world_size=world_size,
            options=SavedTuning.model_validate(self._options.as_json()),
        )

    def _settings(self) -> Iterator[SettingResult]:
        """Yields each learning rate and batch size, over its seeds."""
        settings: dict[tuple[float, int], list[float]] = {}
        for result in self._results.values():
            scores = settings.setdefault(result.setting, [])
            if result.score is not None:
                scores.append(result.score)
        for (learning_rate, batch_size), scores in settings.items():
            yield SettingResult(
                learning_rate=learning_rate,
                batch_size=batch_size,
                scores=scores,
                mean=statistics.fmean(scores) if scores else None,
                deviation=statistics.stdev(scores) if len(scores) > 1 else None,
            )


def show(results: TuningResults) -> None:
    """Prints the cells and the settings' means as a table."""
    console = Console()
    # Not the table's title, which is broken where it is longer than the table is wide.
    console.print(f"{results.task}: {results.model}", soft_wrap=True, highlight=False)
    table = RichTable()
    for column in ("rate", "batch", "seed", "epoch", *results.metrics):
        table.add_column(column.replace("_", " "), justify="right")
    for cell in results.cells:
        style = "bold" if results.best and cell.is_same_cell(results.best) else None
        scores = cell.scores or {}
        table.add_row(
            f"{cell.learning_rate:g}",
            str(cell.batch_size),
            str(cell.seed),
            str(cell.best_epoch),
            *(f"{scores[name]:.4f}" if name in scores else "–" for name in results.metrics),
            style=style,
        )
    console.print(table)
    told = [words for cell in results.cells for _, words in cell.told()]
    for words in told[:_MOST_TOLD]:
        console.print(words, soft_wrap=True, highlight=False)
    if len(told) > _MOST_TOLD:
        console.print(f"and {len(told) - _MOST_TOLD:,} more, in results.json")
    if results.rows_of_unknown_labels:
        console.print(
            f"{results.rows_of_unknown_labels:,} of {results.dev_samples:,} dev rows have labels "
            "that the training file lacks: they count as wrong",
            soft_wrap=True,
        )
    for setting in results.settings:
        if setting.deviation is not None:
            console.print(
                f"rate {setting.learning_rate:g}, batch {setting.batch_size}: "
                f"{results.metric} {setting.mean:.4f} ± {setting.deviation:.4f} "
                f"over {len(setting.scores)} seeds"
            )
    for words in results.open_ends:
        console.print(words, soft_wrap=True, highlight=False)
