"""Shows a plan: tables for people, JSON for programs, bars of memory as a picture."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..config import RunConfig
from .machine import GIB
from .plan import SECONDS_A_DAY, Corpus, Plan, Prediction


def show(config: RunConfig, plan: Plan, corpus: Corpus | None) -> None:
    """Prints a plan: the recipe as it stands beside the recommended layout, then the others."""
    console = Console()
    console.print(_summary(config, plan, corpus))
    columns = {"as the recipe says": plan.recipe}
    if plan.best[0].layout != plan.recipe.layout:
        columns["recommended"] = plan.best[0]
    console.print(_comparison(plan, columns))
    console.print(_layouts(plan))
    if not plan.recipe.fits:
        console.print(
            f"The recipe as it stands does not fit: a rank needs "
            f"{plan.recipe.memory_total / GIB:.1f} GiB and has {plan.machine.memory_gib:g}."
        )
    console.print(f"Recommended: {_options(plan.best[0])}")


def _summary(config: RunConfig, plan: Plan, corpus: Corpus | None) -> Table:
    machine = plan.machine
    table = Table(title=f"Plan of {config.output_dir}", show_header=False)
    nodes = f"{machine.nodes} nodes of " if machine.nodes > 1 else ""
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in machine.tflops.items())
    table.add_row("machine", f"{machine.name}: {nodes}{machine.ranks_per_node} ranks")
    table.add_row("of a rank", f"{machine.memory_gib:g} GiB, TFLOP/s {rates}")
    table.add_row("teacher", f"{plan.teacher_parameters:,} parameters run")
    for name, count in plan.parameters.items():
        table.add_row(f"student {name}", f"{count:,} parameters")
    table.add_row("corpus", _describe_corpus(corpus))
    if plan.steps is not None:
        batch = plan.recipe.layout.global_batch
        table.add_row("steps", f"{plan.steps:,} of {batch:,} sequences")
    table.add_row("a checkpoint", _size(plan.checkpoint_bytes))
    table.add_row("exports", _size(plan.export_bytes))
    if plan.cache_bytes is not None:
        table.add_row("the teacher's cache", f"{_size(plan.cache_bytes)} in {config.teacher.cache}")
    return table


def _describe_corpus(corpus: Corpus | None) -> str:
    if corpus is None:
        return "not there, so no days and no price; give --tokens N"
    kind = "" if corpus.known else ", assumed"
    return f"{corpus.samples:,} samples of {corpus.mean_length:.0f} tokens{kind}"


def _comparison(plan: Plan, columns: dict[str, Prediction]) -> Table:
    table = Table("", *columns)
    predictions = list(columns.values())
    table.add_row(
        "layout", *(prediction.layout.describe() for prediction in predictions), end_section=True
    )
    for part in plan.recipe.memory:
        values = [prediction.memory[part] for prediction in predictions]
        if any(values):
            table.add_row(f"memory: {part}", *map(_size, values))
    table.add_row(
        "memory of a rank", *(_size(prediction.memory_total) for prediction in predictions)
    )
    table.add_row(
        "fits",
        *("yes" if prediction.fits else "no" for prediction in predictions),
        end_section=True,
    )
    for part in dict.fromkeys(part for prediction in predictions for part in prediction.seconds):
        table.add_row(
            f"time: {part}",
            *(_time(prediction.seconds.get(part, 0.0)) for prediction in predictions),
        )
    table.add_row("time of a step", *(_time(prediction.step_seconds) for prediction in predictions))
    rate = [prediction.layout.global_batch / prediction.step_seconds for prediction in predictions]
    table.add_row("sequences/s", *(f"{value:,.1f}" for value in rate))
    work = [prediction.tflops / prediction.step_seconds for prediction in predictions]
    table.add_row("TFLOP/s of a rank", *(f"{value:.3g}" for value in work), end_section=True)
    for kind in dict.fromkeys(kind for prediction in predictions for kind in prediction.traffic):
        sent = [
            prediction.traffic[kind].sent if kind in prediction.traffic else 0.0
            for prediction in predictions
        ]
        table.add_row(f"sent a step: {kind}", *map(_size, sent))
    if any(prediction.filling for prediction in predictions):
        filling = [prediction.filling / SECONDS_A_DAY for prediction in predictions]
        table.add_row("filling the cache", *map(_duration, filling))
    table.add_row("whole run", *(_duration(plan.days(prediction)) for prediction in predictions))
    if plan.price(predictions[0]) is not None:
        table.add_row("price", *(f"{plan.price(prediction):,.0f}" for prediction in predictions))
    return table


def _layouts(plan: Plan) -> Table:
    table = Table("layout that fits", "memory", "a step", "whole run")
    for prediction in plan.best:
        table.add_row(
            prediction.layout.describe(),
            _size(prediction.memory_total),
            _time(prediction.step_seconds),
            _duration(plan.days(prediction)),
        )
    return table


def _options(prediction: Prediction) -> str:
    """Formats the layout as options of ``distill``."""
    layout = prediction.layout
    options = [
        f"--zero_stage {layout.zero_stage}",
        f"--expert_parallel_size {layout.expert_parallel_size}",
        f"--per_device_train_batch_size {layout.micro_batch}",
        f"--num_grad_accum_steps {layout.accumulation}",
    ]
    if layout.teacher_layout != "replicated":
        options.append(f"teacher.layout={layout.teacher_layout}")
        options.append(f"teacher.parallel_size={layout.teacher_parallel_size}")
    return " ".join(options)


def _size(count: float) -> str:
    if count >= GIB:
        return f"{count / GIB:,.2f} GiB"
    return f"{count / (1 << 20):,.1f} MiB"


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.2f} ms"


def _duration(days: float | None) -> str:
    if days is None:
        return "-"
    minutes = days * 24 * 60
    if minutes < 60:
        return f"{minutes:,.1f} min"
    return f"{days:,.1f} days" if days >= 2 else f"{days * 24:,.1f} h"


def as_json(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """Returns a plan as JSON, in bytes and seconds."""
    return {
        "output_dir": config.output_dir,
        "machine": plan.machine.model_dump(mode="json"),
        "parameters": plan.parameters,
        "teacher_parameters": plan.teacher_parameters,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "export_bytes": plan.export_bytes,
        "cache_bytes": plan.cache_bytes,
        "steps": plan.steps,
        "recipe": _prediction_json(plan, plan.recipe),
        "recommended": _prediction_json(plan, plan.best[0]),
        "layouts": [_prediction_json(plan, prediction) for prediction in plan.best],
    }


def _prediction_json(plan: Plan, prediction: Prediction) -> dict[str, Any]:
    return {
        "layout": asdict(prediction.layout),
        "memory": prediction.memory,
        "memory_total": prediction.memory_total,
        "fits": prediction.fits,
        "seconds": prediction.seconds,
        "step_seconds": prediction.step_seconds,
        "filling_seconds": prediction.filling,
        "sent": {kind: exchange.sent for kind, exchange in prediction.traffic.items()},
        "days": plan.days(prediction),
        "price": plan.price(prediction),
    }


def draw(plans: Sequence[tuple[RunConfig, Plan]], path: Path) -> None:
    """Draws a rank's memory by part as stacked bars: the recipe, then the layouts that fit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(plans), 1, figsize=(11, 0.5 + 4 * len(plans)), squeeze=False, layout="constrained"
    )
    for axis, (config, plan) in zip(axes[:, 0], plans, strict=True):
        bars = {f"recipe: {plan.recipe.layout.describe()}": plan.recipe}
        bars |= {prediction.layout.describe(): prediction for prediction in plan.best}
        starts = [0.0] * len(bars)
        for part in plan.recipe.memory:
            sizes = [prediction.memory[part] / GIB for prediction in bars.values()]
            if any(sizes):
                axis.barh(list(bars), sizes, left=starts, label=part)
                starts = [start + size for start, size in zip(starts, sizes, strict=True)]
        axis.axvline(plan.machine.memory_gib, color="black", linestyle="--", label="of a rank")
        axis.invert_yaxis()
        axis.set_xlabel("GiB of a rank")
        axis.set_title(f"{config.output_dir} on {plan.machine.name}")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
