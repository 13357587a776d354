"""The study's distillations: their recipes, and which waits for which."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .jobs import Job, run_all
from .sizes import TEACHERS, Run, Size


def recipe_of(run: Run, size: Size, folder: Path, seed: int, corpora: Path | None = None) -> Path:
    """Writes a distillation's recipe; its corpora are those of the folder, or of another one."""
    name, _, student = run.teacher.partition("/")
    kind = name.partition("_")[0]  # an assistant's tokenizer is that of its own teacher
    teacher = str(folder / name / "export" / student) if student else TEACHERS[run.teacher]
    corpus = str((corpora or folder) / "corpus" / kind)
    recipe = {
        "model_type": "moebert_minilm",
        "output_dir": str(folder / run.name),
        # Those that go on read other pairs, unless they share a cache, which is of one seed's.
        "seed": seed + int(run.goes_on and not run.is_cached),
        "teacher": {"model_name_or_path": teacher},
        "students": [
            {"name": name, **_placed(options, folder)} for name, options in run.students.items()
        ],
        "objective": {"num_relation_heads": run.relation_heads, "state_weight": run.state_weight},
        "data": {
            "record_path_or_regex": corpus,
            "heldout_path_or_regex": f"{corpus}_heldout",
            "max_length": size.length,
        },
        "training": {
            "per_device_train_batch_size": size.batch // size.ranks,
            "per_device_eval_batch_size": 64,
            "learning_rate": 1e-3,
            "expert_rate_factor": run.expert_rate_factor,
            "router_rate_factor": run.router_rate_factor,
            "max_steps": run.steps,
            "warmup_proportion": 0.05,
            "max_grad_norm": 5.0,
            "log_interval": 10,
            "save_interval": max(1, run.steps // 3),
            "eval_interval": max(1, run.steps // 3),
            "eval_sequences": 512,
        },
        "parallel": {"zero_stage": 1, "precision": "bf16"},
    }
    if run.is_cached:
        recipe["teacher"] |= {"cache": "int8", "cache_dir": str(folder / "cache")}
    path = folder / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def _placed(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A student's options, with the folder of what it starts from."""
    run, _, student = options.get("initial_weights", "").partition("/")
    start = {"initial_weights": str(folder / run / "export" / student)} if student else {}
    return {**options, **start}


def distil(
    folder: Path, size: Size, seed: int, runs: Sequence[Run], corpora: Path | None = None
) -> list[str]:
    """All distillations of a part; those that another one teaches or starts wait for it."""
    folder.mkdir(exist_ok=True)
    failed: list[str] = []
    for waits in (False, True):
        wave = [run for run in runs if ("/" in run.teacher or run.goes_on) is waits]
        jobs = [
            Job(
                f"distil {', '.join(run.students)} by {run.teacher}, {run.steps} steps",
                ("distill", "--config", str(recipe_of(run, size, folder, seed, corpora))),
                folder / run.name / "summary.json",
                # The large teacher's own pass takes most of a step.
                run.steps * (len(run.students) + (8 if run.teacher == "large" else 1)),
            )
            for run in wave
        ]
        jobs.sort(key=lambda job: -job.cost)
        failed += run_all(jobs, size.lanes, size.ranks, folder / "log.txt")
    return failed


def make_random(folder: Path, size: Size) -> None:
    """A student that has learnt nothing, with the tokenizer and size of another."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, BertModel

    like, target = folder / "small" / "export" / f"plain_{size.widths[0]}", folder / "untaught"
    if (target / "config.json").is_file() or not like.is_dir():
        return
    torch.manual_seed(1)
    BertModel(AutoConfig.from_pretrained(like)).save_pretrained(target)
    AutoTokenizer.from_pretrained(like).save_pretrained(target)


def exports_of(folder: Path, runs: Sequence[Run]) -> dict[str, str]:
    """Folders by "run/student", of all exports that are there."""
    exports = {
        f"{run.name}/{student}": folder / run.name / "export" / student
        for run in runs
        for student in run.students
    }
    return {name: str(path) for name, path in exports.items() if (path / "config.json").is_file()}
