"""Draws the pictures of a page, section by section, from the values of :mod:`.facts`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .facts import TEACHER
from .pictures import Axis, Mark, Picture, Series, bars, comparison, heat_map, line_chart
from .scales import number

_COMPUTE = Axis("GMAC of 128 tokens", logarithmic=True)
_MIB = 2**20
_MOST_CONDITIONS = 5  # told below a run's curves


@dataclass(frozen=True)
class Section:
    """A heading and its pictures."""

    title: str
    pictures: Sequence[Picture]


def sections(facts: Mapping[str, Any]) -> list[Section]:
    """Returns all sections that have pictures."""
    models, runs = facts["models"], facts["runs"]
    all_sections = [
        Section("Quality against compute", [*_scores(models), *_losses(models)]),
        Section("Share of the teacher's score kept", list(_shares(models))),
        Section("Speed and memory", list(_speed(models))),
        Section("Training curves", list(_curves(runs))),
        Section("Tokens of each expert", list(_experts(models, runs))),
        Section("Relation loss by relation and head", list(_relations(models))),
        Section("What each run cost", list(_costs(runs))),
        Section("Starts and how they ended", list(_starts(runs))),
    ]
    return [section for section in all_sections if section.pictures]


def _is_teacher(model: Mapping[str, Any]) -> bool:
    return bool(model["role"] == TEACHER)


def _scores(models: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    for task in _tasks(models):
        scored = [
            model for model in models if task in model.get("scores", {}) and "gmac_of_128" in model
        ]
        if not scored:
            continue
        metric = scored[0]["scores"][task]["metric"]
        marks = [
            Mark(
                model["name"],
                model["gmac_of_128"],
                model["scores"][task]["mean"],
                model["scores"][task]["deviation"],
                _is_teacher(model),
            )
            for model in scored
        ]
        seeds = sorted({model["scores"][task]["seeds"] for model in scored})
        yield comparison(
            f"{task}: {metric}",
            marks,
            _COMPUTE,
            Axis(str(metric)),
            f"Mean over {_or(seeds)} seed{'s' if seeds != [1] else ''} on the dev set, with the "
            "best learning rate and batch size of the grid; bars are one standard deviation. "
            "Models of equal compute stand side by side.",
        )


def _tasks(models: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({task for model in models for task in model.get("scores", {})})


def _or(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _losses(models: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    measured = [
        model for model in models if "heldout_loss_after" in model and "gmac_of_128" in model
    ]
    makings = list(dict.fromkeys(model.get("heldout_loss_of", "") for model in measured))
    for making in makings:
        marks = [
            Mark(model["name"], model["gmac_of_128"], model["heldout_loss_after"])
            for model in measured
            if model.get("heldout_loss_of", "") == making
        ]
        if len(marks) < 2:
            continue  # nothing to compare: its card tells the number
        yield comparison(
            "Held-out loss" if len(makings) == 1 else f"Held-out loss: {making}",
            marks,
            _COMPUTE,
            Axis("loss"),
            f"Of {making or 'the objective'}, after training; lower is better.",
        )


def _shares(models: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    for task in _tasks(models):
        shares = [
            (model["name"], model["scores"][task]["share_of_teacher"])
            for model in models
            if "share_of_teacher" in model.get("scores", {}).get(task, {})
        ]
        if shares:
            against = sorted(
                {
                    model["scores"][task]["held_against"]
                    for model in models
                    if "share_of_teacher" in model.get("scores", {}).get(task, {})
                }
            )
            yield bars(
                task,
                [(name, share, f"{100 * share:.1f} %") for name, share in shares],
                "share of the teacher's score",
                f"Held against {', '.join(against)}.",
                whole=(1.0, "100 %: the teacher"),
            )


def _speed(models: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    measured = [model for model in models if model.get("speed", {}).get("batches")]
    if not measured:
        return
    machine = measured[0].get("machine", {})
    machine_name = f"{machine.get('name')}" + (
        f", {machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
        if "threads" in machine
        else ""
    )
    lengths = sorted({model["speed"]["length"] for model in measured})
    repeats = min(model["speed"]["repeats"] for model in measured)
    how = f"{machine_name}; length {_or(lengths)}, no padding, float32; "
    batch = Axis("sequences of a batch", logarithmic=True)
    for title, key, factor, unit, note in (
        ("Latency of a batch", "median_seconds", 1000, "milliseconds", f"median of {repeats} "),
        ("Throughput", "sequences_per_second", 1, "sequences a second", f"median of {repeats} "),
    ):
        yield line_chart(
            title,
            _by_batch(measured, key, factor),
            batch,
            Axis(unit, logarithmic=True),
            f"{how}{note}passes after two that were not counted.",
        )
    with_memory = [
        model for model in measured if any(b.get("peak_bytes") for b in model["speed"]["batches"])
    ]
    if with_memory:
        yield line_chart(
            "Memory of a pass",
            _by_batch(with_memory, "peak_bytes", 1 / _MIB),
            batch,
            Axis("MiB", logarithmic=True),
            f"{how}peak above what the process held before its first pass, weights among it.",
        )


def _by_batch(models: Sequence[Mapping[str, Any]], key: str, factor: float) -> list[Series]:
    return [
        Series(
            model["name"],
            [
                (float(b["batch_size"]), float(b[key]) * factor)
                for b in model["speed"]["batches"]
                if b.get(key)
            ],
            place,
            dots=True,
            dashed=_is_teacher(model),
        )
        for place, model in enumerate(models)
    ]


def _curves(runs: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    for run in runs:
        series = []
        for place, curve in enumerate(run.get("curves", ())):
            name = curve["student"]
            series.append(Series(f"{name}, training", _points(curve["training"]), place))
            if curve["heldout"]:
                series.append(
                    Series(f"{name}, held out", _points(curve["heldout"]), place, True, True, True)
                )
        series = [line for line in series if line.points]
        conditions = run.get("health", ())
        if series:
            part = run["curves"][0]["part"].replace("_", " ")
            series += _marks(run["curves"], conditions)
            axes = (Axis("step", whole=True), Axis(part))
            yield line_chart(f"{run['name']}", series, *axes, _told(conditions))
        epochs = [
            Series(epoch_curve["name"], _points(epoch_curve["points"]), place, dots=True)
            for place, epoch_curve in enumerate(run.get("epochs", ()))
            if epoch_curve["points"]
        ]
        if epochs:
            yield line_chart(
                f"{run['name']}: {run['task']}",
                epochs,
                Axis("epoch", whole=True),
                Axis(str(run["metric"])),
                " ".join(["On the dev set, behind each epoch.", _told(conditions)]).strip(),
            )


def _marks(
    curves: Sequence[Mapping[str, Any]], conditions: Sequence[Mapping[str, Any]]
) -> list[Series]:
    """Marks on the curves where something began to be wrong: at the first record from there on."""
    points = [
        next((pair for pair in curve["training"] if pair[0] >= condition["since"]), None)
        for condition in conditions
        for curve in curves
        if condition["student"] in (None, curve["student"])
    ]
    marked = sorted({tuple(pair) for pair in points if pair is not None})
    name = "something was wrong from here"
    return [Series(name, _points(marked), len(curves), line=False, dots=True)] if marked else []


def _told(conditions: Sequence[Mapping[str, Any]]) -> str:
    """Returns what was wrong, the first few, for the note below a curve."""
    told = [f"{condition['told']}." for condition in conditions[:_MOST_CONDITIONS]]
    more = len(conditions) - len(told)
    return " ".join([*told, *([f"And {more:,} more."] if more else [])])


def _points(pairs: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in pairs]


def _experts(
    models: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> Iterator[Picture]:
    evaluated = [model for model in models if model.get("experts")]
    for model in evaluated:
        yield _load(model["name"], model["experts"], "On held-out text.")
    if not evaluated:
        for run in runs:
            for student, blocks in run.get("experts", {}).items():
                yield _load(
                    f"{run['name']}: {student}", blocks, "In the last steps that training wrote."
                )


def _load(name: str, blocks: Sequence[Mapping[str, Any]], source: str) -> Picture:
    even = []
    for block in blocks:
        total = sum(block["tokens"]) or 1
        even.append([count * len(block["tokens"]) / total for count in block["tokens"]])
    return heat_map(
        name,
        [block["block"].replace("feed-forward", "ffn") for block in blocks],
        even,
        "expert",
        2.0,
        f"{source} 1 is an even share, 2 (the full colour) twice as many tokens. "
        "ffn: feed-forward.",
    )


def _relations(models: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    compared = [model for model in models if "relations" in model]
    most = max(
        (max(map(max, model["relations"]["by_head"].values())) for model in compared), default=0
    )
    for model in compared:
        relations = model["relations"]
        means = {name: sum(heads) / len(heads) for name, heads in relations["by_head"].items()}
        yield heat_map(
            f"{model['name']}: {number(relations['loss'])}",
            [f"{name} {number(mean)}" for name, mean in means.items()],
            list(relations["by_head"].values()),
            "relation head",
            most or 1.0,
            f"KL in nats a row against {relations['teacher']}, {relations['sequences']} held-out "
            f"pairs; the full colour is {number(most)}. Behind each relation stands its mean.",
        )


def _costs(runs: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    timed = [run for run in runs if run.get("seconds")]
    if not timed:
        return
    values = []
    for run in timed:
        label = _time(run["seconds"])
        if "steps" in run:
            processes = run.get("world_size", 1)
            label += f", {run['steps']:,} steps"
            label += f" on {processes} processes" if processes > 1 else ""
        elif "trainings" in run:
            label += f", {run['trainings']} training{'s' if run['trainings'] != 1 else ''}"
        values.append((run["name"], float(run["seconds"]), label))
    yield bars(
        "Training time",
        values,
        "seconds",
        "Without starting, evaluating and saving for distillation.",
    )


def _starts(runs: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    """Draws the starts of runs that were started more than once."""
    for run in runs:
        ended = [start for start in run.get("starts", ()) if "end" in start]
        if len(ended) < 2:
            continue
        values = []
        for place, start in enumerate(ended, 1):
            ranks = start["world_size"]
            name = f"{place}: {ranks} rank{'s' * (ranks > 1)} on {len(start['hosts'])} host"
            name += "s" * (len(start["hosts"]) > 1)
            # The whole reason, with hosts and remedies, is in the page's JSON.
            end = start["end"].partition(":")[0]
            end += f" at step {start['step']:,}" if start["step"] is not None else ""
            values.append((name, float(start["seconds"]), f"{_time(start['seconds'])}, {end}"))
        yield bars(str(run["name"]), values, "seconds", "From each start to its end.")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
