"""Measures the loader: pairs a second, what it takes of the interpreter, what opening costs.

    python benchmarks/loader.py [--corpus PREFIX] [--batch 128] [--json FILE]

Without a corpus, one of random ids is written to a temporary folder: 400,000 sentences in documents
of 20 to 2,000. Each figure is the best of some repeats. Rates are those of whole micro-batches,
drawn, laid out and masked: in one thread, and in two that read at the same time; by the clock, and
by the threads' own processor time, which other programs on the machine disturb less.

Two figures say what is taken of the interpreter. In `beside`, two threads read without a pause
while a third runs Python: how much slower is that, and how fast are the readers? In `step`, 8 ms of
Python follow each micro-batch, as a training step does: how much slower is that while the next ones
are read ahead, and how long are they waited for?
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

VOCABULARY = 30522
LENGTHS = (64, 128, 256, 512)
STEP_SECONDS = 0.008
STEPS = 100
PIECE_SECONDS = 0.05
KINDS = {"plain": ("bert_nil", False), "masked": ("bert_mlm", False), "words": ("bert_mlm", True)}


def write_corpus(prefix: str, sentences: int = 400_000) -> None:
    """Random ids in sentences and documents of lengths that texts have."""
    from minimoe_dist.data.indexed_writing import IndexedCorpusWriter

    random = np.random.default_rng(0)
    with IndexedCorpusWriter(prefix, VOCABULARY) as writer:
        while sentences > 0:
            count = min(sentences, int(random.integers(20, 2001)))
            lengths = np.clip(random.lognormal(2.9, 0.6, count), 1, 400).astype(np.int64)
            ids = random.integers(1000, VOCABULARY, int(lengths.sum()))
            writer.add_documents(ids, lengths, np.array([count]))
            sentences -= count


def make_loader(prefix: str, length: int, kind: str, batch: int, prefetch_steps: int = 0) -> Any:
    from minimoe_dist.data.batches import SpecialTokens, build_collate
    from minimoe_dist.data.indexed import IndexedCorpus
    from minimoe_dist.data.loader import PairLoader
    from minimoe_dist.data.pairs import PairSource

    data_type, whole_words = KINDS[kind]
    special = SpecialTokens(cls=101, sep=102, pad=0, mask=103, vocab_size=VOCABULARY)
    pieces = np.arange(VOCABULARY) % 4 == 0 if whole_words else None
    return PairLoader(
        PairSource(IndexedCorpus.open(prefix), length, 1),
        build_collate(data_type, special, length, 1, pieces),
        micro_batch_size=batch,
        accumulation_steps=1,
        rank=0,
        world_size=1,
        seed=1,
        prefetch_steps=prefetch_steps,
    )


class Reader(threading.Thread):
    """Reads micro-batches without a pause until it is told to stop."""

    def __init__(self, loader: Any, batch: int) -> None:
        super().__init__(daemon=True)
        self.loader, self.batch = loader, batch
        self.samples, self.seconds, self.processor_seconds = 0, 0.0, 0.0
        self.done = threading.Event()
        self.start()

    def run(self) -> None:
        started, processor = time.perf_counter(), time.thread_time()
        while not self.done.is_set():
            next(self.loader)
            self.samples += self.batch
        self.seconds = time.perf_counter() - started
        self.processor_seconds = time.thread_time() - processor


def rates_of(readers: list[Reader]) -> dict[str, float]:
    """Stops readers; returns what they read a second, together."""
    for reader in readers:
        reader.done.set()
    for reader in readers:
        reader.join()
    samples = sum(reader.samples for reader in readers)
    processor_seconds = sum(reader.processor_seconds for reader in readers)
    return {
        "pairs_per_second": sum(reader.samples / reader.seconds for reader in readers),
        "pairs_per_processor_second": samples / processor_seconds,
    }


def measure_rate(loaders: list[Any], batch: int, seconds: float) -> dict[str, float]:
    """What loaders that are read at the same time, a thread each, give."""
    readers = [Reader(loader, batch) for loader in loaders]
    time.sleep(seconds)
    return rates_of(readers)


def python_work(rounds: int) -> float:
    """Seconds that so many rounds of a loop take; it holds the interpreter all the time."""
    started = time.perf_counter()
    total = 0
    for i in range(rounds):
        total += i & 7
    return time.perf_counter() - started


def rounds_of(seconds: float) -> int:
    """Rounds of the loop that take so long when nothing runs beside it."""
    return int(seconds / min(python_work(200_000) for _ in range(20)) * 200_000)


def measure_beside(loaders: list[Any], batch: int, seconds: float) -> dict[str, float]:
    pieces, rounds = max(1, int(seconds / PIECE_SECONDS)), rounds_of(PIECE_SECONDS)
    alone = min(python_work(rounds) for _ in range(pieces))
    readers = [Reader(loader, batch) for loader in loaders]
    beside = min(python_work(rounds) for _ in range(pieces))
    return {"slowdown": beside / alone, **rates_of(readers)}


def measure_step(loader: Any, batch: int) -> dict[str, float]:
    rounds = rounds_of(STEP_SECONDS)
    alone = [python_work(rounds) for _ in range(STEPS)]
    next(loader)
    waits, works = [], []
    for _ in range(STEPS):
        started = time.perf_counter()
        next(loader)
        waits.append(time.perf_counter() - started)
        works.append(python_work(rounds))
    return {
        "slowdown": median(works) / median(alone),
        "milliseconds_waited": median(waits) * 1e3,
        "pairs_per_second": batch / (median(works) + median(waits)),
    }


def anonymous_mib() -> float:
    """Memory of this process that is not a file's, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def measure_opening(prefix: str, batch: int, samples: int) -> dict[str, float]:
    """Seconds from nothing to the first micro-batch, and memory that more of them take."""
    started = time.perf_counter()
    import minimoe_dist.data.batches
    import minimoe_dist.data.loader  # noqa: F401

    imported = time.perf_counter()
    loader = make_loader(prefix, 128, "plain", batch)
    opened = time.perf_counter()
    next(loader)
    read = time.perf_counter()
    memory = anonymous_mib()
    for _ in range(samples // batch):
        next(loader)
    return {
        "import_seconds": imported - started,
        "open_seconds": opened - imported,
        "first_batch_seconds": read - opened,
        "anonymous_mib": memory,
        f"anonymous_mib_after_{samples}_pairs": anonymous_mib(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def best(
    measure: Callable[[], dict[str, float]], repeats: int, key: Callable[[dict[str, float]], float]
) -> dict[str, float]:
    return min((measure() for _ in range(repeats)), key=key)


def measure_all(prefix: str, given: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    batch, seconds, repeats = given.batch, given.seconds, given.repeats
    found: dict[str, Any] = {"batch": batch, "rates": {}}
    for length, kind, threads in itertools.product(given.lengths, KINDS, (1, 2)):
        loaders = [make_loader(prefix, length, kind, batch) for _ in range(threads)]
        rates = best(
            lambda loaders=loaders: measure_rate(loaders, batch, seconds),
            repeats,
            lambda rates: -rates["pairs_per_second"],
        )
        found["rates"][f"{length}, {kind}, {threads} threads"] = rates
        print(f"length {length}, {kind}, {threads} threads:", rounded(rates), flush=True)
    loaders = [make_loader(prefix, 128, "plain", batch) for _ in range(2)]
    found["beside"] = best(
        lambda: measure_beside(loaders, batch, seconds), repeats, lambda one: one["slowdown"]
    )
    print("Python beside two reading threads:", rounded(found["beside"]))
    with make_loader(prefix, 128, "plain", batch, prefetch_steps=2) as ahead:
        found["step"] = best(
            lambda: measure_step(ahead, batch), repeats, lambda one: -one["pairs_per_second"]
        )
    print(f"steps of {STEP_SECONDS * 1e3:.0f} ms of Python:", rounded(found["step"]))
    return found


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3 if value < 100 else None) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", help="prefix of an indexed corpus, ids below 30522")
    parser.add_argument("--batch", type=int, default=128, help="pairs of a micro-batch")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="file for all figures")
    parser.add_argument("--opening", action="store_true", help="measure that alone, in here")
    given = parser.parse_args()
    if given.opening:
        print(json.dumps(measure_opening(given.corpus, given.batch, 100_000)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prefix = given.corpus or os.path.join(folder, "corpus")
        if given.corpus is None:
            write_corpus(prefix)
        child = [sys.executable, __file__, "--opening", "--corpus", prefix]
        child += ["--batch", str(given.batch)]
        opening = [
            json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout)
            for _ in range(given.repeats)
        ]
        found = {"opening": min(opening, key=lambda result: result["open_seconds"])}
        print("opening, from nothing:", rounded(found["opening"]))
        found |= measure_all(prefix, given)
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
