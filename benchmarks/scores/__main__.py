"""What distilled students are worth on tasks: the study of docs/results.md in one command.

    python -m benchmarks.scores [texts] [distil] [tune] [again] [long] [best] [states]
        [labelled] [best_again] [page]
        [--size look|cpu|gpu|gpus] [--sst2 FOLDER] [--ner FOLDER] [--folder runs/scores]
        [--seed 776] [--again 777]

(all parts but the long and the best ones by default.) ``texts``: prose of Python's documentation
and of Debian's linux-doc-6.1 as corpora of both teachers' tokenizers, and tasks made of pages that
are kept back; SST-2 and CoNLL where their folders are given. ``distil``: students by the 6-layer
teacher, for three lengths of training, by the 12-layer teacher, and, on GPUs, by assistants.
``tune``: teacher and students on each task with three seeds, from labels alone and with the
fine-tuned teacher's predictions. ``again``: the comparison of the teachers at equal steps with
another seed of distillation. ``long``: on CPUs, students that are distilled five times as long,
from a cache of the teacher's signals, an hour, and the 12-layer teacher's own scores. ``best``:
students that start from the teacher's weights, distilled as long as the longest, and fine-tuned
longer: from labels, and with the teacher's predictions of those and of texts without labels; beside
them, on labels, those as long that start at random weights (on CPUs of part ``long``).
``states``: students that learn the teacher's last states too, and on these labels what that brings;
experts go on from a plain one. ``labelled``: the best recipe's students, and those of ``states``,
where all those texts have labels, which their teacher learns first. ``best_again``: the best recipe
with another seed of distillation. ``page``: numbers, tables and pictures, of what is done. What was
interrupted goes on, and what is finished is not run again. ``look`` takes minutes and shows that
all of it runs; ``cpu`` is made for an hour on two cores, ``gpu`` for half an hour on one GPU,
``gpus`` for eight. Another seed is another study, in a folder of its own.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from . import gathering, page, texts
from .gathering import BEST, LABELLED, best_models
from .jobs import Job, run_all
from .sizes import LARGE, SIZES, SMALL, Run, Size, runs_again, runs_best, runs_of, runs_states

PARTS = (
    "texts",
    "distil",
    "tune",
    "again",
    "long",
    "best",
    "states",
    "labelled",
    "best_again",
    "page",
)
_BY_DEFAULT = ("texts", "distil", "tune", "again", "page")
RESULTS = Path(__file__).parents[2] / "docs" / "results"
TEACHERS = {"small": SMALL, "large": LARGE}
RATES = {"teacher": "1e-4", "teacher_large": "5e-5", "student": "3e-4"}
# Of the loss with a fine-tuned teacher; the rest is of labels.
TEACHER_WEIGHT, TEMPERATURE = "0.9", "2"


def make_texts(folder: Path, size: Size, seed: int, given: dict[str, Path], source: str | None):
    """Corpora and tasks; what is there is left as it is."""
    if (folder / "tasks.json").is_file():
        return
    pages = Path(source) if source else texts.fetch(folder / "text")
    to_learn, kept, _ = texts.split(pages)
    names = texts.write_tasks(kept, folder / "tasks", size.samples, seed)
    for name, place in given.items():
        texts.cut_given(name, place, folder / "tasks", size.samples)
    _build(folder, to_learn)
    ordered = [name for name in texts.TASKS if name in (*names, *given)]
    (folder / "tasks.json").write_text(json.dumps(ordered) + "\n")


def _build(folder: Path, documents: Sequence[Any]) -> None:
    """Sentences once, then a corpus of each teacher's tokenizer."""
    from minimoe_dist.corpus.build import build_indexed, format_files
    from minimoe_dist.corpus.reading import ReadingOptions
    from minimoe_dist.corpus.sources import write_wiki
    from minimoe_dist.corpus.tokenizing import load_tokenizer

    raw = folder / "text" / "wiki_00"
    write_wiki(documents, str(raw))
    options = ReadingOptions(num_processors=os.cpu_count() or 1)
    format_files([str(raw)], str(folder / "formatted"), options)
    for name, teacher in TEACHERS.items():
        result = build_indexed(
            [str(folder / "formatted" / "wiki_00.format")],
            str(folder / "corpus" / name),
            load_tokenizer(teacher),
            options,
            heldout_fraction=0.05,
            overwrite=True,
            tokenizer_name=teacher,
        )
        for part, manifest in result.parts():
            print(f"{name} {part}: {manifest.summary()}")


def recipe_of(run: Run, size: Size, folder: Path, seed: int, corpora: Path | None = None) -> Path:
    """Writes a distillation's recipe; its corpora are those of the folder, or of another one."""
    name, _, student = run.teacher.partition("/")
    kind = name.partition("_")[0]  # an assistant's tokenizer is that of its own teacher
    teacher = str(folder / name / "export" / student) if student else TEACHERS[run.teacher]
    corpus = str((corpora or folder) / "corpus" / kind)
    recipe = {
        "model_type": "moebert_minilm",
        "output_dir": str(folder / run.name),
        "seed": seed + run.goes_on,  # of other pairs
        "teacher": {"model_name_or_path": teacher},
        "students": [
            {"name": name, **_placed(options, folder)} for name, options in run.students.items()
        ],
        "objective": {"num_relation_heads": 12, "state_weight": run.state_weight},
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


def distil_again(folder: Path, size: Size, seed: int, tasks: Sequence[str]) -> list[str]:
    """Another seed of the distillations that compare the teachers, on the same tasks."""
    again, runs = folder / f"again_{seed}", runs_again(size)
    failed = distil(again, size, seed, runs, folder)
    tunings = [
        _tuning(again, size, task, name, path, tasks=folder / "tasks")
        for task in tasks
        for name, path in exports_of(again, runs).items()
    ]
    return failed + run_all(tunings, size.lanes, size.ranks, again / "log.txt")


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


def models_of(folder: Path, size: Size, is_long: bool = False) -> dict[str, str]:
    """Name -> model, of all that a part fine-tunes: "run/student" of students."""
    exports = {
        f"{run.name}/{student}": str(folder / run.name / "export" / student)
        for run in runs_of(size)
        for student in run.students
        if student != "assistant" and run.is_cached is is_long
    }
    if is_long:
        return {"teacher_large": LARGE, **exports}
    return {"teacher": SMALL, **exports, "untaught": str(folder / "untaught")}


def tune(folder: Path, size: Size, tasks: Sequence[str], is_long: bool = False) -> list[str]:
    """Every model on every task from its labels; then the longest students with the teacher."""
    models, labels, taught = models_of(folder, size, is_long), [], []
    for task in tasks:
        for name, model in models.items():
            if name.startswith("teacher") or Path(model, "config.json").is_file():
                labels.append(_tuning(folder, size, task, name, model))
    for task in tasks:
        teacher = folder / "tuned" / f"teacher_{task}" / "export"
        for name, model in models.items():
            if name.startswith(("small/", "small_long")) and Path(model, "config.json").is_file():
                more = (
                    *("--teacher", str(teacher), "--teacher_weight", TEACHER_WEIGHT),
                    *("--temperature", TEMPERATURE),
                )
                taught.append(_tuning(folder, size, task, name, model, more))
    labels.sort(key=lambda job: -job.cost)  # teachers first: others wait for them
    failed = run_all(labels, size.lanes, size.ranks, folder / "log.txt")
    return failed + run_all(taught, size.lanes, size.ranks, folder / "log.txt")


def tune_best(folder: Path, size: Size, tasks: Sequence[str]) -> list[str]:
    """The best recipe's students beside random starts as long: labels; the teacher's texts too."""
    models = {"teacher": SMALL, **exports_of(folder, best_models(size))}
    failed = _tune_on_labels(folder, size, tasks, models)
    taught = _taught_best(folder, folder, size, tasks)
    return failed + run_all(taught, size.lanes, size.ranks, folder / "log.txt")


def _tune_on_labels(
    folder: Path, size: Size, tasks: Sequence[str], models: Mapping[str, str]
) -> list[str]:
    """Models by name on the few labels of the part ``best``; the teacher first."""
    best = folder / BEST
    jobs = [
        _tuning(best, size, task, name, model, tasks=best / "tasks", epochs=size.best_epochs)
        for task in tasks
        for name, model in models.items()
    ]
    jobs.sort(key=lambda job: -job.cost)
    return run_all(jobs, size.lanes, size.ranks, folder / "log.txt")


def write_best_tasks(
    folder: Path,
    size: Size,
    seed: int,
    tasks: Sequence[str],
    given: dict[str, Path],
    source: str | None,
) -> None:
    """The tasks again, of which more is scored, with more texts: without labels and with them."""
    place, labelled = (folder / part / "tasks" for part in (BEST, LABELLED))
    if all(any((labelled / task).glob("dev.*")) for task in tasks):
        return
    if (folder / BEST / "tuned").is_dir():
        sys.exit(f"{folder / BEST}: its scores are of other tasks than today's; move it away")
    for name in ("sst2", "ner"):
        if name in tasks and name not in given:
            sys.exit(f"best: the task {name} is made anew of its own files: give --{name} FOLDER")
    pages = Path(source) if source else texts.fetch(folder / "text")
    _, kept, others = texts.split(pages)
    texts.write_tasks(kept, place, size.samples, seed, size.best_dev)
    for name, path in given.items():
        texts.cut_given(name, path, place, size.samples)
    texts.write_more(kept, others, given, place, labelled, size.unlabelled, seed)


def _taught_best(folder: Path, distilled: Path, size: Size, tasks: Sequence[str]) -> list[Job]:
    """The best recipe's students of a folder, fine-tuned with the teacher and texts of another."""
    return [
        _tuning(
            distilled / BEST,
            size,
            task,
            name,
            model,
            (
                *("--teacher", str(folder / BEST / "tuned" / f"teacher_{task}" / "export")),
                *("--unlabelled", str(folder / BEST / "tasks" / task / texts.UNLABELLED)),
            ),
            folder / BEST / "tasks",
            size.more_epochs,
        )
        for task in tasks
        for name, model in exports_of(distilled, runs_best(size)).items()
    ]


def tune_labelled(folder: Path, size: Size, tasks: Sequence[str]) -> list[str]:
    """The best recipe's students on tasks of more labels: with a teacher of these, and alone.

    Those that learnt last states too, where they are there.
    """
    place, epochs = folder / LABELLED, size.more_epochs
    models = exports_of(folder, [*runs_best(size), *runs_states(size)[1:]])
    if not models:
        return [f"labelled: {folder} has no students of the best recipe; run the part best first"]
    one = replace(size, seeds=size.seeds[:1])  # of a teacher; it takes the longest by far
    failed = run_all(
        [
            _tuning(place, one, task, "teacher", SMALL, tasks=place / "tasks", epochs=epochs)
            for task in tasks
        ],
        size.lanes,
        size.ranks,
        folder / "log.txt",
    )
    students = [
        _tuning(place, size, task, name, model, more, place / "tasks", epochs)
        for task in tasks
        for more in (("--teacher", str(place / "tuned" / f"teacher_{task}" / "export")), ())
        for name, model in models.items()
    ]
    return failed + run_all(students, size.lanes, size.ranks, folder / "log.txt")


def tune_states(folder: Path, size: Size, tasks: Sequence[str]) -> list[str]:
    """Students that learnt last states on the labels of the part ``best``, and what they bring.

    Beside the best recipe's students, if these are there.
    """
    if not (folder / BEST / "tasks").is_dir():
        return [f"states: {folder / BEST} has no tasks; run the part best first"]
    models = exports_of(folder, [*runs_best(size), *runs_states(size)])
    return _tune_on_labels(folder, size, tasks, models)


def best_again(folder: Path, size: Size, seed: int, tasks: Sequence[str]) -> list[str]:
    """Another seed of the best recipe's distillations, fine-tuned with the teacher as the first."""
    again = folder / f"again_{seed}"
    failed = distil(again, size, seed, runs_best(size), folder)
    taught = _taught_best(folder, again, size, tasks)
    return failed + run_all(taught, size.lanes, size.ranks, again / "log.txt")


def exports_of(folder: Path, runs: Sequence[Run]) -> dict[str, str]:
    """Folders by "run/student", of all exports that are there."""
    exports = {
        f"{run.name}/{student}": folder / run.name / "export" / student
        for run in runs
        for student in run.students
    }
    return {name: str(path) for name, path in exports.items() if (path / "config.json").is_file()}


def _tuning(
    folder: Path,
    size: Size,
    task: str,
    name: str,
    model: str,
    more: tuple[str, ...] = (),
    tasks: Path | None = None,
    epochs: int | None = None,
) -> Job:
    kind = name if name.startswith("teacher") else "student"
    output = folder / "tuned" / f"{name.replace('/', '-')}{'_taught' if more else ''}_{task}"
    own = texts.TASKS[task].options
    source = "--dataset" if "--task" not in own else "--data_dir"
    return Job(
        f"tune {name} on {task}{' with the teacher' if more else ''}",
        (
            *("finetune", model, *own, source, str((tasks or folder / "tasks") / task)),
            *("--output_dir", str(output), "--max_length", str(size.task_length)),
            *("--num_train_epochs", str(epochs or size.epochs)),
            *("--seeds", ",".join(map(str, size.seeds))),
            *("--learning_rates", RATES[kind], "--batch_sizes", "32", "--precision", "bf16"),
            *more,
        ),
        output / "results.json",
        {"teacher": 4.0, "teacher_large": 24.0, "student": 1.5 if more else 1.0}[kind],
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.scores", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(_BY_DEFAULT), help=" ".join(PARTS))
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--text", help="folder of .rst or .rst.gz pages; default Debian's package")
    parser.add_argument("--sst2", type=Path, help="folder of GLUE's train.tsv and dev.tsv")
    parser.add_argument("--ner", type=Path, help="folder of CoNLL-2003's train.txt and valid.txt")
    parser.add_argument("--folder", type=Path, default=Path("runs/scores"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="numbers and picture")
    parser.add_argument("--seed", type=int, default=776, help="of tasks and distillations")
    parser.add_argument("--again", type=int, default=777, help="the other seed of distillation")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: give parts of {', '.join(PARTS)}")
    folder, size = options.folder.absolute(), SIZES[options.size]
    folder.mkdir(parents=True, exist_ok=True)
    given = {name: getattr(options, name) for name in ("sst2", "ner") if getattr(options, name)}
    failed: list[str] = []
    if "texts" in options.parts:
        make_texts(folder, size, options.seed, given, options.text)
    tasks = json.loads((folder / "tasks.json").read_text())
    short = [run for run in runs_of(size) if not run.is_cached]
    long = [run for run in runs_of(size) if run.is_cached]
    learnt = [task for task in tasks if task != "accept"]  # which no teacher has learnt
    if "distil" in options.parts:
        failed += distil(folder, size, options.seed, short)
        make_random(folder, size)
    if "tune" in options.parts:
        failed += tune(folder, size, tasks)
    if "again" in options.parts:
        failed += distil_again(folder, size, options.again, tasks)
    if "long" in options.parts:
        failed += distil(folder, size, options.seed, long)
        failed += tune(folder, size, tasks, is_long=True)
    if {"best", "labelled"} & set(options.parts):
        write_best_tasks(folder, size, options.seed, learnt, given, options.text)
    if "best" in options.parts:
        failed += distil(folder, size, options.seed, runs_best(size))
        failed += tune_best(folder, size, learnt)
    if "states" in options.parts:
        failed += distil(folder, size, options.seed, runs_states(size))
        failed += tune_states(folder, size, learnt)
    if "labelled" in options.parts:
        failed += tune_labelled(folder, size, learnt)
    if "best_again" in options.parts:
        failed += best_again(folder, size, options.again, learnt)
    if "page" in options.parts:
        found = gathering.gather(
            folder, size, tasks, {"size": options.size, "seed": options.seed}, options.again
        )
        options.results.mkdir(parents=True, exist_ok=True)
        path = options.results / "scores.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
        page.draw(found, path.with_suffix(".png"))
        print(page.table(found), page.table_again(found), sep="\n")
        if "best" in found:
            page.draw_best(found["best"], path.with_name("best_scores.png"))
            print(page.table(found["best"]), page.table_again(found["best"], False), sep="\n")
        if "labelled" in found:
            page.draw_best(found["labelled"], path.with_name("labelled_scores.png"))
            print(page.table(found["labelled"]))
    for words in failed:
        print(words, file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
