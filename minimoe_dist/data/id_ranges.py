"""The smallest and largest id of a ``.bin`` file that has no manifest to say them."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..durable import beside, write_json

SUFFIX = ".ids.json"
_PIECE = 1 << 24  # tokens that are looked at together
_REMEMBERED_BYTES = 1 << 30  # a smaller file is read in a second


def id_range(path: str, ids: np.ndarray) -> tuple[int, int]:
    """Reads all ids; of a large file what was found is kept beside it, for the next start.

    Args:
        path: the file.
        ids: of any integer type [tokens], what is in it.

    Returns:
        The smallest and the largest id; those of the pieces up to the first negative one.
    """
    file = Path(path)
    state = file.stat()
    known = {"size": state.st_size, "modified_ns": state.st_mtime_ns}
    note = beside(file, SUFFIX)
    with suppress(OSError, ValueError, TypeError, KeyError):
        saved = json.loads(note.read_text("utf-8"))
        if {name: saved[name] for name in known} == known:
            return int(saved["smallest"]), int(saved["largest"])
    smallest = largest = 0
    for start in range(0, len(ids), _PIECE):
        piece = ids[start : start + _PIECE]
        largest = max(largest, int(piece.max()))
        if piece.dtype.kind == "i" and (smallest := int(piece.min())) < 0:
            return smallest, largest
    if state.st_size >= _REMEMBERED_BYTES:
        with suppress(OSError):  # others' files may lie where nothing can be written
            write_json(note, {**known, "smallest": 0, "largest": largest})
    return 0, largest
