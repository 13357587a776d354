"""The pictures of a page, section by section, from the values of :mod:`.facts`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .facts import TEACHER
from .pictures import Axis, Mark, Picture, Series, bars, comparison, heat_map, line_chart
from .scales import number

_COMPUTE = Axis("GMAC of 128 tokens", logarithmic=True)
_MIB = 2**20


@dataclass(frozen=True)
class Section:
    """A heading and its pictures; ``missing`` is said where there are none."""

    title: str
    pictures: Sequence[Picture]
    missing: str = ""


def sections(facts: Mapping[str, Any]) -> list[Section]:
    """All sections that have something to show, or something to say."""
    models, runs = facts["models"], facts["runs"]
    found = [
        Section("Quality against compute", [*_scores(models), *_losses(models)]),
        Section("Share of the teacher's score kept", list(_shares(models))),
        Section("Speed and memory", list(_speed(models))),
        Section("Training curves", list(_curves(runs))),
        Section("Tokens of each expert", list(_experts(models, runs))),
        Section("Relation loss by relation and head", list(_relations(models))),
        Section("What each run cost", list(_costs(runs))),
    ]
    return [one for one in found if one.pictures]


def _is_teacher(model: Mapping[str, Any]) -> bool:
    return bool(model["role"] == TEACHER)


def _scores(models: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    for task in _tasks(models):
        there = [one for one in models if task in one.get("scores", {}) and "gmac_of_128" in one]
        if not there:
            continue
        metric = there[0]["scores"][task]["metric"]
        marks = [
            Mark(
                one["name"],
                one["gmac_of_128"],
                one["scores"][task]["mean"],
                one["scores"][task]["deviation"],
                _is_teacher(one),
            )
            for one in there
        ]
        seeds = sorted({one["scores"][task]["seeds"] for one in there})
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
    return sorted({task for one in models for task in one.get("scores", {})})


def _or(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _losses(models: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    there = [one for one in models if "heldout_loss_after" in one and "gmac_of_128" in one]
    if len(there) < 2:
        return  # nothing to compare: its card tells the number
    marks = [Mark(one["name"], one["gmac_of_128"], one["heldout_loss_after"]) for one in there]
    yield comparison(
        "Held-out loss",
        marks,
        _COMPUTE,
        Axis("loss"),
        "Of each run's own objective, on its held-out text, after training; lower is better.",
    )


def _shares(models: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    for task in _tasks(models):
        kept = [
            (one["name"], one["scores"][task]["share_of_teacher"])
            for one in models
            if "share_of_teacher" in one.get("scores", {}).get(task, {})
        ]
        if kept:
            against = sorted(
                {
                    one["scores"][task]["held_against"]
                    for one in models
                    if "held_against" in one.get("scores", {}).get(task, {})
                }
            )
            yield bars(
                task,
                [(name, share, f"{100 * share:.1f} %") for name, share in kept],
                "share of the teacher's score",
                f"Held against {', '.join(against)}.",
            )


def _speed(models: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    there = [one for one in models if one.get("speed", {}).get("batches")]
    if not there:
        return
    machine = there[0].get("machine", {})
    told = f"{machine.get('name')}" + (
        f", {machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
        if "threads" in machine
        else ""
    )
    lengths = sorted({one["speed"]["length"] for one in there})
    repeats = min(one["speed"]["repeats"] for one in there)
    how = f"{told}; length {_or(lengths)}, no padding, float32; "
    batch = Axis("sequences of a batch", logarithmic=True)
    for title, key, factor, unit, note in (
        ("Latency of a batch", "median_seconds", 1000, "milliseconds", f"median of {repeats} "),
        ("Throughput", "sequences_per_second", 1, "sequences a second", f"median of {repeats} "),
    ):
        yield line_chart(
            title,
            _by_batch(there, key, factor),
            batch,
            Axis(unit, logarithmic=True),
            f"{how}{note}passes after two that were not counted.",
        )
    with_memory = [
        one for one in there if any(b.get("peak_bytes") for b in one["speed"]["batches"])
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
            one["name"],
            [
                (float(b["batch_size"]), float(b[key]) * factor)
                for b in one["speed"]["batches"]
                if b.get(key)
            ],
            place,
            dots=True,
            dashed=_is_teacher(one),
        )
        for place, one in enumerate(models)
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
        series = [one for one in series if one.points]
        if series:
            part = run["curves"][0]["part"].replace("_", " ")
            yield line_chart(f"{run['name']}", series, Axis("step", whole=True), Axis(part))
        epochs = [
            Series(one["name"], _points(one["points"]), place, dots=True)
            for place, one in enumerate(run.get("epochs", ()))
            if one["points"]
        ]
        if epochs:
            yield line_chart(
                f"{run['name']}: {run['task']}",
                epochs,
                Axis("epoch", whole=True),
                Axis(str(run["metric"])),
                "On the dev set, behind each epoch.",
            )


def _points(pairs: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in pairs]


def _experts(
    models: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> Iterator[Picture]:
    evaluated = [one for one in models if one.get("experts")]
    for one in evaluated:
        yield _load(one["name"], one["experts"], "On held-out text.")
    if not evaluated:
        for run in runs:
            for student, blocks in run.get("experts", {}).items():
                yield _load(
                    f"{run['name']}: {student}", blocks, "In the last steps that training wrote."
                )


def _load(name: str, blocks: Sequence[Mapping[str, Any]], where: str) -> Picture:
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
        f"{where} 1 is an even share, 2 (the full colour) twice as many tokens. ffn: feed-forward.",
    )


def _relations(models: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    there = [one for one in models if "relations" in one]
    most = max((max(map(max, one["relations"]["by_head"].values())) for one in there), default=0)
    for one in there:
        relations = one["relations"]
        means = {name: sum(heads) / len(heads) for name, heads in relations["by_head"].items()}
        yield heat_map(
            f"{one['name']}: {number(relations['loss'])}",
            [f"{name} {number(mean)}" for name, mean in means.items()],
            list(relations["by_head"].values()),
            "relation head",
            most or 1.0,
            f"KL in nats a row against {relations['teacher']}, {relations['sequences']} held-out "
            f"pairs; the full colour is {number(most)}. Behind each relation stands its mean.",
        )


def _costs(runs: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    timed = [one for one in runs if one.get("seconds")]
    if not timed:
        return
    values = []
    for one in timed:
        told = _time(one["seconds"])
        if "steps" in one:
            processes = one.get("world_size", 1)
            told += f", {one['steps']:,} steps"
            told += f" on {processes} processes" if processes > 1 else ""
        elif "trainings" in one:
            told += f", {one['trainings']} training{'s' if one['trainings'] != 1 else ''}"
        values.append((one["name"], float(one["seconds"]), told))
    yield bars(
        "Training time",
        values,
        "seconds",
        "Without starting, evaluating and saving for distillation.",
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
