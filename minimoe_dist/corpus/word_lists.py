"""Reads BERT's file of tokens."""

from __future__ import annotations

import os

from ..foreign import read_bytes

# Of a file of a tokenizer; the largest known have half as much.
MOST_TOKENIZER_BYTES = 1 << 26


def read_words(folder: str) -> dict[str, int] | None:
    """Reads the tokens of a ``vocab.txt``, one a line, to their ids; None without that file.

    Raises:
        OSError, ValueError: it cannot be read, or is far too large.
    """
    path = os.path.join(folder, "vocab.txt")
    if not os.path.isfile(path):
        return None
    text = read_bytes(path, MOST_TOKENIZER_BYTES).decode("utf-8", "replace")
    lines = text.removesuffix("\n").split("\n") if text else []
    return {line.rstrip("\r"): index for index, line in enumerate(lines)}
