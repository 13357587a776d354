"""The results of fine-tuning: ``result.json`` of a cell, ``results.json`` of a run."""

from typing import Any

from pydantic import Field

from .folder import CellFolder, RunFolder
from .health import Condition, HealthRecord, conditions
from .options import SavedTuning
from .reading import Record


def cell_label(seed: int, learning_rate: float, batch_size: int) -> str:
    """Returns the settings of a cell, for people."""
    return f"seed {seed}, rate {learning_rate:g}, batch {batch_size}"


class EpochResult(Record):
    """An epoch of a cell: its number, mean loss, wall time and scores on the dev set by metric."""

    epoch: int
    train_loss: float | None = None
    seconds: float = 0.0
    scores: dict[str, float] = Field(default_factory=dict)


class BestResult(Record):
    """A cell of the grid: one training.

    Attributes:
        best_epoch: whose weights are kept; None without any.
        score: by which cells are compared.
        scores: of that epoch, by metric.
        seconds: of training.
        diverged: whether its loss stayed not finite.
    """

    seed: int
    learning_rate: float
    batch_size: int
    best_epoch: int | None = None
    score: float | None = None
    scores: dict[str, float] | None = None
    seconds: float = 0.0
    diverged: bool = False

    @property
    def label(self) -> str:
        """The cell's settings, for people."""
        return cell_label(self.seed, self.learning_rate, self.batch_size)

    @property
    def setting(self) -> tuple[float, int]:
        """The learning rate and batch size, over whose seeds scores are averaged."""
        return self.learning_rate, self.batch_size

    def is_same_cell(self, other: "BestResult") -> bool:
        """Returns whether both are results of the same cell."""
        return (self.seed, self.setting) == (other.seed, other.setting)


class CellResult(BestResult):
    """A cell with all of its epochs, and what was wrong in its training."""

    epochs: list[EpochResult] = Field(default_factory=list)
    health: list[HealthRecord] = Field(default_factory=list)

    def told(self) -> list[tuple[Condition, str]]:
        """Returns what was wrong, each with the words for it, the cell's settings among them."""
        return [
            (condition, f"{self.label}: {condition.describe()}")
            for condition in conditions(self.health)
        ]


class CellRecord(Record):
    """``result.json``: a cell that is done, and what its result is a function of."""

    facts: dict[str, Any]
    result: CellResult


class SettingResult(Record):
    """The scores of a learning rate and batch size over their seeds.

    Attributes:
        scores: of its seeds.
        mean: of them; None without any.
        deviation: the sample's; None for one seed.
    """

    learning_rate: float
    batch_size: int | None = None
    scores: list[float] = Field(default_factory=list)
    mean: float | None = None
    deviation: float | None = None


class TuningResults(Record):
    """The results of a fine-tuning run, ``results.json``.

    Attributes:
        format: of this file.
        task, kind, labels: of the task.
        metrics: the first of which is `metric`, by which the best cell was chosen.
        model: that was fine-tuned: folder or name.
        teacher: that it was distilled from on the task, or None.
        train_samples, dev_samples: their numbers; `rows_left_out` those that could not be used.
        unlabelled_samples: of which the teacher's predictions alone were learnt.
        rows_of_unknown_labels: dev samples whose label the training file lacks; they count as
            wrong.
        cells: all of the grid.
        settings: cells over seeds.
        best: the best cell.
        export: the best model's folder.
        world_size: ranks.
        options: of fine-tuning.
    """

    format: int = 1
    task: str
    kind: str | None = None
    labels: list[str] = Field(default_factory=list)
    metrics: list[str] = Field(default_factory=list)
    metric: str
    model: str
    teacher: str | None = None
    train_samples: int | None = None
    dev_samples: int | None = None
    unlabelled_samples: int = 0
    rows_left_out: dict[str, int] = Field(default_factory=dict)
    rows_of_unknown_labels: int = 0
    cells: list[CellResult] = Field(default_factory=list)
    settings: list[SettingResult] = Field(default_factory=list)
    best: BestResult | None = None
    export: str | None = None
    world_size: int | None = None
    options: SavedTuning = SavedTuning()

    @property
    def best_setting(self) -> SettingResult | None:
        """The learning rate and batch size with the best mean over seeds; None without a score."""
        scored = [setting for setting in self.settings if setting.mean is not None]
        return max(scored, key=lambda setting: setting.mean or 0.0, default=None)

    @property
    def open_ends(self) -> list[str]:
        """Says where the best setting lies at an end of what was tried, so that more may be better.

        One of its learning rate among several, and one of its epochs, where each of its cells was
        best after its last one.
        """
        if (best := self.best_setting) is None:
            return []
        found = []
        rates = sorted({setting.learning_rate for setting in self.settings})
        for end, name, beyond in (
            (rates[-1], "largest", "larger"),
            (rates[0], "smallest", "smaller"),
        ):
            if len(rates) > 1 and best.learning_rate == end:
                found.append(
                    f"the best rate, {end:g}, is the {name} that was tried: {beyond} ones may be "
                    "better (--learning_rates)"
                )
        cells = [
            cell
            for cell in self.cells
            if cell.setting == (best.learning_rate, best.batch_size) and cell.epochs
        ]
        if cells and all(cell.best_epoch == len(cell.epochs) for cell in cells):
            found.append(
                f"rate {best.learning_rate:g} is best after its last epoch: larger rates or more "
                "epochs may be better (--learning_rates, --num_train_epochs)"
            )
        return found


def finished_cells(run: RunFolder) -> list[CellResult]:
    """Reads the results of a run's cells that are done, by their folders' names.

    Raises:
        UserError: one of their files is damaged.
    """
    results = [CellFolder(path).result for path in sorted(run.cells.glob("*"))]
    return [CellRecord.read(path).result for path in results if path.is_file()]
