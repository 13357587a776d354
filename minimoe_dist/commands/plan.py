"""``minimoe-dist plan``: what a run would need on a machine, before anything is started."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minimoe_dist.commands.plan_machine import described_machines, machine_of
from minimoe_dist.commands.plan_view import as_json, draw, show
from minimoe_dist.config import ConfigError, RunConfig, load_stages
from minimoe_dist.config.commands import PlanOptions
from minimoe_dist.data.indexed import IndexedCorpus, find_corpora
from minimoe_dist.data.pairs import PairSource
from minimoe_dist.errors import UserError
from minimoe_dist.planning.plan import Corpus, Plan, Planner, nothing_fits
from minimoe_dist.planning.sizes import student_json
from minimoe_dist.runtime import Launch

_SAMPLED_PAIRS = 512


def run(options: PlanOptions, launch: Launch) -> int:
    """Predicts every stage of a recipe, shows it and writes it where that is wanted.

    Returns:
        0.

    Raises:
        ConfigError: the recipe or the machine is wrong, or no layout fits.
    """
    stages = load_stages(options.recipe, options.overrides)
    machine = machine_of(options)
    to_come: dict[str, dict[str, Any]] = {}
    plans: list[tuple[RunConfig, Plan]] = []
    for config in stages:
        corpus = corpus_of(config, options.tokens)
        planner = Planner(config, corpus, to_come)
        plan = planner.plan(machine)
        if not plan.best:
            raise nothing_fits(planner, described_machines(), machine)
        plans.append((config, plan))
        show(config, plan, corpus)
        for student in config.students:
            to_come[config.export_folder(student.name)] = student_json(config, student, to_come)
    if options.output is not None:
        _write(Path(options.output), plans)
    return 0


def corpus_of(config: RunConfig, tokens: int | None) -> Corpus | None:
    """Samples and their length: of the recipe's corpora, or of so many tokens of text.

    Raises:
        ConfigError: a corpus that is there is damaged.
    """
    data = config.data
    if tokens is not None:
        # A chunk of a document that is cut short by its end, or aims at less, is on average this.
        length = data.max_length * (1 - data.short_sequence_probability / 2)
        return Corpus(max(1, round(tokens / length)), length, known=False)
    samples, total = 0, 0.0
    for entry in data.record_path_or_regex:
        try:
            prefixes = find_corpora(entry.path)
        except (UserError, OSError):
            return None
        for prefix in prefixes:
            pairs = PairSource(
                IndexedCorpus.open(prefix),
                data.max_length,
                config.seed,
                data.short_sequence_probability,
            )
            samples += pairs.num_samples
            total += pairs.num_samples * _mean_length(pairs)
    return Corpus(samples, total / samples)


def _mean_length(pairs: PairSource) -> float:
    step = max(1, pairs.num_samples // _SAMPLED_PAIRS)
    numbers = np.arange(0, pairs.num_samples, step)
    return float(pairs.draw(np.zeros_like(numbers), numbers).lengths.mean())


def _write(path: Path, plans: Sequence[tuple[RunConfig, Plan]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        content = [as_json(config, plan) for config, plan in plans]
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    elif path.suffix == ".png":
        draw(plans, path)
    else:
        raise ConfigError(f"--output: {path}: give a name that ends with .json or .png")
    print(f"written to {path}")
