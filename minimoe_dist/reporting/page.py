"""Renders runs as one self-contained HTML page, for light and dark, narrow and wide screens."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from .. import __version__
from .scales import number
from .sections import sections

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


def render(
    facts: Mapping[str, Any],
    title: str,
    states: Sequence[str] = (),
    refresh_seconds: int | None = None,
) -> str:
    """Renders the page as HTML text.

    Args:
        facts: result of :func:`.facts.collect`.
        title: its heading.
        states: of runs that are under way, in words.
        refresh_seconds: when a browser reads it again; None: never.
    """
    models = [{**model, "lines": list(_lines(model))} for model in facts["models"]]
    return _TEMPLATES.get_template("page.html.j2").render(
        title=title,
        runs=len(facts["runs"]),
        models=models,
        notes=facts["notes"],
        sections=sections(facts),
        states=states,
        refresh_seconds=refresh_seconds,
        version=__version__,
        date=datetime.now().strftime("%Y-%m-%d %H:%M:%S" if refresh_seconds else "%Y-%m-%d"),
    )


def _lines(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the labels and values of a model's card, as far as they are known."""
    for task, score in model.get("scores", {}).items():
        text = f"{score['mean']:.4f}"
        if score.get("deviation") is not None:
            text += f" ± {score['deviation']:.4f}"
        yield f"{task} ({score['metric']})", text
        if "share_of_teacher" in score:
            yield f"{task}, of the teacher's", f"{100 * score['share_of_teacher']:.1f} %"
    if "parameters" in model:
        yield "parameters", number(model["parameters"])
    if "gmac_of_128" in model:
        yield "compute, 128 tokens", f"{model['gmac_of_128']:.3g} GMAC"
    if "gmac_of_mean_length" in model:
        yield (
            f"compute, {model['mean_length']:.0f} tokens (mean)",
            f"{model['gmac_of_mean_length']:.3g} GMAC",
        )
    if "heldout_loss_after" in model:
        before = model.get("heldout_loss_before")
        text = f"{model['heldout_loss_after']:.4f}"
        yield "held-out loss", text if before is None else f"{before:.4f} → {text}"
    batches = model.get("speed", {}).get("batches") or []
    if batches:
        smallest = batches[0]
        yield (
            f"latency, batch {smallest['batch_size']}",
            f"{1000 * smallest['median_seconds']:.1f} ms",
        )
        best = max(batches, key=lambda b: b["sequences_per_second"])
        yield (
            "best throughput",
            f"{number(best['sequences_per_second'])} sequences/s (batch {best['batch_size']})",
        )
