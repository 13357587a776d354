"""Measures what reading costs: each kind of source, each compression, cutting and splitting.

    python benchmarks/reading.py text.txt --megabytes 16

The text (UTF-8, one paragraph a line, an empty line between documents) is written in each form
below a temporary folder and read back. Rates are megabytes of raw text a second of CPU time:
`cut` is the part that one process does for all, `documents` and `sentences` are done by as many
as there are, `sentences` including `documents` and the choice by length.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import zstandard

from minimoe_dist.corpus.blocks import Document, Problems
from minimoe_dist.corpus.reading import BlockOfSource, SentenceReader
from minimoe_dist.corpus.sentences import SentenceRules
from minimoe_dist.corpus.sources import choose_source, write_wiki
from minimoe_dist.corpus.streams import InputStream


def records(documents: Iterable[Document]) -> list[dict[str, str]]:
    return [
        {"id": str(number), "title": "", "text": "\n".join(document.lines)}
        for number, document in enumerate(documents)
    ]


def as_text(documents: list[Document]) -> str:
    return "\n\n".join("\n".join(document.lines) for document in documents) + "\n"


def as_lines(documents: list[Document]) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records(documents))


TEXTS: dict[str, Callable[[list[Document]], str]] = {
    "text": as_text,
    "jsonl": as_lines,
    "json": lambda documents: json.dumps(records(documents), ensure_ascii=False),
    "json, escaped": lambda documents: json.dumps({"RECORDS": records(documents)}),
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "text.gz": gzip.compress,
    "text.bz2": bz2.compress,
    "text.xz": lambda data: lzma.compress(data, preset=3),
    "text.zst": zstandard.ZstdCompressor().compress,
}


def rate(size: int, work: Callable[[], object]) -> str:
    """Megabytes a second of CPU time, the best of three."""
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return f"{size / 1e6 / min(seconds):8.0f}"


def measure(name: str, path: str, size: int) -> None:
    source = choose_source(InputStream(path))
    blocks = [BlockOfSource(source, block) for block in source.blocks(InputStream(path))]
    reader = SentenceReader(SentenceRules(), strict=True)
    problems = Problems(strict=True)
    print(
        f"{name:16}",
        rate(size, lambda: sum(1 for _ in source.blocks(InputStream(path)))),
        rate(size, lambda: [list(source.documents(work.block, problems)) for work in blocks]),
        rate(size, lambda: [reader(work) for work in blocks]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", help="UTF-8, one paragraph a line, empty lines between documents")
    parser.add_argument("--megabytes", type=float, default=16, help="how much of it")
    given = parser.parse_args()
    raw = Path(given.text).read_bytes()[: int(given.megabytes * 1e6)].decode("utf-8", "ignore")
    documents = [Document("", part.split("\n")) for part in raw.split("\n\n") if part]
    size = len(as_text(documents).encode())
    print(f"{size / 1e6:.1f} MB; MB/s of raw text\n{'':16}      cut documents sentences")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "wiki_00")
        write_wiki(documents, path)
        measure("wiki", path, size)
        for name, text in TEXTS.items():
            path = os.path.join(folder, name)
            Path(path).write_text(text(documents), encoding="utf-8")
            measure(name, path, size)
        for name, compress in COMPRESSIONS.items():
            path = os.path.join(folder, name)
            Path(path).write_bytes(compress(as_text(documents).encode()))
            measure(name, path, size)


if __name__ == "__main__":
    main()
