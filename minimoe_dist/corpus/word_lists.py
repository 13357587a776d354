"""Reads BERT's file of tokens."""

from __future__ import annotations

import os


def read_words(folder: str) -> dict[str, int] | None:
    """Reads the tokens of a ``vocab.txt``, one a line, to their ids; None without that file."""
    path = os.path.join(folder, "vocab.txt")
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8", errors="replace", newline="\n") as stream:
        return {line.rstrip("\n").rstrip("\r"): index for index, line in enumerate(stream)}
