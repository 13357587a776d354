"""The grid of a fine-tuning run on the disk: its cells, their results, the best one's model.

<output_dir>/
    results.json                     all cells and the best one; see :meth:`Grid.results`
    curves.png                       scores and losses by epoch
    export/                          the best cell's model
    cells/seed1_lr2e-05_batch32/
        result.json                  of a cell that is done
        model/                       of the best one so far
        checkpoints/                 of one that is under way
"""

import json
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from ..config.changes import changed_options, in_words
from ..config.commands import FinetuneOptions
from ..data.tasks import Task, TaskData, unlearnt_rows
from ..durable import hash_file, replace_folder, set_aside, write_json
from ..errors import UserError
from ..runtime import logger
from .agreement import decided_by_rank_0
from .curves import draw_task_curves
from .finetuning import TuningState

FORMAT = 1
_log = logger("finetune")
# What tells a cell from another one, and what changes no result.
_NOT_FACTS = {
    "output_dir", "task", "data_dir", "dataset", "dev", "seeds", "learning_rates", "batch_sizes",
    "grid", "num_train_epochs", "eval_batch_size", "save_interval", "resume", "use_cpu",
    "timeout_seconds", "strict",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    seed: int
    learning_rate: float
    batch_size: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"seed{self.seed}_lr{self.learning_rate:g}_batch{self.batch_size}"

    @property
    def words(self) -> str:
        """For people."""
        return f"seed {self.seed}, rate {self.learning_rate:g}, batch {self.batch_size}"


def data_facts(train: TaskData, dev: TaskData) -> dict[str, Any]:
    """What a result hangs on besides options: the contents of both files."""
    facts = {
        "train_sha256": hash_file(train.path)["sha256"],
        "dev_sha256": hash_file(dev.path)["sha256"],
        "train_samples": len(train),
        "dev_samples": len(dev),
        "rows_left_out": {"train": train.bad.count, "dev": dev.bad.count},
    }
    unlearnt = unlearnt_rows(dev)
    # Absent where there are none, as in results from before such rows counted.
    return {**facts, "rows_of_unknown_labels": unlearnt} if unlearnt else facts


def cell_result(cell: Cell, state: TuningState, diverged: bool) -> dict[str, Any]:
    """A finished cell as it stands in ``results.json``."""
    best = state.epochs[state.best_epoch - 1] if state.best_epoch else None
    return {
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
    }


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
        self.folder, self.task = folder, task
        self._options = options
        given = options.model_dump(mode="json")
        kept = {name: value for name, value in given.items() if name not in _NOT_FACTS}
        self._facts = {**kept, "task": task.name, "labels": list(task.labels), **facts}
        self._results: dict[Cell, dict[str, Any]] = {}

    def cells(self) -> Iterator[Cell]:
        """All of them; seeds of one setting follow each other."""
        for batch_size in self._options.batch_sizes:
            for learning_rate in self._options.learning_rates:
                for seed in self._options.seeds:
                    yield Cell(seed, learning_rate, batch_size)

    def cell_folder(self, cell: Cell) -> Path:
        """Where a cell writes."""
        return self.folder / "cells" / cell.name

    def model_folder(self, cell: Cell) -> Path:
        """Where a cell's model goes first."""
        return self.cell_folder(cell) / "model"

    def facts_of(self, cell: Cell) -> dict[str, Any]:
        """What a cell's result is a function of."""
        return {**self._facts, "cell": cell.name}

    def open(self) -> list[Cell]:
        """Reads finished cells, and gives those that are left; a collective.

        Raises:
            UserError: a finished cell was trained with other options.
        """

        def finished() -> dict[Cell, dict[str, Any]]:
            if self._options.resume == "never":
                self._set_aside()
            return self._finished()

        self._results = decided_by_rank_0(finished)
        return [cell for cell in self.cells() if cell not in self._results]

    def _finished(self) -> dict[Cell, dict[str, Any]]:
        """Results of the cells that need no more training.

        Of a grid that changed the best one may be a cell whose model made way for a better one's.
        """
        self._results = self._read_all()
        best = self._best()
        if best is not None and not self._has_model(best):
            _log.warning("%s: its model is not there any more: trained again", best.words)
            del self._results[best]
        return self._results

    def _read_all(self) -> dict[Cell, dict[str, Any]]:
        return {cell: result for cell in self.cells() if (result := self._read(cell))}

    def _set_aside(self) -> None:
        cells = self.folder / "cells"
        if cells.is_dir():
            _log.warning("resume never: earlier cells are now in %s", set_aside(cells))

    def _read(self, cell: Cell) -> dict[str, Any] | None:
        path = self.cell_folder(cell) / "result.json"
        try:
            saved = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        changes = changed_options(saved["facts"], self.facts_of(cell))
        if changes:
            raise UserError(
                f"{path}: was trained with other options ({in_words(changes)}): give the former "
                "ones, --resume never, or another output_dir"
            )
        result: dict[str, Any] = saved["result"]
        return result

    def add(self, cell: Cell, result: dict[str, Any]) -> None:
        """Writes a finished cell; its model stays if it is the best one so far. On rank 0."""
        folder = self.cell_folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "result.json"
        write_json(path, {"facts": self.facts_of(cell), "result": result})
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        for best in folder.glob("best_of_epoch_*"):
            best.unlink()
        self._results[cell] = result
        self._keep_best()

    def _best(self) -> Cell | None:
        """The first one of the grid with the best score, rather one whose model is there."""
        scores = {
            cell: self._results[cell]["score"]
            for cell in self.cells()
            if cell in self._results and self._results[cell]["score"] is not None
        }
        return max(scores, key=lambda cell: (scores[cell], self._has_model(cell)), default=None)

    def _has_model(self, cell: Cell) -> bool:
        return self.model_folder(cell).is_dir() or self._exported() == cell

    def _exported(self) -> Cell | None:
        """Whose model is in ``export``: ``results.json`` tells, and is not there while it moves."""
        try:
            best = json.loads((self.folder / "results.json").read_text("utf-8"))["best"]
            return Cell(best["seed"], best["learning_rate"], best["batch_size"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _keep_best(self) -> None:
        best = self._best()
        for cell in self._results:
            if cell != best:
                shutil.rmtree(self.model_folder(cell), ignore_errors=True)

    def finish(self, world_size: int) -> bool:
        """Moves the best model to ``export``, sums up and shows a table; a collective.

        Returns:
            Whether there is a model at all.
        """
        return decided_by_rank_0(lambda: self._sum_up(world_size))

    def _sum_up(self, world_size: int) -> bool:
        # Read again, so that every start's order of cells is the grid's.
        self._results = self._read_all()
        best = self._best()
        path = self.folder / "results.json"
        if best is not None and self.model_folder(best).is_dir():
            path.unlink(missing_ok=True)
            replace_folder(self.model_folder(best), self.folder / "export")
        results = self.results(world_size)
        write_json(path, results)
        draw_task_curves(results, self.folder / "curves.png")
        show(results)
        _log.info("results in %s, best model in %s", path, self.folder / "export")
        return best is not None

    def results(self, world_size: int) -> dict[str, Any]:
        """``results.json``.

        Keys: ``format``; ``task``, ``kind``, ``labels``; ``metrics``, the first of which is
        ``metric``, by which the best cell was chosen; ``model``, ``teacher`` (or null);
        ``train_samples``, ``dev_samples``, ``rows_left_out``; ``rows_of_unknown_labels``, dev
        samples whose label the training file lacks, which count as wrong; ``cells`` (each with
        ``seed``,
        ``learning_rate``, ``batch_size``, ``epochs`` of ``epoch``, ``train_loss``, ``seconds`` and
        ``scores``, then ``best_epoch``, ``score``, ``scores``, ``seconds``, ``diverged``);
        ``settings`` (of each learning rate and batch size over seeds: ``mean``, ``deviation``,
        which is the sample's and null for one seed, ``scores``); ``best`` (the best cell, without
        its epochs); ``export``, the best model's folder; ``world_size``; ``options``.
        """
        best = self._best()
        winner = dict(self._results[best]) if best is not None else None
        if winner is not None:
            winner.pop("epochs")
        return {
            "format": FORMAT,
            "task": self.task.name,
            "kind": self.task.kind,
            "labels": list(self.task.labels),
            "metrics": list(self.task.metrics),
            "metric": self.task.metrics[0],
            "model": self._options.model_name_or_path,
            "teacher": self._options.teacher,
            **{
                name: self._facts[name]
                for name in ("train_samples", "dev_samples", "rows_left_out")
            },
            "rows_of_unknown_labels": self._facts.get("rows_of_unknown_labels", 0),
            "cells": list(self._results.values()),
            "settings": list(self._settings()),
            "best": winner,
            "export": str(self.folder / "export"),
            "world_size": world_size,
            "options": self._options.model_dump(mode="json"),
        }

    def _settings(self) -> Iterator[dict[str, Any]]:
        """Each learning rate and batch size, over its seeds."""
        settings: dict[tuple[float, int], list[float]] = {}
        for cell, result in self._results.items():
            scores = settings.setdefault((cell.learning_rate, cell.batch_size), [])
            if result["score"] is not None:
                scores.append(result["score"])
        for (learning_rate, batch_size), scores in settings.items():
            yield {
                "learning_rate": learning_rate,
                "batch_size": batch_size,
                "scores": scores,
                "mean": statistics.fmean(scores) if scores else None,
                "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
            }


def show(results: dict[str, Any]) -> None:
    """Prints the cells and the settings' means as a table."""
    console = Console()
    # Not the table's title, which is broken where it is longer than the table is wide.
    console.print(f"{results['task']}: {results['model']}", soft_wrap=True, highlight=False)
    table = RichTable()
    for column in ("rate", "batch", "seed", "epoch", *results["metrics"]):
        table.add_column(column.replace("_", " "), justify="right")
    for cell in results["cells"]:
        style = "bold" if results["best"] and _same(cell, results["best"]) else None
        scores = cell["scores"] or {}
        table.add_row(
            f"{cell['learning_rate']:g}",
            str(cell["batch_size"]),
            str(cell["seed"]),
            str(cell["best_epoch"]),
            *(f"{scores[name]:.4f}" if name in scores else "–" for name in results["metrics"]),
            style=style,
        )
    console.print(table)
    if results["rows_of_unknown_labels"]:
        console.print(
            f"{results['rows_of_unknown_labels']:,} of {results['dev_samples']:,} dev rows have "
            "labels that the training file lacks: they count as wrong",
            soft_wrap=True,
        )
    for setting in results["settings"]:
        if setting["deviation"] is not None:
            console.print(
                f"rate {setting['learning_rate']:g}, batch {setting['batch_size']}: "
                f"{results['metric']} {setting['mean']:.4f} ± {setting['deviation']:.4f} "
                f"over {len(setting['scores'])} seeds"
            )


def _same(cell: dict[str, Any], best: dict[str, Any]) -> bool:
    return all(cell[key] == best[key] for key in ("seed", "learning_rate", "batch_size"))
