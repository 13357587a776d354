"""Draws a picture of what each layer keeps in each sub-model of a map."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .submodels import Sizes, SparsityMap, SubModelShape, sub_model_shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_LABELS = 14  # numbers in cells are readable up to so many sub-models


def draw_sub_models(sizes: Sizes, sparsity_map: SparsityMap, target: str | Path) -> None:
    """Draws kept heads and neurons by layer, hidden sizes and compute, as the suffix says.

    Args:
        sizes: of the whole model.
        sparsity_map: its map.
        target: the picture's file.

    Raises:
        ValueError: an entry of the map does not fit the sizes.
    """
    # Takes a second to import: only where something is drawn.
    from matplotlib.figure import Figure

    shapes = {name: sub_model_shape(sizes, sparsity_map, name) for name in sparsity_map}
    width = max(4.5, 0.42 * len(shapes) + 1.5)
    figure = Figure(figsize=(3 * width, 0.32 * sizes.layers + 2.8), layout="constrained")
    heads, neurons, hidden = figure.subplots(1, 3)
    kept_heads = [[s.layers[i].heads for s in shapes.values()] for i in range(sizes.layers)]
    kept_neurons = [[s.layers[i].neurons for s in shapes.values()] for i in range(sizes.layers)]
    _draw_kept(heads, "heads", kept_heads, sizes.heads, list(shapes))
    _draw_kept(neurons, "neurons", kept_neurons, sizes.neurons, list(shapes))
    _draw_sizes(hidden, sizes, shapes)
    figure.savefig(target, dpi=110)


def _draw_kept(
    axes: "Axes",
    kind: str,
    counts_by_layer: Sequence[Sequence[int]],
    total: int,
    names: Sequence[str],
) -> None:
    shares = [[count / total for count in row] for row in counts_by_layer]
    image = axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    if len(names) <= _MAX_LABELS:
        for row, counts in enumerate(counts_by_layer):
            for column, count in enumerate(counts):
                color = "black" if count > 0.6 * total else "white"
                axes.text(
                    column, row, str(count), ha="center", va="center", color=color, fontsize=7
                )
    axes.set(
        title=f"{kind} kept of {total}",
        xlabel="sub-model",
        ylabel="layer",
        xticks=range(len(names)),
        yticks=range(len(counts_by_layer)),
    )
    axes.set_xticklabels(names, rotation=60, fontsize=8)
    axes.figure.colorbar(image, ax=axes)


def _draw_sizes(axes: "Axes", sizes: Sizes, shapes: dict[str, SubModelShape]) -> None:
    names = list(shapes)
    axes.bar(names, [shape.hidden for shape in shapes.values()], color="C0", alpha=0.6)
    title = f"hidden size of {sizes.hidden} (bars), compute (dots)"
    axes.set(title=title, xlabel="sub-model", ylabel="hidden size")
    axes.set_xticks(range(len(names)), names, rotation=60, fontsize=8)
    compute = axes.twinx()
    costs = [shape.gmac(sizes.head_size) for shape in shapes.values()]
    compute.plot(names, costs, "o", color="C3")
    compute.set(ylabel="GMAC a sequence of 128", ylim=(0, None))
