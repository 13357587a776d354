"""What distilled students are worth on tasks: the study of docs/results.md in one command.

    python -m benchmarks.scores [texts] [distil] [tune] [again] [long] [best] [states]
        [narrow] [gap] [gap_again] [labelled] [best_again] [page]
        [--size look|cpu|gpu|gpus] [--sst2 FOLDER] [--ner FOLDER] [--folder runs/scores]
        [--tasks sst2 ner ...] [--seed 776] [--again 777]

(all parts but the long and the best ones by default.) ``texts``: prose of Python's documentation
and of Debian's linux-doc-6.1 as corpora of both teachers' tokenizers, and tasks made of pages that
are kept back; SST-2 and CoNLL where their folders are given. ``distil``: students by the 6-layer
teacher, for three lengths of training, by the 12-layer teacher, and, on GPUs, by assistants.
``tune``: teacher and students on each task with three seeds, from labels alone and with the
fine-tuned teacher's predictions. ``again``: the comparison of the teachers at equal steps with
another seed of distillation. ``long``: on CPUs, students that are distilled five times as long,
from a cache of the teacher's signals, an hour, and the 12-layer teacher's own scores. ``best``:
students of the recipes' kind, which start from the teacher's weights and learn its last states too,
distilled as long as the longest, and fine-tuned longer: from labels, and with the teacher's
predictions of those and of texts without labels; beside them, on labels, those as long that start
at random weights (on CPUs of part ``long``). ``states``: students that learn the teacher's last
states too, and on these labels what that brings; experts go on from a plain one. ``narrow``:
students so narrow that they stop to gain, and experts that go on from them, on the text of sixteen
packages more. ``gap``: both teachers at equal steps from their own weights, and assistants;
students are plain, have four or two experts, or all experts' neurons at every token. ``gap_again``:
with another seed, without assistants, with wider students. ``labelled``: the best recipe's
students, and those of ``states``, where all those texts have labels, which their teacher learns
first. ``best_again``: the best recipe with another seed of distillation. ``page``: numbers, tables
and pictures, of what is done. What was interrupted goes on, and what is finished is not run again.
``look`` takes minutes and shows that all of it runs; ``cpu`` is made for an hour on two cores,
``gpu`` for half an hour on one GPU, ``gpus`` for eight. Another seed is another study, in a folder
of its own.
"""

import argparse
import json
import sys
from pathlib import Path

from minimoe_dist.errors import UserError

from . import gathering, page
from .corpora import make_more, make_texts, write_best_tasks
from .distilling import distil, make_random
from .sizes import SIZES, runs_best, runs_gap, runs_narrow, runs_of, runs_states
from .texts import TASKS
from .tuning import (
    best_again,
    distil_again,
    gap_again,
    tune,
    tune_best,
    tune_labelled,
    tune_runs,
    tune_states,
)

PARTS = (
    "texts",
    "distil",
    "tune",
    "again",
    "long",
    "best",
    "states",
    "narrow",
    "gap",
    "gap_again",
    "labelled",
    "best_again",
    "page",
)
_BY_DEFAULT = ("texts", "distil", "tune", "again", "page")
RESULTS = Path(__file__).parents[2] / "docs" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.scores", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(_BY_DEFAULT), help=" ".join(PARTS))
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--text", help="folder of .rst or .rst.gz pages; default Debian's package")
    parser.add_argument("--sst2", type=Path, help="folder of GLUE's train.tsv and dev.tsv")
    parser.add_argument("--ner", type=Path, help="folder of CoNLL-2003's train.txt and valid.txt")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="of all parts; default all")
    parser.add_argument("--folder", type=Path, default=Path("runs/scores"))
    parser.add_argument("--results", type=Path, help="numbers and pictures; default docs/results")
    parser.add_argument("--seed", type=int, default=776, help="of tasks and distillations")
    parser.add_argument("--again", type=int, default=777, help="the other seed of distillation")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: give parts of {', '.join(PARTS)}")
    if options.tasks and not options.results and "page" in options.parts:
        parser.error("--tasks: the page is of all tasks; give --results FOLDER for one of some")
    folder, size = options.folder.absolute(), SIZES[options.size]
    given = {name: getattr(options, name) for name in ("sst2", "ner") if getattr(options, name)}
    failed: list[str] = []
    for name in {"sst2", "ner"} & set(options.tasks or ()) - given.keys():
        if not (folder / "tasks.json").is_file():
            parser.error(f"--tasks {name}: it is made of its own files; give --{name} FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    if "texts" in options.parts:
        make_texts(folder, size, options.seed, given, options.text)
    tasks = json.loads((folder / "tasks.json").read_text())
    if missing := set(options.tasks or ()) - set(tasks):
        parser.error(f"--tasks {' '.join(sorted(missing))}: {folder} has {' '.join(tasks)}")
    tasks = [task for task in tasks if task in (options.tasks or tasks)]
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
    if {"best", "narrow", "gap", "gap_again", "labelled"} & set(options.parts):
        write_best_tasks(folder, size, options.seed, learnt, given, options.text)
    if "best" in options.parts:
        failed += distil(folder, size, options.seed, runs_best(size))
        failed += tune_best(folder, size, learnt)
    if "states" in options.parts:
        failed += distil(folder, size, options.seed, runs_states(size))
        failed += tune_states(folder, size, learnt)
    if "narrow" in options.parts:
        corpora = make_more(folder, size, options.text)
        failed += distil(folder, size, options.seed, runs_narrow(size), corpora)
        failed += tune_runs(folder, size, learnt, runs_narrow(size))
    if "gap" in options.parts:
        failed += distil(folder, size, options.seed, runs_gap(size))
        failed += tune_runs(folder, size, learnt, runs_gap(size))
    if "gap_again" in options.parts:
        failed += gap_again(folder, size, options.again, learnt)
    if "labelled" in options.parts:
        failed += tune_labelled(folder, size, learnt)
    if "best_again" in options.parts:
        failed += best_again(folder, size, options.again, learnt)
    if "page" in options.parts:
        found = gathering.gather(
            folder, size, tasks, {"size": options.size, "seed": options.seed}, options.again
        )
        page.write(found, options.results or RESULTS)
    for words in failed:
        print(words, file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
