"""The study's text: prose to distil on, and tasks made of pages that are kept back from it.

Every fifth page is kept back. Of these pages come three tasks with labels that nobody had to write:
``topic``, of which part of the documentation a passage is; ``pages``, whether two passages are of
one page; ``accept``, whether a sentence is as its author wrote it, or two neighbouring words were
swapped, or a function word dropped or doubled. ``sst2`` and ``ner`` come from folders, where given.
"""

import csv
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .debian import unpacked

PACKAGE, PAGES = "linux-doc-6.1", "usr/share/doc/linux-doc-6.1/Documentation"
KEPT_BACK = 5  # every fifth page
TOPICS = 8
PASSAGE_WORDS = (12, 45)
SENTENCE_WORDS = (6, 30)
LONGEST_DEV = 1000
UNLABELLED = "unlabelled.txt"
_FUNCTION_WORDS = {
    *("a", "an", "the", "of", "to", "in", "on", "for", "with", "by", "at", "from"),
    *("is", "are", "was", "were", "be", "been", "has", "have", "had", "can", "will", "must"),
    *("may", "should", "not", "and", "or", "but", "if", "when", "that", "which", "this", "it"),
}


@dataclass(frozen=True)
class Task:
    """A task as `minimoe-dist finetune` is told of it.

    Attributes:
        name: of its folder too.
        metric: that decides.
        options: of the command line.
    """

    name: str
    metric: str
    options: tuple[str, ...]


TASKS = {
    "sst2": Task("sst2", "accuracy", ("--task", "sst2")),
    "accept": Task("accept", "Matthews", ("--task", "cola")),
    "ner": Task("ner", "chunk F1", ("--task", "ner")),
    "topic": Task("topic", "accuracy", ("--text_columns", "text", "--label_column", "topic")),
    "pages": Task("pages", "accuracy", ("--text_columns", "one,other", "--label_column", "same")),
}


@dataclass(frozen=True)
class Page:
    """A page of documentation; its topic is the folder that it is in."""

    topic: str
    paragraphs: Sequence[str]


def fetch(folder: Path) -> Path:
    """The pages of Debian's package, unpacked below a folder."""
    return unpacked(PACKAGE, folder) / PAGES


def split(pages: Path) -> tuple[list[Any], list[Page], list[Page]]:
    """Documents to distil on, pages kept back by their place in each folder, and the others.

    The others are among the documents, beside Python's: text in the tasks' topics.
    """
    from minimoe_dist.corpus.sources import documentation_folder, python_documentation

    kept: list[Page] = []
    others: list[Page] = []
    to_learn = list(python_documentation())
    topics = [path for path in sorted(pages.iterdir()) if path.is_dir()]
    for topic in topics:
        if topic.name == "translations":
            continue
        try:
            documents = list(documentation_folder(topic))
        except ValueError:  # a folder of pictures or programs
            continue
        for number, document in enumerate(documents):
            if number % KEPT_BACK:
                to_learn.append(document)
            (others if number % KEPT_BACK else kept).append(Page(topic.name, document.lines))
    return to_learn, kept, others


def write_more(
    pages: Sequence[Page],
    others: Sequence[Page],
    given: dict[str, Path],
    folder: Path,
    labelled: Path,
    count: int,
    seed: int,
) -> None:
    """Writes more samples of the tasks to train on: of pages, and of given ones.

    Their texts alone beside each task; and with their labels, behind its own samples, as another
    task of that name, whose samples to score on are the same. No text is one that the task's
    samples are of, and none is of a page that is scored on.

    Args:
        pages: kept back from distilling.
        others: that were distilled on, whose passages are put behind those of the pages.
        given: folders of SST-2 and CoNLL-2003, where they are.
        folder: of the tasks.
        labelled: folder of those with more labels.
        count: samples of each, at most.
        seed: of the tasks.
    """
    order, cut, _ = _shuffled(pages, seed)
    train, chooser = order[cut:], random.Random(seed + 1)
    topics = set(_column_of(folder / "topic" / "train.tsv", 1))
    # Text -> what stands behind it in a line of its task; of names, the sentence's whole lines.
    more = {
        "topic": _shuffled_passages(train, topics, chooser),
        "pages": {
            f"{_one_line(one)}\t{_one_line(other)}": label
            for one, other, label in _pairs(train, count, chooser)
        },
    }
    for text, topic in _shuffled_passages(others, topics, chooser).items():
        more["topic"].setdefault(text, topic)
    if "sst2" in given:
        rows = _rows(given["sst2"] / "train.tsv", 2)[1:]
        more["sst2"] = {row[0]: row[1] for row in rows if len(row) == 2}
    if "ner" in given:
        more["ner"] = _sentences_of(given["ner"] / "train.txt")
    for name, found in more.items():
        used = _texts_of(folder / name)
        kept = {text: label for text, label in found.items() if text not in used}
        chosen = dict(list(kept.items())[:count])
        (folder / name / UNLABELLED).write_text("".join(f"{text}\n" for text in chosen), "utf-8")
        file = "{}.txt" if name == "ner" else "{}.tsv"
        parts = {part: (folder / name / file.format(part)).read_text("utf-8")
                 for part in ("train", "dev")}  # fmt: skip
        if name == "ner":
            parts["train"] += "".join(f"\n{lines}\n" for lines in chosen.values())
        else:
            parts["train"] += "".join(f"{text}\t{label}\n" for text, label in chosen.items())
        (labelled / name).mkdir(parents=True, exist_ok=True)
        for part, text in parts.items():
            (labelled / name / file.format(part)).write_text(text, "utf-8")


def _shuffled_passages(
    pages: Sequence[Page], topics: set[str], chooser: random.Random
) -> dict[str, str]:
    """Passage -> topic, of the first page that has it."""
    found: dict[str, str] = {}
    for page in pages:
        if page.topic in topics:
            for text in _passages(page):
                found.setdefault(_one_line(text), page.topic)
    passages = list(found.items())
    chooser.shuffle(passages)
    return dict(passages)


def _texts_of(task: Path) -> set[str]:
    """A task's texts and pairs of both parts, as a file of texts without labels has them."""
    if task.name == "ner":
        return _sentences_of(task / "train.txt").keys() | _sentences_of(task / "dev.txt").keys()
    columns = 2 if task.name == "pages" else 1
    parts = (_rows(task / f"{part}.tsv", columns) for part in ("train", "dev"))
    return {"\t".join(row) for rows in parts for row in rows}


def _shuffled(pages: Sequence[Page], seed: int) -> tuple[list[Page], int, random.Random]:
    """Pages in a random order, the number of those to score on, and what drew it."""
    chooser = random.Random(seed)
    order = list(pages)
    chooser.shuffle(order)
    return order, len(order) // 4, chooser


def write_tasks(
    pages: Sequence[Page],
    folder: Path,
    samples: int,
    seed: int = 776,
    dev_samples: int | None = None,
) -> list[str]:
    """Writes the three tasks of pages; no page is in both parts of one. Returns their names.

    Args:
        pages: kept back from distilling.
        folder: of the tasks.
        samples: to train on, at most.
        seed: of what is drawn.
        dev_samples: to score on, at most; by default a third as many, or 1,000.
    """
    order, cut, chooser = _shuffled(pages, seed)
    if dev_samples is None:
        dev_samples = min(LONGEST_DEV, samples // 3)
    for split_name, part, count in (
        ("train", order[cut:], samples),
        ("dev", order[:cut], dev_samples),
    ):
        rows = list(_topics(part, pages, count, chooser))
        _write_table(folder / "topic" / f"{split_name}.tsv", ("text", "topic"), rows)
        pairs = list(_pairs(part, count, chooser))
        _write_table(folder / "pages" / f"{split_name}.tsv", ("one", "other", "same"), pairs)
        sentences = list(_sentences(part, count, chooser))
        path = folder / "accept" / f"{split_name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"docs\t{label}\t\t{text}" for text, label in sentences]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    return ["topic", "pages", "accept"]


def cut_given(name: str, source: Path, folder: Path, samples: int) -> None:
    """The first samples of a task's own files: GLUE's SST-2, or CoNLL-2003's columns."""
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    if name == "sst2":
        lines = (source / "train.tsv").read_text("utf-8").splitlines()
        (target / "train.tsv").write_text("\n".join(lines[: samples + 1]) + "\n", "utf-8")
        (target / "dev.tsv").write_bytes((source / "dev.tsv").read_bytes())
        return
    for file, name_of_part, most in (
        ("train", "train", samples),
        ("valid", "dev", min(LONGEST_DEV, samples)),
    ):
        blocks = (source / f"{file}.txt").read_text("utf-8").split("\n\n")
        kept = [one for one in blocks if one.strip() and not one.startswith("-DOCSTART-")]
        (target / f"{name_of_part}.txt").write_text("\n\n".join(kept[:most]) + "\n", "utf-8")


def _passages(page: Page) -> list[str]:
    least, most = PASSAGE_WORDS
    words = (paragraph.split() for paragraph in page.paragraphs)
    return [" ".join(one[:most]) for one in words if len(one) >= least]


def _topics(
    part: Sequence[Page], pages: Sequence[Page], count: int, chooser: random.Random
) -> Iterator[tuple[str, str]]:
    """(passage, topic): equally many of each of the topics with most pages."""
    sizes: dict[str, int] = {}
    for page in pages:
        sizes[page.topic] = sizes.get(page.topic, 0) + 1
    largest = sorted(sizes, key=lambda topic: (-sizes[topic], topic))[:TOPICS]
    rows = []
    for topic in largest:
        passages = [text for page in part if page.topic == topic for text in _passages(page)]
        chooser.shuffle(passages)
        rows += [(text, topic) for text in passages[: count // TOPICS]]
    chooser.shuffle(rows)
    yield from rows


def _pairs(
    part: Sequence[Page], count: int, chooser: random.Random
) -> Iterator[tuple[str, str, str]]:
    """(passage, passage, "yes" or "no"): of one page, or of two, of one topic where they can."""
    long = [(page, texts) for page in part if len(texts := _passages(page)) >= 2]
    for number in range(count):
        page, texts = chooser.choice(long)
        one, other = chooser.sample(texts, 2)
        if number % 2:
            rivals = [(rival, found) for rival, found in long if rival is not page]
            near = [found for rival, found in rivals if rival.topic == page.topic]
            other = chooser.choice(chooser.choice(near or [found for _, found in rivals]))
        yield one, other, "no" if number % 2 else "yes"


def _sentences(
    part: Sequence[Page], count: int, chooser: random.Random
) -> Iterator[tuple[str, int]]:
    """(sentence, 1 as it was written or 0)."""
    least, most = SENTENCE_WORDS
    found = []
    for page in part:
        for paragraph in page.paragraphs:
            for text in re.split(r"(?<=[.!?])\s+", paragraph):
                words = text.split()
                if least <= len(words) <= most and re.fullmatch(r"[A-Z][\w ,'-]+\.", text):
                    found.append(words)
    chooser.shuffle(found)
    for number, words in enumerate(found[:count]):
        if number % 2:
            words = _spoilt(words, chooser)
        yield " ".join(words), 1 - number % 2


def _spoilt(words: Sequence[str], chooser: random.Random) -> list[str]:
    places = [at for at, word in enumerate(words) if word in _FUNCTION_WORDS]
    kind = chooser.choice(("swap", "drop", "double") if places else ("swap",))
    if kind == "swap":
        ways = [at for at in range(1, len(words) - 2) if words[at] != words[at + 1]]
        at = chooser.choice(ways or [1])
        return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]
    at = chooser.choice(places)
    return [*words[:at], *([words[at]] * 2 if kind == "double" else []), *words[at + 1 :]]


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow(columns)
        writer.writerows([_one_line(str(value)) for value in row] for row in rows)


def _one_line(text: str) -> str:
    return text.replace("\t", " ").replace("\n", " ")


def _rows(path: Path, columns: int) -> list[list[str]]:
    return [line.split("\t")[:columns] for line in path.read_text("utf-8").splitlines()]


def _column_of(path: Path, number: int) -> list[str]:
    return [row[number] for row in _rows(path, number + 1)]


def _sentences_of(path: Path) -> dict[str, str]:
    """The sentences of a file with a word a line: words between blanks -> their lines."""
    blocks = (block.strip("\n") for block in path.read_text("utf-8").split("\n\n"))
    kept = [one for one in blocks if one.strip() and not one.startswith("-DOCSTART-")]
    found: dict[str, str] = {}
    for one in kept:
        words = [line.split()[0] for line in one.splitlines() if line.strip()]
        found.setdefault(" ".join(words), one)
    return found
