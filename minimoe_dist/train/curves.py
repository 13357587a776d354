"""A run's picture: losses over the steps, and how its experts share the tokens."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..durable import written
from ..runs.health import conditions
from ..runs.metrics import HeldoutRecord, SavedMetrics, TrainingRecord
from ..runs.tuning import TuningResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_INCHES = (5.0, 3.6)


def draw_curves(metrics: SavedMetrics, target: str | Path) -> None:
    """Draws a run's metrics as a PNG, or what the target's suffix says.

    A dotted line stands where something began to be wrong.

    Args:
        metrics: of the run.
        target: the picture's file.
    """
    # Takes a second to import: only where something is drawn.
    from matplotlib.figure import Figure

    loads = _expert_shares(metrics.trained[-1]) if metrics.trained else {}
    panels = 1 + len(loads)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(panels * width, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_losses(axes[0], metrics.trained, metrics.evaluated)
    for step in sorted({condition.began.since for condition in conditions(metrics.health)}):
        axes[0].axvline(step, color="tab:red", linestyle=":", linewidth=1)
    for panel, (name, shares) in zip(axes[1:], loads.items(), strict=True):
        _draw_shares(panel, name, shares)
    _save(figure, Path(target))


def _draw_losses(
    axes: "Axes", trained: Sequence[TrainingRecord], evaluated: Sequence[HeldoutRecord]
) -> None:
    names = list(trained[-1].students) if trained else []
    only_relations = all(
        student.learns_relations_alone for record in trained for student in record.students.values()
    )
    part = "relation_loss" if only_relations else "loss"
    for index, name in enumerate(names):
        steps = [record.step for record in trained]
        losses = [_nan_for_null(record.students[name].loss_of(part)) for record in trained]
        label = f"{name}: " if len(names) > 1 else ""
        axes.plot(steps, losses, color=f"C{index}", alpha=0.5, label=f"{label}training")
        heldout = _heldout(evaluated, name)
        if heldout:
            axes.plot(
                *zip(*heldout, strict=True), "o-", color=f"C{index}", label=f"{label}held out"
            )
        _draw_sub_models(axes, evaluated, name, f"C{index}")
    axes.set(
        xlabel="step",
        ylabel="relation loss (KL a row)" if only_relations else "loss",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    if names:
        axes.legend()


def _heldout(evaluated: Sequence[HeldoutRecord], name: str) -> list[tuple[int, float]]:
    return [(record.step, _nan_for_null(record.heldout_loss.get(name))) for record in evaluated]


def _draw_sub_models(
    axes: "Axes", evaluated: Sequence[HeldoutRecord], student: str, color: str
) -> None:
    """Draws a thin line for each sub-model of a student, its size at the line's end."""
    sizes = re.compile(rf"{re.escape(student)}_(\d+l_\d+h)")
    for name in evaluated[-1].heldout_loss if evaluated else ():
        if match := sizes.fullmatch(name):
            heldout = _heldout(evaluated, name)
            axes.plot(*zip(*heldout, strict=True), "-", color=color, alpha=0.4, linewidth=0.8)
            axes.annotate(match[1], heldout[-1], fontsize=6, alpha=0.7)


def _nan_for_null(value: float | None) -> float:
    """Returns NaN for null, which leaves a gap in the line."""
    return math.nan if value is None else value


def _expert_shares(record: TrainingRecord) -> dict[str, list[list[float]]]:
    """Returns each block's share of tokens by expert, for students with experts."""
    shares = {}
    for name, student in record.students.items():
        blocks = [
            [tokens / max(1, sum(block)) for tokens in block] for block in student.tokens_per_expert
        ]
        if blocks:
            shares[name] = blocks
    return shares


def _draw_shares(axes: "Axes", name: str, shares: Sequence[Sequence[float]]) -> None:
    widest = max(len(block) for block in shares)
    # In units of an even share, so that blocks of different numbers of experts compare.
    grid = [
        [share * len(block) for share in block] + [math.nan] * (widest - len(block))
        for block in shares
    ]
    image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=2)
    for row, block in enumerate(grid):
        for column, value in enumerate(block):
            if widest <= 8 and not math.isnan(value):
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white")
    axes.set(
        title=f"{name}: tokens an expert (1 = even)",
        xlabel="expert",
        ylabel="block",
        xticks=range(widest) if widest <= 16 else [0, widest - 1],
        yticks=range(len(shares)),
    )
    axes.figure.colorbar(image, ax=axes)


def draw_task_curves(results: TuningResults, target: str | Path) -> None:
    """Draws a fine-tuning run: the score and the training loss of every cell by epoch.

    Args:
        results: of the run.
        target: the picture's file.
    """
    from matplotlib.figure import Figure

    width, height = _PANEL_INCHES
    figure = Figure(figsize=(2 * width, height), layout="constrained")
    scores, losses = figure.subplots(1, 2)
    for cell in results.cells:
        epochs = [record.epoch for record in cell.epochs]
        label = f"{cell.learning_rate:g}, batch {cell.batch_size}, seed {cell.seed}"
        cell_scores = [_nan_for_null(record.scores.get(results.metric)) for record in cell.epochs]
        scores.plot(epochs, cell_scores, "o-", label=label)
        losses.plot(epochs, [_nan_for_null(r.train_loss) for r in cell.epochs], "o-", label=label)
    # The picture's font has Latin letters; a name of others would be drawn as empty boxes.
    name = f"{results.task}, " if results.task.isascii() else ""
    scores.set(title=f"{name}dev", xlabel="epoch", ylabel=results.metric)
    losses.set(title=f"{name}training", xlabel="epoch", ylabel="loss")
    for axes in (scores, losses):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if 0 < len(results.cells) <= 12:
        scores.legend(fontsize="small")
    _save(figure, Path(target))


def _save(figure: "Figure", target: Path) -> None:
    with written(target) as aside:
        figure.savefig(aside, dpi=110, format=target.suffix.removeprefix("."))
