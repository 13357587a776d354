"""Corpora and tasks of the study, made once in its folder."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from . import debian, texts
from .gathering import BEST, LABELLED
from .sizes import TEACHERS, Size
from .texts import Page


def make_texts(folder: Path, size: Size, seed: int, given: dict[str, Path], source: str | None):
    """Corpora and tasks; what is there is left as it is."""
    if (folder / "tasks.json").is_file():
        return
    # Before any text is made: a teacher that is not there is missed at once.
    tokenizers = {name: _tokenizer(name) for name in TEACHERS}
    to_learn, kept, _ = _split(folder, source)
    names = texts.write_tasks(kept, folder / "tasks", size.samples, seed)
    for name, place in given.items():
        texts.cut_given(name, place, folder / "tasks", size.samples)
    more = debian.documents(folder / "text") if size.packages == "all" else ()
    _build(folder, chain(to_learn, more), tokenizers)
    ordered = [name for name in texts.TASKS if name in (*names, *given)]
    (folder / "tasks.json").write_text(json.dumps(ordered) + "\n")


def make_more(folder: Path, size: Size, source: str | None) -> Path:
    """The folder whose corpora narrow students read: the study's, or one with packages beside it.

    It has the corpus of the small teacher's tokenizer alone.
    """
    if size.packages != "narrow":
        return folder
    more = folder / "more"
    parts = [more / "corpus" / f"small{part}.idx" for part in ("", "_heldout")]
    if not all(part.is_file() for part in parts):
        tokenizer = _tokenizer("small")
        documents = chain(_split(folder, source)[0], debian.documents(folder / "text"))
        _build(more, documents, {"small": tokenizer})
    return more


def _split(folder: Path, source: str | None) -> tuple[list[Any], list[Page], list[Page]]:
    """The pages of a folder, or else of Debian's package, as :func:`.texts.split` does."""
    return texts.split(Path(source) if source else texts.fetch(folder / "text"))


def _tokenizer(teacher: str) -> Any:
    from minimoe_dist.corpus.tokenizing import load_tokenizer

    return load_tokenizer(TEACHERS[teacher])


def _build(folder: Path, documents: Iterable[Any], tokenizers: Mapping[str, Any]) -> None:
    """Sentences once, then a corpus of each teacher's tokenizer."""
    from minimoe_dist.corpus.build import build_indexed, format_files
    from minimoe_dist.corpus.reading import ReadingOptions
    from minimoe_dist.corpus.sources import write_wiki

    raw = folder / "text" / "wiki_00"
    write_wiki(documents, str(raw))
    options = ReadingOptions(num_processors=os.cpu_count() or 1)
    format_files([str(raw)], str(folder / "formatted"), options)
    for name, tokenizer in tokenizers.items():
        result = build_indexed(
            [str(folder / "formatted" / "wiki_00.format")],
            str(folder / "corpus" / name),
            tokenizer,
            options,
            heldout_fraction=0.05,
            overwrite=True,
            tokenizer_name=TEACHERS[name],
        )
        for part, manifest in result.parts():
            print(f"{name} {part}: {manifest.summary()}")


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
    _, kept, others = _split(folder, source)
    texts.write_tasks(kept, place, size.samples, seed, size.best_dev)
    for name, path in given.items():
        texts.cut_given(name, path, place, size.samples)
    texts.write_more(kept, others, given, place, labelled, size.unlabelled, seed)
