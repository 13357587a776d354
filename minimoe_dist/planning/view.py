"""How a plan is shown: tables for people, JSON for programs, bars of memory as a picture."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..config import RunConfig
from .machine import GIB
from .plan import Corpus, Plan, Prediction


def show(config: RunConfig, plan: Plan, corpus: Corpus | None) -> None:
    """Prints a plan: the recipe as it stands beside the recommended layout, then the others."""
    console = Console()
    console.print(_summary(config, plan, corpus))
    columns = {"as the recipe says": plan.own}
    if plan.best[0].layout != plan.own.layout:
        columns["recommended"] = plan.best[0]
    console.print(_comparison(plan, columns))
    console.print(_layouts(plan))
    if not plan.own.fits:
        console.print(
            f"The recipe as it stands does not fit: a rank needs "
            f"{plan.own.memory_total / GIB:.1f} GiB and has {plan.machine.memory_gib:g}."
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
    table.add_row("corpus", _corpus_words(corpus))
    if plan.steps is not None:
        batch = plan.own.layout.global_batch
        table.add_row("steps", f"{plan.steps:,} of {batch:,} sequences")
    table.add_row("a checkpoint", _size(plan.checkpoint_bytes))
    table.add_row("exports", _size(plan.export_bytes))
    return table


def _corpus_words(corpus: Corpus | None) -> str:
    if corpus is None:
        return "not there, so no days and no price; give --tokens N"
    kind = "" if corpus.known else ", assumed"
    return f"{corpus.samples:,} samples of {corpus.mean_length:.0f} tokens{kind}"


def _comparison(plan: Plan, columns: dict[str, Prediction]) -> Table:
    table = Table("", *columns)
    predictions = list(columns.values())
    table.add_row("layout", *(one.layout.describe() for one in predictions), end_section=True)
    for part in plan.own.memory:
        values = [one.memory[part] for one in predictions]
        if any(values):
            table.add_row(f"memory: {part}", *map(_size, values))
    table.add_row("memory of a rank", *(_size(one.memory_total) for one in predictions))
    table.add_row("fits", *("yes" if one.fits else "no" for one in predictions), end_section=True)
    for part in dict.fromkeys(part for one in predictions for part in one.seconds):
        table.add_row(f"time: {part}", *(_time(one.seconds.get(part, 0.0)) for one in predictions))
    table.add_row("time of a step", *(_time(one.step_seconds) for one in predictions))
    rate = [one.layout.global_batch / one.step_seconds for one in predictions]
    table.add_row("sequences/s", *(f"{value:,.1f}" for value in rate))
    work = [one.tflops / one.step_seconds for one in predictions]
    table.add_row("TFLOP/s of a rank", *(f"{value:.3g}" for value in work), end_section=True)
    for kind in dict.fromkeys(kind for one in predictions for kind in one.traffic):
        sent = [one.traffic[kind].sent if kind in one.traffic else 0.0 for one in predictions]
        table.add_row(f"sent a step: {kind}", *map(_size, sent))
    table.add_row("days", *(_days(plan.days(one)) for one in predictions))
    if plan.price(predictions[0]) is not None:
        table.add_row("price", *(f"{plan.price(one):,.0f}" for one in predictions))
    return table


def _layouts(plan: Plan) -> Table:
    table = Table("layout that fits", "memory", "a step", "days")
    for one in plan.best:
        table.add_row(
            one.layout.describe(),
            _size(one.memory_total),
            _time(one.step_seconds),
            _days(plan.days(one)),
        )
    return table


def _options(prediction: Prediction) -> str:
    """The layout as options of ``distill``."""
    layout = prediction.layout
    words = [
        f"--zero_stage {layout.zero_stage}",
        f"--expert_parallel_size {layout.expert_parallel_size}",
        f"--per_device_train_batch_size {layout.micro_batch}",
        f"--num_grad_accum_steps {layout.accumulation}",
    ]
    if layout.teacher_layout != "replicated":
        words.append(f"teacher.layout={layout.teacher_layout}")
        words.append(f"teacher.parallel_size={layout.teacher_parallel_size}")
    return " ".join(words)


def _size(count: float) -> str:
    if count >= GIB:
        return f"{count / GIB:,.2f} GiB"
    return f"{count / (1 << 20):,.1f} MiB"


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.2f} ms"


def _days(days: float | None) -> str:
    if days is None:
        return "-"
    return f"{days:,.1f}" if days >= 1 else f"{days * 24:,.1f} h"


def as_json(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """All of a plan; bytes and seconds."""
    return {
        "output_dir": config.output_dir,
        "machine": plan.machine.model_dump(mode="json"),
        "parameters": plan.parameters,
        "teacher_parameters": plan.teacher_parameters,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "export_bytes": plan.export_bytes,
        "steps": plan.steps,
        "recipe": _prediction_json(plan, plan.own),
        "recommended": _prediction_json(plan, plan.best[0]),
        "layouts": [_prediction_json(plan, one) for one in plan.best],
    }


def _prediction_json(plan: Plan, prediction: Prediction) -> dict[str, Any]:
    return {
        "layout": asdict(prediction.layout),
        "memory": prediction.memory,
        "memory_total": prediction.memory_total,
        "fits": prediction.fits,
        "seconds": prediction.seconds,
        "step_seconds": prediction.step_seconds,
        "sent": {kind: one.sent for kind, one in prediction.traffic.items()},
        "days": plan.days(prediction),
        "price": plan.price(prediction),
    }


def draw(plans: Sequence[tuple[RunConfig, Plan]], path: Path) -> None:
    """Stacked bars of a rank's memory by part: the recipe, then the layouts that fit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(plans), 1, figsize=(11, 0.5 + 4 * len(plans)), squeeze=False, layout="constrained"
    )
    for axis, (config, plan) in zip(axes[:, 0], plans, strict=True):
        bars = {f"recipe: {plan.own.layout.describe()}": plan.own}
        bars |= {one.layout.describe(): one for one in plan.best}
        left = [0.0] * len(bars)
        for part in plan.own.memory:
            sizes = [one.memory[part] / GIB for one in bars.values()]
            if any(sizes):
                axis.barh(list(bars), sizes, left=left, label=part)
                left = [start + size for start, size in zip(left, sizes, strict=True)]
        axis.axvline(plan.machine.memory_gib, color="black", linestyle="--", label="of a rank")
        axis.invert_yaxis()
        axis.set_xlabel("GiB of a rank")
        axis.set_title(f"{config.output_dir} on {plan.machine.name}")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
